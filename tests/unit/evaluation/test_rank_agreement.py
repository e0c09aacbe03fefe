import pytest
import torch

from vqcortex.errors import DataError
from vqcortex.evaluation.rank_agreement import rank_correlation

RISING = torch.arange(6.0).view(1, 2, 3)


def test_the_order_counts_and_nothing_else():
    assert rank_correlation(RISING, RISING.exp()).rho.tolist() == [1.0]
    assert rank_correlation(RISING, -RISING).rho.tolist() == [-1.0]


def test_equal_values_share_their_rank():
    tied = torch.tensor([[[0.0, 0.0, 1.0, 1.0, 2.0, 2.0]]]).view(1, 2, 3)
    assert float(rank_correlation(tied, RISING).rho) == pytest.approx(16 / (16 * 17.5) ** 0.5)


def test_a_constant_map_has_no_order_and_gives_no_nan():
    found = rank_correlation(torch.cat([RISING, RISING]), torch.cat([torch.full_like(RISING, 0.3), RISING]))
    assert found.is_flat.tolist() == [True, False]
    assert found.rho.tolist() == [0.0, 1.0]


def test_what_is_left_of_rounding_orders_nothing():
    assert rank_correlation(RISING, 1 + 1e-8 * RISING.double()).is_flat.all()
    assert not rank_correlation(RISING, 1e-8 * RISING.double()).is_flat.any()


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN or infinity, which has no rank"):
        rank_correlation(RISING, RISING / 0)
