"""LlamaGen's tokenizer: our numbers are those of the official code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from vqcortex.adapters import load_model
from vqcortex.adapters.codes import nearest_rows

FOLDER = Path(__file__).parents[1] / "data" / "golden" / "llamagen_vq"
FILE = FOLDER / "vq_ds2_tiny.pt"
EXPECTED = load_file(FOLDER / "expected.safetensors")


@pytest.fixture
def model():
    return load_model(f"llamagen:{FILE}?size=16")


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_encoder_and_its_tokens_are_the_official_ones(model):
    image = model.network.prepare(EXPECTED["pixels"])
    close(image, EXPECTED["image"])
    prequant = model.network.encode(image)
    close(prequant, EXPECTED["prequant"])
    close(normalize(prequant, dim=1), EXPECTED["prequant_normalised"])
    assert torch.equal(model.encode(EXPECTED["pixels"]), EXPECTED["tokens"])


@torch.no_grad()
def test_the_codes_and_the_decoder_are_the_official_ones(model):
    close(model.codebook, EXPECTED["codebook"])
    close(model.network.codes.weight, EXPECTED["codebook_raw"])
    embedded = model.embed(EXPECTED["tokens"])
    close(embedded, EXPECTED["quantized"])
    close(model.network.decode(embedded), EXPECTED["decoded"])
    close(model.decode(embedded), EXPECTED["decoded_pixels"])


@torch.no_grad()
def test_the_second_best_code_is_as_far_behind_as_officially(model):
    latent = normalize(model.network.encode(EXPECTED["image"]), dim=1).permute(0, 2, 3, 1)
    two = torch.cdist(latent.flatten(1, 2), model.codebook).square().topk(2, dim=2, largest=False).values
    close((two[..., 1] - two[..., 0]).view(2, 8, 8), EXPECTED["margin"])


def test_codes_as_they_are_on_disk_would_give_other_tokens_and_pixels(model):
    assert (model.codebook.norm(dim=1) - 1).abs().max() < 1e-5
    lengths = EXPECTED["codebook_raw"].norm(dim=1)
    assert lengths.min() < 0.3 < 3 < lengths.max()
    raw = nearest_rows(EXPECTED["prequant"], EXPECTED["codebook_raw"]).tokens
    assert (raw != EXPECTED["tokens"]).double().mean() > 0.3
    with torch.no_grad():
        codes = EXPECTED["codebook_raw"][EXPECTED["tokens"]].permute(0, 3, 1, 2)
        assert (model.network.decode(codes) - EXPECTED["decoded"]).abs().max() > 0.01


@torch.no_grad()
def test_pixels_from_zero_to_one_would_give_other_tokens(model):
    assert not torch.equal(model.network.choose(EXPECTED["pixels"]).tokens, EXPECTED["tokens"])


def test_the_file_and_its_folder_are_recognised():
    for place in (FILE, FOLDER):
        model = load_model(place)
        assert model.family == "llamagen"
        assert "conv_blocks" in model.recognised
        assert model.size == (256, 256)
