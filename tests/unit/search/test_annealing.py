from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.search.annealing import Annealing, picked, temperature_after


def test_it_cools_geometrically():
    settings = Annealing(budget=200, hot=8.0, cold=0.5)
    assert [temperature_after(one, settings) for one in (0, 50, 100, 200)] == pytest.approx([8, 4, 2, 0.5])


def test_swaps_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.1, 0.6, 0.3]).log().expand(4000, 3)
    even = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    shares = picked(weights, even).bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.03, rtol=0)
    assert picked(torch.zeros(1, 3), torch.ones(1)).tolist() == [2]


@pytest.mark.parametrize("wrong", [{"hot": 0.1, "cold": 0.2}, {"cold": 0.0}, {"hot": float("inf")}])
def test_temperatures_that_do_not_cool_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be above 0 and finite, cold at most hot"):
        Annealing(**wrong)


def test_a_gradient_that_is_never_used_is_refused():
    with pytest.raises(ConfigError, match="refresh=0 must be at least 1"):
        Annealing(refresh=0)
