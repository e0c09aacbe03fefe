"""rosinality's VQ-VAE-2 against numbers of the official code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import address, join_levels, split_levels
from vqcortex.adapters.rosinality import _Residual

FOLDER = Path(__file__).parents[1] / "data" / "golden" / "rosinality_vqvae2"
FILE = FOLDER / "vqvae_001.pt"
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return load_model(f"rosinality:{FILE}?size=32")


@pytest.fixture(scope="module")
def tokens(golden):
    """The official tokens of both levels as one row; those of the bottom count on from the top's."""
    return join_levels([golden["tokens_top"], golden["tokens_bottom"] + 64])


def test_encoding_is_the_official_one(model, golden, tokens):
    image = model.network.prepare(golden["pixels"])
    assert_close(image, golden["image"], **CLOSE)
    top, bottom = model.network.encode(image)
    assert_close(top, golden["prequant_top"], **CLOSE)
    assert_close(bottom, golden["prequant_bottom"], **CLOSE)
    assert torch.equal(model.encode(golden["pixels"]), tokens)


def test_decoding_is_the_official_one(model, golden, tokens):
    assert_close(model.codebook, torch.cat([golden["codebook_top"], golden["codebook_bottom"]]), **CLOSE)
    embedded = model.embed(tokens)
    top, bottom = split_levels(embedded, model.levels)
    assert_close(top, golden["quantized_top"], **CLOSE)
    assert_close(bottom, golden["quantized_bottom"], **CLOSE)
    assert_close(model.network.decode(embedded), golden["decoded"], **CLOSE)
    assert_close(model.decode(embedded), golden["decoded_pixels"], **CLOSE)


def test_levels_say_what_is_where(model):
    top, bottom = model.levels
    assert (top.name, top.grid, top.codes) == ("top", (4, 4), (0, 64))
    assert (bottom.name, bottom.grid, bottom.codes) == ("bottom", (8, 8), (64, 128))
    assert model.grid == (1, 80)
    assert address(model.levels, (0, 16 + 8 * 2 + 5)) == (1, 2, 5)


def test_codebooks_are_stored_on_their_side(model):
    stored = torch.load(FILE, weights_only=True)
    assert_close(model.codebook[:64], stored["quantize_t.embed"].T, atol=0, rtol=0)
    assert_close(model.codebook[64:], stored["quantize_b.embed"].T, atol=0, rtol=0)


def test_the_bottom_is_chosen_knowing_the_top(model, golden):
    """Its latent with the two inputs in the other order, or with another top, is not the official one."""
    network, seen = model.network, []
    below = network.enc_b(golden["image"])
    decoded = network.dec_t(golden["quantized_top"])
    for parts in ([decoded, below], [below, decoded], [decoded.flip(0), below]):
        seen.append((network.quantize_conv_b(torch.cat(parts, 1)) - golden["prequant_bottom"]).abs().max())
    assert seen[0] < 1e-4 < 1e-2 < min(seen[1:])


def test_the_way_around_a_residual_branch_carries_its_input(model, golden, monkeypatch):
    monkeypatch.setattr(_Residual, "forward", lambda self, x: x.relu() + self.conv(x))
    away = model.network.encode(golden["image"])[0] - golden["prequant_top"]
    assert away.abs().max() > 0.01


def test_other_sizes_are_asked_for(golden):
    model = load_model(f"{FILE}?size=16x40")
    assert [level.grid for level in model.levels] == [(2, 5), (4, 10)]
    pixels = golden["pixels"].repeat(1, 1, 1, 2)[:, :, :16, :40]
    tokens = model.encode(pixels)
    assert tokens.shape == (2, 1, 50)
    assert model.decode(model.embed(tokens)).shape == pixels.shape


def test_a_live_model_gives_the_same(model):
    class VQVAE(nn.Module):
        """Has the official state dict, which is all that is read."""

        def state_dict(self):
            return torch.load(FILE, weights_only=True)

    VQVAE.__qualname__ = "VQVAE"
    live = load_model(VQVAE())
    assert live.size == (256, 256)
    assert torch.equal(live.codebook, model.codebook)
