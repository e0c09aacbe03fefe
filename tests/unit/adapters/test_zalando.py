"""zalando's VQ-VAE: what is refused, and how a file is known."""

from pathlib import Path

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.zalando import recognise, wrap
from vqcortex.errors import ConfigError, ModelError

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FILE = GOLDEN / "zalando_vqvae" / "model.pt"
TABLE = "_vq_vae._embedding.weight"


def altered(tmp_path, change) -> Path:
    tensors = torch.load(FILE, weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


def test_sizes_come_from_shapes_and_the_default_size_is_cifars():
    model = load_model(f"zalando:{FILE}")
    assert (model.k, model.d, model.size, model.grid, model.stride) == (64, 10, (32, 32), (8, 8), 4)
    assert load_model(f"zalando:{FILE}?size=16x64").grid == (4, 16)


def test_any_multiple_of_four_will_do():
    model = load_model(f"zalando:{FILE}")
    tokens = model.encode(torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0)))
    assert tokens.shape == (2, 3, 5)
    assert model.decode(model.embed(tokens)).shape == (2, 3, 12, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TABLE), f"has no key '{TABLE}'"),
        (lambda t: t.pop("_decoder._conv_1.bias"), r"lacks 1 of .* tensors.*_decoder\._conv_1\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), r"holds 1 that the model has no place for.*'extra'"),
        (lambda t: t.update({TABLE: torch.zeros(64, 11)}), "has codes of 11 numbers but the latent has 10 channels"),
        (
            lambda t: t.update({"_decoder._conv_trans_2.weight": torch.zeros(13, 3, 4, 4)}),
            r"'_decoder\._conv_trans_2\.weight' has shape \(13, 3, 4, 4\) .* expects \(12, 3, 4, 4\)",
        ),
        (
            lambda t: t.update({"_encoder._conv_3.weight": torch.zeros(24)}),
            r"'_encoder\._conv_3\.weight' has shape \(24,\) but a convolution's",
        ),
        (
            lambda t: t["_pre_vq_conv.bias"][3].fill_(torch.inf),
            r"1 of 10 numbers of '_pre_vq_conv\.bias' are NaN or inf",
        ),
    ],
)
def test_an_altered_file_is_refused(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"zalando:{altered(tmp_path, change)}")


def test_a_truncated_file_is_refused(tmp_path):
    (tmp_path / "short.pt").write_bytes(FILE.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"short\.pt' "):
        load_model(f"zalando:{tmp_path / 'short.pt'}")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key '_encoder\._conv_1\.weight'"):
        load_model(f"zalando:{GOLDEN / 'rosinality_vqvae2' / 'vqvae_001.pt'}")


def test_options_are_checked():
    with pytest.raises(ConfigError, match="has no option 'scales'"):
        load_model(f"zalando:{FILE}?scales=1,2")
    with pytest.raises(ConfigError, match=r"size=30x30 is not a multiple of the 4 pixels .*write \?size=28"):
        load_model(f"zalando:{FILE}?size=30")


def test_it_recognises_its_own_files_only():
    found = [path for path in sorted(GOLDEN.rglob("*")) if path.suffix in (".pt", ".pth") and recognise(Files(path))]
    assert found == [FILE]


def test_other_live_objects_are_left_alone():
    assert wrap(torch.nn.Linear(2, 2)) is None
    assert wrap(type("Model", (torch.nn.Linear,), {})(2, 2)) is None
