"""min-dalle's detokenizer against the numbers of its official code."""

import pytest
import torch
from parity.golden import DATA
from safetensors.torch import load_file
from torch import nn

from vqcortex.adapters import load_model
from vqcortex.errors import ModelError

FOLDER = DATA / "min_dalle"
EXPECTED = load_file(FOLDER / "expected.safetensors")
ATOL = 1e-4
ATOL_255 = 2e-3  # of the official pixels, which go from 0 to 255


@pytest.fixture(scope="module")
def model():
    return load_model(f"{FOLDER}?size=8")


def close(found, name, atol=ATOL):
    torch.testing.assert_close(found, EXPECTED[name], rtol=0, atol=atol)


@torch.no_grad()
def official(model, tokens):
    """Pictures as min-dalle gives them: channels last, 0 to 255."""
    return 255 * model.decode(model.embed(tokens)).permute(0, 2, 3, 1)


@torch.no_grad()
def test_every_tensor_is_that_of_the_official_code(model):
    close(model.codebook, "codebook")
    embedded = model.embed(EXPECTED["tokens"])
    close(embedded, "quantized")
    close(model.network.decode(embedded), "decoded")
    close(model.decode(embedded), "decoded_pixels")
    close(official(model, EXPECTED["tokens"]), "official_0_255", ATOL_255)


def test_the_family_is_found_without_a_name(model):
    assert (model.family, model.k, model.d, model.grid) == ("min-dalle", 64, 8, (4, 4))
    for path in (FOLDER / "vqgan", FOLDER / "vqgan" / "detoker.pt"):
        assert load_model(path).identity == load_model(FOLDER).identity


def test_it_has_no_encoder(model):
    assert model.abilities == {"decode"}
    with pytest.raises(ModelError, match="cannot encode, its files hold no such half; it can: decode"):
        model.encode(torch.zeros(1, 3, 8, 8))


def test_the_mosaic_is_laid_out_column_by_column(model):
    pictures = official(model, EXPECTED["mosaic_tokens"].view(4, 4, 4))
    columns = [torch.cat(tuple(pictures[2 * column : 2 * column + 2]), 0) for column in range(2)]
    close(torch.cat(columns, 1), "mosaic_0_255", ATOL_255)
    rows = [torch.cat(tuple(pictures[2 * row : 2 * row + 2]), 1) for row in range(2)]
    assert (torch.cat(rows, 0) - EXPECTED["mosaic_0_255"]).abs().max() > 1


def test_a_seamless_mosaic_is_one_picture_of_all_tokens(model):
    grids = EXPECTED["mosaic_tokens"].view(4, 4, 4)
    columns = [torch.cat((grids[2 * column], grids[2 * column + 1]), 0) for column in range(2)]
    close(official(model, torch.cat(columns, 1)[None])[0], "seamless_0_255", ATOL_255)
    assert (EXPECTED["mosaic_0_255"] - EXPECTED["seamless_0_255"]).abs().max() > 1


def test_what_comes_out_is_not_spread_from_minus_one(model):
    wrong = ((EXPECTED["decoded"] + 1) / 2).clamp(0, 1)
    assert (wrong - EXPECTED["decoded_pixels"]).abs().max() > 100 * ATOL


def test_every_normalisation_has_the_epsilon_of_the_port(model):
    # Too small a difference for the expected numbers to show.
    norms = [one for one in model.module.modules() if isinstance(one, nn.GroupNorm)]
    assert len(norms) == 21
    assert {one.eps for one in norms} == {1e-5}
