"""VAR's multi-scale VQ-VAE: scales, what is refused, and how a file is known."""

from pathlib import Path

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.var import SCALES, phi_of, recognise, wrap
from vqcortex.errors import ConfigError, ModelError

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FILE = GOLDEN / "var_vqvae" / "vae_ch32v64z8.pth"
USAGE = "quantize.ema_vocab_hit_SV"
NAME = f"var:{FILE}?scales=1,2,3,5,8"


def altered(tmp_path, change) -> Path:
    tensors = torch.load(FILE, weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "altered.pth")
    return tmp_path / "altered.pth"


def opened(path, options="scales=1,2,3,5,8"):
    return load_model(f"var:{path}?{options}")


def without_usage(tensors) -> None:
    tensors.pop(USAGE)


def pixels_of(size, n=2):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------------------------------
# Scales


def test_the_papers_scales_are_taken_where_nothing_is_said(tmp_path):
    path = altered(tmp_path, lambda t: t.update({USAGE: torch.zeros(10, 64)}))
    model = load_model(path)
    assert [level.grid[0] for level in model.levels] == list(SCALES[256])
    assert model.grid == (1, 680)
    assert model.size == (32, 32)  # 16 tokens at this model's two pixels each


def test_the_number_of_scales_is_checked_against_the_file():
    with pytest.raises(ModelError, match=r"counts 5 scales but 10 are given \(1,2,3,4,5,6,8,10,13,16\); name those"):
        load_model(FILE)
    with pytest.raises(ModelError, match=r"counts 5 scales but 2 are given \(1,8\)"):
        opened(FILE, "scales=1,8")


def test_scales_need_not_be_square(tmp_path):
    model = opened(altered(tmp_path, without_usage), "scales=1,2x3,4x6")
    assert [level.grid for level in model.levels] == [(1, 1), (2, 3), (4, 6)]
    assert model.size == (8, 12)
    tokens = model.encode(pixels_of((8, 12)))
    assert tokens.shape == (2, 1, 31)
    assert model.decode(model.embed(tokens)).shape == (2, 3, 8, 12)


