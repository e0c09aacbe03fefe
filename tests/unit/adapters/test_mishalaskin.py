"""MishaLaskin's VQ-VAE: what is refused, and how a file is known."""

from pathlib import Path

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.mishalaskin import recognise, wrap
from vqcortex.errors import ConfigError, ModelError

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FILE = GOLDEN / "mishalaskin_vqvae" / "vqvae_data_tiny.pth"
TABLE = "vector_quantization.embedding.weight"


def altered(tmp_path, change) -> Path:
    content = torch.load(FILE, weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "altered.pth")
    return tmp_path / "altered.pth"


def test_sizes_come_from_shapes_and_the_default_size_is_cifars():
    model = load_model(f"mishalaskin:{FILE}")
    assert (model.k, model.d, model.size, model.grid, model.stride) == (64, 10, (32, 32), (8, 8), 4)
    assert load_model(f"mishalaskin:{FILE}?size=16x64").grid == (4, 16)


def test_any_multiple_of_four_will_do():
    model = load_model(f"mishalaskin:{FILE}")
    tokens = model.encode(torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0)))
    assert tokens.shape == (2, 3, 5)
    assert model.decode(model.embed(tokens)).shape == (2, 3, 12, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TABLE), f"has no key '{TABLE}'"),
        (lambda t: t.pop("pre_quantization_conv.bias"), r"lacks 1 of .* tensors.*pre_quantization_conv\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), r"holds 1 that the model has no place for.*'extra'"),
        (lambda t: t.update({TABLE: torch.zeros(64, 11)}), "has codes of 11 numbers but the latent has 10 channels"),
        (lambda t: t.update({TABLE: torch.zeros(64)}), r"has shape \(64,\) but a codebook is \(k, d\)"),
        (
            lambda t: t.update({"decoder.inverse_conv_stack.4.weight": torch.zeros(13, 3, 4, 4)}),
            r"'decoder\.inverse_conv_stack\.4\.weight' has shape \(13, 3, 4, 4\) .* expects \(12, 3, 4, 4\)",
        ),
        (
            lambda t: t.update({"encoder.conv_stack.0.weight": torch.zeros(12, 3)}),
            r"'encoder\.conv_stack\.0\.weight' has shape \(12, 3\) but a convolution's",
        ),
        (lambda t: t[TABLE][3].fill_(torch.nan), r"10 of 640 numbers of 'codes\.weight' are NaN or infinite"),
    ],
)
def test_an_altered_file_is_refused(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"mishalaskin:{altered(tmp_path, change)}")


def test_a_truncated_file_is_refused(tmp_path):
    (tmp_path / "short.pth").write_bytes(FILE.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"short\.pth' "):
        load_model(f"mishalaskin:{tmp_path / 'short.pth'}")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key 'encoder\.conv_stack\.0\.weight'"):
        load_model(f"mishalaskin:{GOLDEN / 'zalando_vqvae' / 'model.pt'}")


def test_options_are_checked():
    with pytest.raises(ConfigError, match="has no option 'scales'"):
        load_model(f"mishalaskin:{FILE}?scales=1,2")
    with pytest.raises(ConfigError, match=r"size=30x30 is not a multiple of the 4 pixels .*write \?size=28"):
        load_model(f"mishalaskin:{FILE}?size=30")


def test_a_fork_whose_layers_differ_is_read_as_it_is(tmp_path):
    key = "encoder.conv_stack.5.stack.1.res_block.3.weight"
    path = altered(tmp_path, lambda t: t.update({key: t[key] * 2}))
    first, second = load_model(path).network.encoder.conv_stack[5].stack
    assert first is not second
    assert torch.equal(first.res_block[3].weight * 2, second.res_block[3].weight)


def test_a_folder_with_the_file_opens_by_its_family():
    assert load_model(f"mishalaskin:{FILE.parent}").k == 64


def test_it_recognises_its_own_files_only():
    found = [path for path in sorted(GOLDEN.rglob("*")) if path.suffix in (".pt", ".pth") and recognise(Files(path))]
    assert found == [FILE]
    assert recognise(Files(FILE.parent)) is None


def test_other_live_objects_are_left_alone():
    assert wrap(torch.nn.Linear(2, 2)) is None
    assert wrap(type("VQVAE", (torch.nn.Linear,), {})(2, 2)) is None
