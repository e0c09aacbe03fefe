"""zalando's VQ-VAE against numbers of the official notebook."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from vqcortex.adapters import load_model
from vqcortex.adapters.zalando import _Residual

FOLDER = Path(__file__).parents[1] / "data" / "golden" / "zalando_vqvae"
FILE = FOLDER / "model.pt"
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return load_model(f"zalando:{FILE}")


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
    monkeypatch.setattr(_Residual, "forward", lambda self, x: x + self._block(x))
    away = model.network.encode(golden["image"]) - golden["prequant"]
    assert away.abs().max() > 0.01


def test_images_are_in_minus_a_half_to_a_half(model, golden):
    wrong = model.network.choose(golden["pixels"] * 2 - 1).tokens
    assert (wrong != golden["tokens"]).float().mean() > 0.1


def test_the_plain_quantizer_has_fewer_keys_and_the_same_numbers(model, tmp_path):
    tensors = torch.load(FILE, weights_only=True)
    assert tensors["_vq_vae._ema_w"].shape == (64, 10)
    save_file({key: one for key, one in tensors.items() if "_ema_" not in key}, tmp_path / "plain.safetensors")
    assert load_model(tmp_path / "plain.safetensors").identity == model.identity


def test_the_prefix_of_distributed_training_is_no_hindrance(model, tmp_path):
    tensors = torch.load(FILE, weights_only=True)
    torch.save({f"module.{key}": one for key, one in tensors.items()}, tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert again.identity == model.identity
    assert again.recognised.endswith("zalando's VQ-VAE")


def test_a_live_model_gives_the_same(golden):
    class Model(nn.Module):
        """Has the official state dict, which is all that is read."""

        def state_dict(self):
            return content

    Model.__qualname__ = "Model"
    content = torch.load(FILE, weights_only=True)
    live = load_model(Model())
    assert torch.equal(live.encode(golden["pixels"]), golden["tokens"])
    assert live.codebook.data_ptr() == content["_vq_vae._embedding.weight"].data_ptr()
