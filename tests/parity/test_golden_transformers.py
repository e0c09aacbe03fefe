"""The image tokenizers of transformers against the numbers that the library itself computed, and every known trap."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vqcortex.adapters import load_model
from vqcortex.adapters.codes import nearest_rows
from vqcortex.errors import ModelError

DATA = Path(__file__).parents[1] / "data" / "golden"
CHAMELEON, EMU3, JANUS = "hf_chameleon_vqvae", "hf_emu3_vqvae", "hf_janus_vqvae"
close = dict(rtol=0, atol=1e-4)


def opened(which, **options):
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return load_model(f"transformers:{DATA / which}?size=16{more}")


def expected_of(which):
    return load_file(DATA / which / "expected.safetensors")


@pytest.fixture(params=[CHAMELEON, EMU3, JANUS])
def case(request):
    return opened(request.param), expected_of(request.param)


@pytest.fixture
def janus():
    return opened(JANUS), expected_of(JANUS)


@pytest.fixture
def emu3():
    return opened(EMU3), expected_of(EMU3)


# --- the numbers


@torch.no_grad()
def test_encoding_is_the_library_s(case):
    model, expected = case
    image = model.network.prepare(expected["pixels"])
    torch.testing.assert_close(image, expected["image"], **close)
    torch.testing.assert_close(model.network.encode(image), expected["prequant"], **close)
    assert torch.equal(model.encode(expected["pixels"]), expected["tokens"])


def test_codes_are_the_library_s(case):
    model, expected = case
    torch.testing.assert_close(model.codebook, expected["codebook"], **close)
    torch.testing.assert_close(model.embed(expected["tokens"]), expected["quantized"], **close)
    assert torch.equal(model.nearest(expected["quantized"]), expected["tokens"])


@torch.no_grad()
@pytest.mark.parametrize("which", [EMU3, JANUS])
def test_decoding_is_the_library_s(which):
    model, expected = opened(which), expected_of(which)
    torch.testing.assert_close(model.network.decode(expected["quantized"]), expected["decoded"], **close)
    torch.testing.assert_close(model.decode(expected["quantized"]), expected["decoded_pixels"], **close)


def test_pictures_of_codes_can_be_differentiated():
    for which in (EMU3, JANUS):
        model, expected = opened(which), expected_of(which)
        embedded = expected["quantized"][:1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.decode(embedded).square().sum(), embedded)
        assert gradient.abs().amax(1).gt(0).all()


def test_half_precision_on_disk_is_widened(case):
    model, _ = case
    assert model.dtype == torch.float32


# --- Chameleon


def test_chameleon_has_no_decoder():
    model, expected = opened(CHAMELEON), expected_of(CHAMELEON)
    assert model.abilities == {"encode"}
    with pytest.raises(ModelError, match="cannot decode"):
        model.decode(expected["quantized"])
    with pytest.raises(ModelError, match="cannot decode"):
        model.network.decode(expected["quantized"])
    torch.testing.assert_close(model.network.post_quant(expected["quantized"]), expected["post_quant"], **close)


def test_chameleon_s_white_is_not_one():
    image = opened(CHAMELEON).network.prepare(torch.ones(1, 3, 2, 2))
    assert image.max().item() == pytest.approx(255 * 0.0078 - 1)  # 0.989


# --- Emu3


@torch.no_grad()
def test_emu3_s_image_is_frame_0_of_a_clip(emu3):
    model, expected = emu3
    official = model.network.model
    clip = official.decode(expected["tokens"][:, None])  # as a film of one latent frame
    assert clip.shape[1] == official.config.temporal_downsample_factor == 4
    torch.testing.assert_close(model.network.decode(expected["quantized"]), clip[:, 0], rtol=0, atol=1e-5)
    assert (clip[:, 3] - clip[:, 0]).abs().max() > 0.01


@torch.no_grad()
def test_emu3_s_own_calls_agree(emu3):
    model, expected = emu3
    official, images = model.network.model, expected["image"]
    found = official.encode(images, image_sizes=torch.tensor([[16, 16], [16, 16]])).image_tokens
    assert torch.equal(torch.stack(list(found)), expected["tokens"])
    cropped = official.encode(images, image_sizes=torch.tensor([[16, 16], [8, 16]])).image_tokens
    assert cropped[1].shape == (4, 8)  # why its encode is not used


@torch.no_grad()
def test_emu3_s_batch_norms_use_what_they_learned(emu3):
    model, expected = emu3
    together = model.network.encode(expected["image"])
    alone = torch.cat([model.network.encode(one[None]) for one in expected["image"]])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    model.network.model.train()
    assert (model.network.encode(expected["image"]) - together).abs().max() > 0.01


# --- Janus


@torch.no_grad()
def test_janus_compares_codes_as_stored_and_decodes_them_at_unit_length(janus):
    model, expected = janus
    network = model.network
    torch.testing.assert_close(network.codes.weight.data, expected["codebook_raw"], **close)
    raw = F.embedding(expected["tokens"], expected["codebook_raw"]).movedim(-1, 1)
    torch.testing.assert_close(raw, expected["encode_quantized"], **close)
    assert (network.decode(raw) - expected["decoded"]).abs().max() > 0.1
    torch.testing.assert_close(model.codebook.norm(dim=1), torch.ones(model.k))


def test_a_janus_that_compares_angles_gets_55_tokens_wrong(janus):
    model, expected = janus
    angles = nearest_rows(F.normalize(expected["prequant"], dim=1), model.codebook)
    assert (angles.tokens != expected["tokens"]).sum() == 55


@torch.no_grad()
def test_janus_decodes_grids_that_the_library_refuses(janus):
    model, expected = janus
    tokens = expected["tokens"][:, :4, :6]
    with pytest.raises(ValueError, match="Expected `image_tokens` to have shape"):
        model.network.model.decode(tokens.flatten(1))
    assert model.decode(model.embed(tokens)).shape == (2, 3, 8, 12)
    assert model.encode(torch.rand(1, 3, 24, 8)).shape == (1, 12, 4)


@torch.no_grad()
def test_janus_own_decoder_agrees(janus):
    model, expected = janus
    found = model.network.model.decode(expected["tokens"].flatten(1))
    torch.testing.assert_close(found, model.network.decode(expected["quantized"]), rtol=0, atol=1e-5)
