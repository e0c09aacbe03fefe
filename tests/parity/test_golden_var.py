"""VAR's multi-scale VQ-VAE against numbers of the official code."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import split_levels
from vqcortex.adapters.var import phi_of

FOLDER = Path(__file__).parents[1] / "data" / "golden" / "var_vqvae"
FILE = FOLDER / "vae_ch32v64z8.pth"
SCALES = (1, 2, 3, 5, 8)
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return load_model(f"var:{FILE}?scales=1,2,3,5,8")


@pytest.fixture(scope="module")
def embedded(model, golden):
    return model.embed(golden["tokens_flat"][:, None])


def test_encoding_is_the_official_one(model, golden):
    image = model.network.prepare(golden["pixels"])
    assert_close(image, golden["image"], **CLOSE)
    assert_close(model.network.encode(image), golden["prequant"], **CLOSE)
    tokens = model.encode(golden["pixels"])
    assert torch.equal(tokens[:, 0], golden["tokens_flat"])
    for side, grid in zip(SCALES, split_levels(tokens, model.levels), strict=True):
        assert torch.equal(grid, golden[f"tokens_{side}x{side}"])


def test_decoding_is_the_official_one(model, golden, embedded):
    assert_close(model.codebook, golden["codebook"], **CLOSE)
    sums = model.network.sums(embedded)
    assert_close(torch.stack(sums, 1), golden["f_hat_per_scale"], **CLOSE)
    assert_close(sums[-1], golden["quantized"], **CLOSE)
    decoded = model.network.decode(embedded)
    assert_close(decoded, golden["decoded"], **CLOSE)
    assert_close(decoded.clamp(-1, 1), golden["decoded_clamped"], **CLOSE)
    assert_close(model.decode(embedded), golden["decoded_pixels"], **CLOSE)


def test_a_blurred_image_comes_of_the_first_scale_alone(model, golden, embedded):
    first = model.network.decode_latent(model.network.sums(embedded)[0])
    assert_close(first.clamp(-1, 1), golden["decoded_first_scale"], **CLOSE)


def test_the_priors_input_is_the_official_one(model, golden, embedded):
    assert_close(model.network.prior_input(embedded), golden["var_input"], **CLOSE)


def test_levels_are_scales_of_one_codebook(model):
    assert [level.grid for level in model.levels] == [(side, side) for side in SCALES]
    assert {level.codes for level in model.levels} == {(0, 64)}
    assert (model.grid, model.size) == ((1, 103), (16, 16))


def test_what_a_token_adds_is_not_its_row(model, golden, embedded):
    last = split_levels(embedded, model.levels)[-1]
    added = golden["f_hat_per_scale"][:, -1] - golden["f_hat_per_scale"][:, -2]
    assert (added - last).abs().max() > 0.01


def test_gradients_reach_the_codes_of_every_scale(model, embedded):
    codes = embedded.clone().requires_grad_()
    model.network.decode(codes).square().sum().backward()
    assert (codes.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("scales", "wanted"),
    [
        # By hand: four ticks at 1/12, 13/36, 23/36, 11/12; of two equally near the last digit decides, as officially.
        (5, [0, 1, None, 2, 3]),
        (10, [0, 0, None, 1, 1, 2, 2, None, 3, 3]),
    ],
)
def test_scales_share_the_nearest_convolution(scales, wanted):
    found = [phi_of(number, scales, 4) for number in range(scales)]
    ticks = np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
    assert found == [int(np.abs(ticks - number / (scales - 1)).argmin()) for number in range(scales)]
    assert all(one is None or one == here for one, here in zip(wanted, found, strict=True))


def test_codes_may_be_compared_by_angle(golden):
    model = load_model(f"var:{FILE}?scales=1,2,3,5,8&znorm=yes")
    latent, rows = golden["prequant"], golden["codebook"]
    unit = nn.functional.normalize
    seen = unit(latent.mean((2, 3)), dim=1)
    by_angle = (seen @ unit(rows, dim=1).T).argmax(1)
    tokens = model.encode(golden["pixels"])
    assert torch.equal(tokens[:, 0, 0], by_angle)
    assert not torch.equal(tokens[:, 0], golden["tokens_flat"])
    assert_close(model.codebook, rows, **CLOSE)  # rows are used as they are stored


def test_a_live_model_knows_its_scales(model, golden):
    class VQVAE(nn.Module):
        """Has what is read of the official class: the state dict and two settings of the quantizer."""

        quantize = SimpleNamespace(v_patch_nums=SCALES, using_znorm=False)

        def state_dict(self):
            return {key: one.float() for key, one in torch.load(FILE, weights_only=True).items()}

    VQVAE.__qualname__ = "VQVAE"
    live = load_model(VQVAE())
    assert live.levels == model.levels
    assert torch.equal(live.encode(golden["pixels"])[:, 0], golden["tokens_flat"])
