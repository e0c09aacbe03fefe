"""Open-MAGVIT2's tokenizer against the numbers of its official code."""

import pytest
import torch
from parity.golden import DATA
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from vqcortex.adapters import load_model
from vqcortex.adapters.open_magvit2 import DepthToSpace

FOLDER = DATA / "open_magvit2"
EXPECTED = load_file(FOLDER / "expected.safetensors")
ATOL = 1e-4


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER)


def close(found, name):
    torch.testing.assert_close(found, EXPECTED[name], rtol=0, atol=ATOL)


@torch.no_grad()
def test_every_tensor_is_that_of_the_official_code(model):
    network = model.network
    close(network.prepare(EXPECTED["pixels"]), "image")
    close(network.encode(EXPECTED["image"]), "prequant")
    assert torch.equal(model.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
    close(model.codebook, "codebook")
    embedded = model.embed(EXPECTED["tokens"])
    close(embedded, "quantized")
    close(network.decode(embedded), "decoded")
    close(model.decode(embedded), "decoded_pixels")


def test_the_family_and_size_are_found_without_a_name(model):
    assert (model.family, model.k, model.d) == ("open-magvit2", 64, 6)
    assert (model.size, model.grid) == ((16, 16), (8, 8))
    assert "lfqgan.VQModel" in model.recognised


@pytest.mark.parametrize(("option", "prefix"), [("", ""), ("?weights=ema", ""), ("?weights=raw", "raw_weights_")])
def test_averaged_weights_are_used_unless_the_raw_ones_are_asked_for(option, prefix):
    model = load_model(f"open-magvit2:{FOLDER}{option}")
    assert torch.equal(model.encode(EXPECTED["pixels"]), EXPECTED[f"{prefix}tokens"])
    with torch.no_grad():
        close(model.network.decode(model.embed(EXPECTED[f"{prefix}tokens"])), f"{prefix}decoded")


def test_the_two_choices_are_two_models(model):
    assert not torch.equal(EXPECTED["tokens"], EXPECTED["raw_weights_tokens"])
    assert load_model(f"open-magvit2:{FOLDER}?weights=raw").identity != model.identity


def test_the_first_channel_is_the_least_significant_digit(model):
    bits = (EXPECTED["prequant"] > 0).long()
    assert torch.equal((bits * 2 ** torch.arange(6)[:, None, None]).sum(1), EXPECTED["tokens"])
    assert not torch.equal((bits.flip(1) * 2 ** torch.arange(6)[:, None, None]).sum(1), EXPECTED["tokens"])
    assert model.embed(torch.ones(1, 1, 1).long()).flatten().tolist() == [1, -1, -1, -1, -1, -1]


def test_zero_counts_as_minus_one(model):
    assert model.nearest(torch.zeros(1, 6, 2, 2)).tolist() == [[[0, 0], [0, 0]]]
    assert model.nearest(torch.full((1, 6, 1, 1), 1e-30)).item() == 63


@torch.no_grad()
def test_channels_become_pixels_in_depth_to_space_order(model):
    class Shuffled(nn.Module):
        def __init__(self, layer: DepthToSpace) -> None:
            super().__init__()
            self.conv1 = layer.conv1

        def forward(self, x):
            return F.pixel_shuffle(self.conv1(x), 2)

    layer = model.network.decoder.up[1]["upsample"]
    x = torch.randn(1, 32, 2, 3, generator=torch.Generator().manual_seed(0))
    wide, found = layer.conv1(x), layer(x)
    for row in range(2):
        for column in range(2):
            block = wide[:, (2 * row + column) * 32 : (2 * row + column + 1) * 32]
            torch.testing.assert_close(found[:, :, row::2, column::2], block)
    other = load_model(FOLDER).network
    other.decoder.up[1]["upsample"] = Shuffled(layer)
    assert (other.decode(EXPECTED["quantized"]) - EXPECTED["decoded"]).abs().max() > 100 * ATOL


@torch.no_grad()
def test_one_token_changes_the_whole_picture(model):
    tokens = EXPECTED["tokens"][:1].clone()
    before = model.decode(model.embed(tokens))
    tokens[0, 0, 0] = 63 - tokens[0, 0, 0]
    changed = (model.decode(model.embed(tokens)) - before).abs().sum(1)[0]
    assert (changed[8:, 8:] > 0).any()


@torch.no_grad()
def test_the_spread_is_that_of_a_sample(model):
    norm, codes = model.network.decoder.adaptive[1], EXPECTED["quantized"]
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    flat = codes.flatten(2)
    spread = ((flat - flat.mean(-1, keepdim=True)).square().sum(-1) / 63 + 1e-6).sqrt()
    plain = F.group_norm(x, 32, eps=1e-6)
    slow = norm.gamma(spread)[:, :, None, None] * plain + norm.beta(flat.mean(-1))[:, :, None, None]
    torch.testing.assert_close(norm(x, codes), slow)
