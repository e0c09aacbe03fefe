"""rosinality's VQ-VAE-2: what is refused, and how a file is known."""

from pathlib import Path

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.rosinality import recognise, wrap
from vqcortex.errors import ConfigError, ModelError, ShapeError

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FILE = GOLDEN / "rosinality_vqvae2" / "vqvae_001.pt"


def altered(tmp_path, change) -> Path:
    tensors = torch.load(FILE, weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


def test_sizes_come_from_shapes_and_the_default_size_is_the_published_models():
    model = load_model(f"rosinality:{FILE}")
    assert (model.k, model.d, model.size, model.stride) == (128, 16, (256, 256), None)
    assert [level.grid for level in model.levels] == [(32, 32), (64, 64)]


def test_codebooks_may_differ_in_size(tmp_path):
    path = altered(tmp_path, lambda t: t.update({"quantize_b.embed": torch.randn(16, 7)}))
    model = load_model(f"{path}?size=32")
    assert [level.codes for level in model.levels] == [(0, 64), (64, 71)]
    tokens = model.encode(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert tokens[:, 0, :16].max() < 64 <= tokens[:, 0, 16:].min()
    assert tokens.max() < 71


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("quantize_b.embed"), r"has no key 'quantize_b\.embed'"),
        (lambda t: t.pop("upsample_t.bias"), r"lacks 1 of .* tensors.*upsample_t\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), r"holds 1 that the model has no place for.*'extra'"),
        (
            lambda t: t.update({"quantize_t.embed": torch.zeros(64, 16)}),
            r"'quantize_t\.embed' has codes of 64 numbers but the latent has 16 channels",
        ),
        (
            lambda t: t.update({"quantize_t.embed": torch.zeros(16, 64, 1)}),
            r"'quantize_t\.embed' has shape \(16, 64, 1\) but a codebook is \(d, k\), channels by codes",
        ),
        (
            lambda t: t.update({"quantize_conv_b.weight": torch.zeros(16, 24, 1, 1)}),
            r"'quantize_conv_b\.weight' has shape \(16, 24, 1, 1\) .* expects \(16, 40, 1, 1\)",
        ),
        (lambda t: t["quantize_t.embed"][3].fill_(torch.nan), "64 of 1024 numbers of 'codes.parts.0.weight' are NaN"),
    ],
)
def test_an_altered_file_is_refused(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"rosinality:{altered(tmp_path, change)}")


def test_a_truncated_file_is_refused(tmp_path):
    (tmp_path / "short.pt").write_bytes(FILE.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"short\.pt' "):
        load_model(f"rosinality:{tmp_path / 'short.pt'}")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key 'enc_b\.blocks\.0\.weight'"):
        load_model(f"rosinality:{GOLDEN / 'zalando_vqvae' / 'model.pt'}")


def test_options_are_checked():
    with pytest.raises(ConfigError, match="has no option 'scales'"):
        load_model(f"rosinality:{FILE}?scales=1,2")
    with pytest.raises(ConfigError, match=r"size=36x20 .* is not a multiple of the 8 .*write \?size=32x16"):
        load_model(f"rosinality:{FILE}?size=36x20")


def test_images_of_another_size_are_refused():
    model = load_model(f"rosinality:{FILE}?size=32x16")
    with pytest.raises(ShapeError, match=r"images are \(32, 32\) but .* takes \(32, 16\) only"):
        model.encode(torch.zeros(1, 3, 32, 32))


def test_sizes_have_identities_of_their_own():
    assert load_model(f"{FILE}?size=32").identity != load_model(f"{FILE}?size=64").identity


def test_it_recognises_its_own_files_only():
    found = [path for path in sorted(GOLDEN.rglob("*")) if path.suffix in (".pt", ".pth") and recognise(Files(path))]
    assert found == [FILE]


def test_other_live_objects_are_left_alone():
    assert wrap(torch.nn.Linear(2, 2)) is None
    assert wrap(type("VQVAE", (torch.nn.Linear,), {})(2, 2)) is None
