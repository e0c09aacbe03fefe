"""DALL-E mini's VQGAN against the numbers of its Flax code."""

import pytest
import torch
from parity.golden import DATA
from safetensors.torch import load_file
from torch import nn

from vqcortex.adapters import load_model
from vqcortex.adapters.taming import network_from
from vqcortex.adapters.vqgan_jax import torch_names
from vqcortex.checkpoints import read_checkpoint

FOLDER = DATA / "vqgan_jax"
EXPECTED = load_file(FOLDER / "expected.safetensors")
ATOL = 1e-4


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER)


@pytest.fixture(scope="module")
def signed():
    return load_model(f"vqgan-jax:{FOLDER}?pixels=signed")


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
    assert (model.family, model.k, model.d) == ("vqgan-jax", 64, 16)
    assert (model.size, model.grid) == ((16, 16), (8, 8))
    assert load_model(FOLDER / "flax_model.msgpack").identity == model.identity


def test_the_taming_way_gives_other_tokens_and_is_another_model(model, signed):
    assert not torch.equal(signed.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
    assert signed.identity != model.identity


@torch.no_grad()
def test_the_taming_way_is_what_the_taming_family_computes(signed):
    path = FOLDER / "flax_model.msgpack"
    twin = network_from(torch_names(read_checkpoint(path)), None, path)
    images = twin.prepare(EXPECTED["pixels"])
    assert torch.equal(twin.choose(images).tokens, signed.encode(EXPECTED["pixels"]))
    embedded = twin.codes.embed(EXPECTED["tokens"])
    torch.testing.assert_close(
        twin.finish(twin.decode(embedded)), signed.decode(signed.embed(EXPECTED["tokens"])), rtol=0, atol=0
    )


def test_every_normalisation_has_the_epsilon_of_the_port(model):
    assert {one.eps for one in model.module.modules() if isinstance(one, nn.GroupNorm)} == {1e-6}
