from __future__ import annotations

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from vqcortex.attribution.banzhaf import Banzhaf, masks_of, odd_bits
from vqcortex.errors import ConfigError

IDS = ["a", "b"]


class Pair(nn.Module):
    """Main effects 1, 2, ... of all positions, and 6 for the first two together."""

    def forward(self, embedded):
        x = embedded[:, 0].flatten(1)
        logit = x @ torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype) + 6 * x[:, 0] * x[:, 1]
        return torch.stack([0 * logit, logit], 1)


GIVEN = Pair(), torch.ones(2, 1, 2, 3).double(), torch.tensor([1, 1]), IDS
EXACT = torch.tensor([[4.0, 5.0, 3.0, 4.0, 5.0, 6.0]] * 2).double().view(2, 2, 3)


def test_a_whole_block_of_orthogonal_maskings_is_exact_for_pairs():
    torch.testing.assert_close(Banzhaf(masks=16)(*GIVEN), EXACT)
    assert not torch.allclose(Banzhaf(masks=10)(*GIVEN), EXACT)


@pytest.mark.parametrize("sampling", ["plain", "antithetic", "quasi"])
@pytest.mark.parametrize("masks", [2, 3, 12])
def test_no_way_of_drawing_is_biased(sampling, masks):
    ids = [f"image {i}" for i in range(2000)]
    found = Banzhaf(masks=masks, sampling=sampling)(
        GIVEN[0], torch.ones(2000, 1, 2, 3).double(), torch.ones(2000, dtype=torch.int64), ids
    )
    error = (found.mean(0) - EXACT[0]).abs() / (found.std(0) / 2000**0.5).clamp_min(1e-9)
    assert float(error.max()) < 4.5


def test_orthogonal_maskings_lessen_the_error_before_a_block_is_whole():
    ids = [f"image {i}" for i in range(200)]
    error = {
        sampling: float(
            (
                Banzhaf(masks=12, sampling=sampling)(
                    GIVEN[0], torch.ones(200, 1, 2, 3).double(), torch.ones(200, dtype=torch.int64), ids
                )
                - EXACT[0]
            ).std()
        )
        for sampling in ("plain", "antithetic", "quasi")
    }
    assert error["quasi"] < 0.8 * min(error["plain"], error["antithetic"])


def test_complements_cancel_what_pairs_do():
    class Together(nn.Module):
        """Nothing alone, 6 for the first two together."""

        def forward(self, embedded):
            x = embedded[:, 0].flatten(1) - 0.5
            logit = 6 * x[:, 0] * x[:, 1]
            return torch.stack([0 * logit, logit], 1)

    assert not Banzhaf(masks=12, sampling="antithetic")(Together(), *GIVEN[1:]).any()
    assert Banzhaf(masks=12, sampling="plain")(Together(), *GIVEN[1:]).any()


def test_an_odd_number_of_paired_maskings_is_made_even():
    assert Banzhaf(masks=9, sampling="quasi").passes((3, 3)) == (10, 0)
    assert Banzhaf(masks=9, sampling="plain").passes((3, 3)) == (9, 0)
    assert torch.equal(Banzhaf(masks=9)(*GIVEN), Banzhaf(masks=10)(*GIVEN))


def test_signs_are_those_of_the_hadamard_matrix():
    column = torch.arange(16)
    rows = torch.stack([odd_bits(column & row) for row in range(16)])
    assert torch.equal(1 - 2 * rows.long(), torch.as_tensor(hadamard(16)).long())


def test_a_masking_shows_half_of_the_positions_on_average():
    for sampling in ("plain", "quasi"):
        shown = torch.stack(list(masks_of(512, 49, sampling, torch.Generator().manual_seed(0)))).double()
        assert float(shown.mean()) == pytest.approx(0.5, abs=0.02)


def test_too_few_maskings_are_an_error():
    with pytest.raises(ConfigError, match="masks=1 must be at least 2"):
        Banzhaf(masks=1)
