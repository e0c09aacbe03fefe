"""OpenAI's dVAE against the numbers of its official code."""

import pytest
import torch
from parity.golden import DATA
from safetensors.torch import load_file
from torch.nn import functional as F

from vqcortex.adapters import load_model

FOLDER = DATA / "openai_dvae"
EXPECTED = load_file(FOLDER / "expected.safetensors")
ATOL = 1e-4


@pytest.fixture(scope="module")
def model():
    return load_model(f"{FOLDER}?size=32")


def close(found, name):
    torch.testing.assert_close(found, EXPECTED[name], rtol=0, atol=ATOL)


@torch.no_grad()
def test_every_tensor_is_that_of_the_official_code(model):
    network = model.network
    close(network.prepare(EXPECTED["pixels"]), "image")
    assert torch.equal(model.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
    close(model.logits(EXPECTED["pixels"]), "logits")
    close(model.codebook, "codebook")
    embedded = model.embed(EXPECTED["tokens"])
    close(embedded, "quantized")
    decoded = network.decode(embedded)
    assert decoded.shape[1] == 6
    close(decoded, "decoded")
    close(network.finish(decoded), "decoded_pixels")
    close(model.decode(embedded), "decoded_pixels")


def test_the_family_and_its_abilities_are_found_without_a_name(model):
    assert (model.family, model.abilities) == ("openai-dvae", {"encode", "decode", "logits"})
    assert (model.k, model.d, model.grid) == (64, 12, (4, 4))


def test_a_code_is_a_column_of_the_input_convolution_with_its_bias(model):
    layer = model.network.decoder.blocks["input"]
    one_hot = F.one_hot(EXPECTED["tokens"], model.k).permute(0, 3, 1, 2).float()
    close(F.conv2d(one_hot, layer.w, layer.b), "quantized")
    without = layer.w[:, :, 0, 0].T
    assert (without - EXPECTED["codebook"]).abs().max() > 100 * ATOL


def test_pixels_are_squeezed_before_they_are_encoded(model):
    with torch.no_grad():
        plain = model.network.choose(EXPECTED["pixels"]).tokens
    assert not torch.equal(plain, EXPECTED["tokens"])


@torch.no_grad()
def test_residual_branches_are_scaled_down(model):
    whole = load_model(f"{FOLDER}?size=32").network
    for module in whole.modules():
        if hasattr(module, "gain"):
            assert module.gain == 1 / 8**2
            module.gain = 1.0
    assert (whole.decode(EXPECTED["quantized"]) - EXPECTED["decoded"]).abs().max() > 100 * ATOL


def test_the_last_three_channels_are_no_pixels(model):
    logits = EXPECTED["decoded"]
    wrong = ((torch.sigmoid(logits[:, 3:]) - 0.1) / 0.8).clamp(0, 1)
    assert (wrong - EXPECTED["decoded_pixels"]).abs().max() > 100 * ATOL


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_model_gives_the_same_numbers(model, half):
    part = load_model(f"{FOLDER / f'{half}_state_dict.pt'}?size=32")
    if half == "encoder":
        assert part.abilities == {"encode", "logits"}
        assert torch.equal(part.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
    else:
        assert part.abilities == {"decode"}
        close(part.decode(part.embed(EXPECTED["tokens"])), "decoded_pixels")
