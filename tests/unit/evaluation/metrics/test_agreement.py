from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.evaluation.metrics.agreement import RankAgreement, TopOverlap, agreement_table, mean_ranks

UP = torch.arange(10.0).reshape(1, 2, 5)


def test_ranks_share_what_is_equal():
    assert mean_ranks(torch.tensor([[[3.0, 1.0, 3.0, -2.0]]])).tolist() == [[2.5, 1.0, 2.5, 0.0]]


@pytest.mark.parametrize(("second", "value"), [(UP.exp(), 1.0), (-UP, -1.0), (torch.zeros_like(UP), 0.0)])
def test_order_alone_decides_rank_agreement(second, value):
    assert RankAgreement()(UP, second).item() == pytest.approx(value)


@pytest.mark.parametrize(("share", "value"), [(0.3, 1 / 5), (0.01, 0.0), (1.0, 1.0)])
def test_overlap_of_the_top_is_a_share_of_either(share, value):
    other = torch.tensor([0, 0, 0, 0, 0, 4, 3, 2, 1, 0.0]).reshape(1, 2, 5)  # best three: 5 6 7; of UP: 7 8 9
    assert TopOverlap(share=share)(UP, other).item() == pytest.approx(value)


@pytest.mark.parametrize("share", [0, 1.1])
def test_the_share_lies_between_none_and_all(share):
    with pytest.raises(ConfigError, match=f"share={share} must be above 0 and at most 1"):
        TopOverlap(share=share)


def test_the_table_holds_every_pair_both_ways():
    maps = {"up": UP, "down": -UP, "flat": torch.zeros_like(UP)}
    table = agreement_table(maps)
    assert table.names == ("up", "down", "flat")
    torch.testing.assert_close(table.mean, torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0]]))
    assert table.values.shape == (3, 3, 1)
    assert agreement_table(maps, TopOverlap(share=0.5)).mean[0].tolist() == [1.0, 0.0, 0.0]


def test_a_table_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="there is no map to measure"):
        agreement_table({})
