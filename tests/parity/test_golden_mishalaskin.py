"""MishaLaskin's VQ-VAE against numbers of the official code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from vqcortex.adapters import load_model
from vqcortex.adapters.mishalaskin import _Residual

FOLDER = Path(__file__).parents[1] / "data" / "golden" / "mishalaskin_vqvae"
FILE = FOLDER / "vqvae_data_tiny.pth"
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return load_model(f"mishalaskin:{FILE}")


def test_encoding_is_the_official_one(model, golden):
    image = model.network.prepare(golden["pixels"])
    assert_close(image, golden["image"], **CLOSE)
    assert_close(model.network.encode(image), golden["prequant"], **CLOSE)
    assert torch.equal(model.encode(golden["pixels"]), golden["tokens"])


def test_decoding_is_the_official_one(model, golden):
    assert_close(model.codebook, golden["codebook"], **CLOSE)
    embedded = model.embed(golden["tokens"])
    assert_close(embedded, golden["quantized"], **CLOSE)
    assert_close(model.network.decode(embedded), golden["decoded"], **CLOSE)
    assert_close(model.decode(embedded), golden["decoded_pixels"], **CLOSE)


def test_the_way_around_a_residual_branch_carries_its_relu(model, golden, monkeypatch):
    monkeypatch.setattr(_Residual, "forward", lambda self, x: x + self.res_block(x))
    away = model.network.encode(golden["image"]) - golden["prequant"]
    assert away.abs().max() > 0.01


def test_a_stack_is_one_layer_in_several_places(model):
    first, second = model.network.encoder.conv_stack[5].stack
    assert first is second


def test_images_are_in_minus_one_to_one(model, golden):
    wrong = model.network.choose(golden["pixels"]).tokens
    assert (wrong != golden["tokens"]).float().mean() > 0.1


def test_numpy_arrays_beside_the_model_are_no_hindrance(model, golden, tmp_path):
    content = torch.load(FILE, weights_only=True)
    content["results"] = {"n_updates": 7, "recon_errors": [np.float64(0.5)], "loss_vals": np.arange(3.0)}
    torch.save(content, tmp_path / "vqvae_data.pth")
    again = load_model(tmp_path / "vqvae_data.pth")
    assert again.identity == model.identity
    assert again.recognised.endswith("MishaLaskin's VQ-VAE")


def test_a_live_model_gives_the_same(model, golden):
    class VQVAE(nn.Module):
        """Has the official state dict, which is all that is read."""

        def state_dict(self):
            return content

    VQVAE.__qualname__ = "VQVAE"
    content = torch.load(FILE, weights_only=True)["model"]
    live = load_model(VQVAE())
    assert torch.equal(live.encode(golden["pixels"]), golden["tokens"])
    assert live.codebook.data_ptr() == content["vector_quantization.embedding.weight"].data_ptr()
