"""taming's VQModel, GumbelVQ and EMAVQ: our numbers are those of the official code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vqcortex.adapters import load_model
from vqcortex.checkpoints import read_checkpoint, state_dict_of

DATA = Path(__file__).parents[1] / "data" / "golden"
NAMES = ("taming_vqgan", "taming_gumbel", "taming_ema")
ATOL = 1e-4


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def expected(name):
    return load_file(DATA / name / "expected.safetensors")


@pytest.fixture
def model(name):
    return load_model(f"taming:{DATA / name}")


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


@torch.no_grad()
def test_the_encoder_and_its_tokens_are_the_official_ones(model, expected):
    image = model.network.prepare(expected["pixels"])
    close(image, expected["image"])
    close(model.network.encode(image), expected["prequant"])
    assert torch.equal(model.encode(expected["pixels"]), expected["tokens"])


@torch.no_grad()
def test_the_codes_and_the_decoder_are_the_official_ones(model, expected):
    close(model.codebook, expected["codebook"])
    embedded = model.embed(expected["tokens"])
    close(embedded, expected["quantized"])
    close(model.network.decode(embedded), expected["decoded"])
    close(model.decode(embedded), expected["decoded_pixels"])


def test_every_float_weight_is_float32(model):
    assert {one.dtype for one in model.module.state_dict().values()} == {torch.float32}


def test_official_straight_through_codes_are_ours(name, model, expected):
    if name == "taming_gumbel":
        assert "quantized_straight_through" not in expected
    else:
        close(model.embed(model.encode(expected["pixels"])), expected["quantized_straight_through"])


@torch.no_grad()
def test_the_second_best_code_is_as_far_behind_as_officially_and_no_token_is_in_doubt(name, model, expected):
    assert not model.network.choose(expected["image"]).doubtful.any()
    if name != "taming_gumbel":
        latent = model.network.encode(expected["image"]).permute(0, 2, 3, 1)
        two = torch.cdist(latent.flatten(1, 2), model.codebook).square().topk(2, dim=2, largest=False).values
        close((two[..., 1] - two[..., 0]).view_as(expected["margin"]), expected["margin"])


def test_gumbel_logits_are_the_official_ones_without_noise():
    expected = load_file(DATA / "taming_gumbel" / "expected.safetensors")
    model = load_model(f"taming:{DATA / 'taming_gumbel'}")
    logits = model.logits(expected["pixels"])
    close(logits, expected["logits"])
    assert torch.equal(logits, model.logits(expected["pixels"]))
    assert torch.equal(logits.argmax(1), expected["tokens"])
    two = logits.topk(2, dim=1).values
    close(two[:, 0] - two[:, 1], expected["margin"])


def test_the_nearest_code_is_not_what_gumbel_chooses():
    expected = load_file(DATA / "taming_gumbel" / "expected.safetensors")
    model = load_model(f"taming:{DATA / 'taming_gumbel'}")
    assert (model.nearest(expected["prequant"]) != expected["tokens"]).double().mean() > 0.5


@torch.no_grad()
def test_pixels_from_zero_to_one_would_give_other_tokens(model, expected):
    assert not torch.equal(model.network.choose(expected["pixels"]).tokens, expected["tokens"])


@torch.no_grad()
def test_padding_on_all_sides_would_give_other_latents(model, expected):
    for level in model.network.encoder.down:
        if level.downsample is not None:
            level.downsample.forward = lambda x, conv=level.downsample.conv: torch.nn.functional.conv2d(
                x, conv.weight, conv.bias, stride=2, padding=1
            )
    assert (model.network.encode(expected["image"]) - expected["prequant"]).abs().max() > 100 * ATOL


def test_a_bare_file_gives_the_same_model_as_its_folder(name, model, expected):
    bare = load_model(f"taming:{DATA / name / 'checkpoints' / 'last.ckpt'}?size=16")
    assert bare.identity == model.identity
    assert torch.equal(bare.encode(expected["pixels"]), expected["tokens"])


def test_the_folder_and_the_file_are_recognised(name):
    folder = load_model(DATA / name)
    assert folder.family == "taming"
    assert "taming.models.vqgan" in folder.recognised
    file = load_model(DATA / name / "checkpoints" / "last.ckpt")
    assert file.family == "taming"
    assert "quant_conv" in file.recognised


def test_callbacks_keyed_by_a_class_do_not_hide_the_state_dict():
    path = DATA / "taming_vqgan" / "checkpoints" / "class_keyed_callbacks.ckpt"
    tensors = state_dict_of(read_checkpoint(path), path)
    expected = load_file(DATA / "taming_vqgan" / "expected.safetensors")
    assert torch.equal(tensors["quantize.embedding.weight"], expected["codebook"])
