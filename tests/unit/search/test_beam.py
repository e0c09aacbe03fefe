from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.errors import ConfigError
from vqcortex.search.beam import Beam
from vqcortex.search.greedy import Greedy

CODEBOOK = torch.eye(3)
TOKENS = torch.zeros(1, 1, 2, dtype=torch.int64)
FREE = torch.ones(1, 2, dtype=torch.bool)


class Trap(nn.Module):
    """Code 1 first helps a little and leads nowhere; two codes 2 are best, one alone is worth less than a code 1."""

    def forward(self, embedded):
        one, two = embedded[:, 1].sum((1, 2)), embedded[:, 2].sum((1, 2))
        worth = one.clamp(max=1) * (1 - two.clamp(max=1)) + 0.4 * two + 3 * (two - 1).relu()
        return torch.stack([worth, 0 * worth], 1)


def search(strategy, **more):
    settings = {"candidates": 4, "together": 1, "path": 0, "record_every": 1000, **more}
    return strategy(**settings)(Trap(), CODEBOOK, TOKENS, FREE, torch.tensor([0]), ["a"]).tokens[0, 0].tolist()


def test_a_wider_beam_leaves_a_trap_that_holds_the_greedy_search():
    assert search(Greedy) in ([[1, 0]], [[0, 1]], [[1, 1]])
    assert search(Beam, width=1) == search(Greedy)
    assert search(Beam, width=4) == [[2, 2]]


def test_a_beam_without_a_grid_is_refused():
    with pytest.raises(ConfigError, match="width=0 must be at least 1"):
        Beam(width=0)


def test_swaps_made_together_are_at_least_one():
    with pytest.raises(ConfigError, match="together=0 must be at least 1"):
        Beam(together=0)
