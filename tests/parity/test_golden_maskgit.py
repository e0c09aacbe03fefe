"""MaskGIT-VQGAN against the numbers of its official port."""

import pytest
import torch
from parity.golden import DATA
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from vqcortex.adapters import load_model
from vqcortex.adapters.maskgit import Block

FOLDER = DATA / "maskgit_vqgan"
EXPECTED = load_file(FOLDER / "expected.safetensors")
ATOL = 1e-4


@pytest.fixture(scope="module")
def model():
    return load_model(f"{FOLDER}?size=16")


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


def test_the_family_is_found_without_a_name(model):
    assert (model.family, model.k, model.d, model.grid) == ("maskgit", 64, 12, (8, 8))
    assert load_model(FOLDER / "maskgit-vqgan-tiny.bin").identity == load_model(FOLDER).identity


@torch.no_grad()
def test_a_block_that_changes_width_drops_what_came_in(model):
    block = model.network.encoder.down[0].block[0]
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    branch = block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))
    torch.testing.assert_close(block(x), branch + block.nin_shortcut(branch))


@torch.no_grad()
def test_the_usual_shortcut_would_be_seen():
    # The middle blocks keep their width, so only the changing ones are at stake: give these the usual shortcut.
    class Usual(nn.Module):
        def __init__(self, block: Block) -> None:
            super().__init__()
            self.block = block

        def forward(self, x):
            own = self.block
            branch = own.conv2(F.silu(own.norm2(own.conv1(F.silu(own.norm1(x))))))
            kept = x.repeat(1, 2, 1, 1) if branch.shape[1] > x.shape[1] else x[:, : branch.shape[1]]
            return branch + own.nin_shortcut(kept)

    network = load_model(FOLDER).network
    for level in network.encoder.down:
        level.block[0] = Usual(level.block[0])
    assert (network.encode(EXPECTED["image"]) - EXPECTED["prequant"]).abs().max() > 100 * ATOL


@torch.no_grad()
def test_pixels_are_not_spread_to_minus_one(model):
    assert not torch.equal(model.network.choose(2 * EXPECTED["pixels"] - 1).tokens, EXPECTED["tokens"])
    wrong = ((EXPECTED["decoded"] + 1) / 2).clamp(0, 1)
    assert (wrong - EXPECTED["decoded_pixels"]).abs().max() > 100 * ATOL


def test_resolutions_have_as_many_blocks_up_as_down(model):
    network = model.network
    assert [len(level.block) for level in network.decoder.up] == [len(level.block) for level in network.encoder.down]
    assert network.decoder.up[0].upsample_conv is None
    assert network.decoder.up[1].upsample_conv is not None