def test_one_scale_is_an_ordinary_grid(tmp_path):
    model = opened(altered(tmp_path, without_usage), "scales=8")
    assert (model.grid, len(model.levels)) == ((8, 8), 1)
    tokens = model.encode(pixels_of((16, 16)))
    assert tokens.shape == (2, 8, 8)
    assert torch.equal(tokens, model.network.codes.nearest(model.network.encode(2 * pixels_of((16, 16)) - 1)).tokens)
    assert model.decode(model.embed(tokens)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0,1", "1,2x", "1,2x3x4", "-1"])
def test_scales_that_are_no_grids_are_refused(text):
    with pytest.raises(ConfigError, match=rf"scales='{text}' of model .* are no grids; write \?scales=1,2,3,5,8"):
        opened(FILE, f"scales={text}")


def test_a_size_without_scales_must_be_a_released_one():
    with pytest.raises(ConfigError, match=r"size=128x128 .* is none of the released 256, 512; give the scales"):
        opened(FILE, "size=128")
    with pytest.raises(ModelError, match=r"counts 5 scales but 10 are given \(1,2,3,4,6,9,13,18,24,32\)"):
        opened(FILE, "size=512")


def test_a_size_must_be_what_the_scales_come_to():
    assert opened(FILE, "scales=1,2,3,5,8&size=16").size == (16, 16)
    with pytest.raises(ConfigError, match=r"size=32 .*but scales 1,2,3,5,8 at 2 pixels per token make 16x16"):
        opened(FILE, "scales=1,2,3,5,8&size=32")


def test_other_options_are_checked():
    with pytest.raises(ConfigError, match=r"has no option 'scale'; known: .*scales.*znorm"):
        opened(FILE, "scale=1")
    with pytest.raises(ConfigError, match=r"znorm='maybe' .* is neither yes nor no"):
        opened(FILE, "znorm=maybe")


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions of the scales


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_every_convolution_serves_a_scale_in_order(count):
    served = [phi_of(number, 10, count) for number in range(10)]
    assert served == sorted(served)
    assert set(served) == set(range(count))
    assert phi_of(0, 1, count) == 0


def test_one_convolution_may_serve_all_scales_or_each_have_its_own(tmp_path):
    def shared(tensors):
        for key in list(tensors):
            if ".qresi_ls." in key:
                tensor = tensors.pop(key)
                if ".qresi_ls.0." in key:
                    tensors[key.replace(".qresi_ls.0.", ".qresi.")] = tensor

    def own(tensors):
        for key in list(tensors):
            if ".qresi_ls." in key:
                tensor = tensors.pop(key)
                tensors[key.replace(".qresi_ls.", ".")] = tensor
                if ".qresi_ls.0." in key:
                    tensors[key.replace(".qresi_ls.0.", ".4.")] = tensor

    model = opened(altered(tmp_path, shared))
    assert len(model.network.phi) == 1
    assert model.encode(pixels_of((16, 16))).shape == (2, 1, 103)
    model = opened(altered(tmp_path, own))
    assert len(model.network.phi) == 5
    assert model.encode(pixels_of((16, 16))).shape == (2, 1, 103)


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("quantize.embedding.weight"), r"has no key 'quantize\.embedding\.weight'"),
        (lambda t: t.pop("decoder.conv_out.bias"), r"lacks 1 of .* tensors.*decoder\.conv_out\.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), r"holds 1 that the model has no place for.*'extra'"),
        (
            lambda t: t.update({"quantize.embedding.weight": torch.zeros(64, 9)}),
            "has codes of 9 numbers but the latent has 8 channels",
        ),
        (
            lambda t: t.update({"encoder.mid.attn_1.qkv.weight": torch.zeros(95, 32, 1, 1)}),
            r"'encoder\.mid\.attn_1\.qkv\.weight' has 95 rows, which are not queries, keys and values",
        ),
        (
            lambda t: t.update({"encoder.mid.attn_1.proj_out.weight": torch.zeros(32, 33, 1, 1)}),
            r"has shape \(32, 33, 1, 1\) .* expects \(32, 32, 1, 1\)",
        ),
        (
            lambda t: [t.pop(key) for key in list(t) if "quant_resi" in key],
            r"no key begins with 'quantize\.quant_resi\.'",
        ),
        (lambda t: t["quant_conv.bias"][1:3].fill_(torch.nan), r"2 of 8 numbers of 'quant_conv\.bias' are NaN"),
    ],
)
def test_an_altered_file_is_refused(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        opened(altered(tmp_path, change))


def test_a_truncated_file_is_refused(tmp_path):
    (tmp_path / "short.pth").write_bytes(FILE.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"short\.pth' "):
        opened(tmp_path / "short.pth")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key 'quantize\.embedding\.weight'"):
        opened(GOLDEN / "rosinality_vqvae2" / "vqvae_001.pt")


def test_it_recognises_its_own_files_only():
    found = [path for path in sorted(GOLDEN.rglob("*")) if path.suffix in (".pt", ".pth") and recognise(Files(path))]
    assert found == [FILE]


def test_other_live_objects_are_left_alone():
    assert wrap(torch.nn.Linear(2, 2)) is None
    assert wrap(type("VQVAE", (torch.nn.Linear,), {})(2, 2)) is None


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def test_company_changes_no_token():
    model, pixels = load_model(NAME), pixels_of((16, 16), 7)
    assert torch.equal(model.encode(pixels), torch.cat([model.encode(one[None]) for one in pixels]))


def test_in_bfloat16_company_changes_no_token_either():
    model, pixels = load_model(f"{NAME}&dtype=bfloat16"), pixels_of((16, 16), 7)
    assert torch.equal(model.encode(pixels), torch.cat([model.encode(one[None]) for one in pixels]))
    assert model.decode(model.embed(model.encode(pixels))).dtype == torch.float32
