from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.greedy import GreedyRemoval, lowest_first
from vqcortex.attribution.occlusion import Occlusion
from vqcortex.errors import ConfigError


class Either(nn.Module):
    """The first two positions stand in for each other (the larger counts, 5); the third adds 2, the fourth 1."""

    def forward(self, embedded):
        x = embedded[:, 0].flatten(1)
        logit = 5 * torch.maximum(x[:, 0], x[:, 1]) + 2 * x[:, 2] + x[:, 3]
        return torch.stack([0 * logit, logit], 1)


ONES = torch.ones(1, 1, 2, 2)
CASE = Either(), ONES, torch.tensor([1]), ["a"]


def test_positions_go_in_the_order_in_which_their_loss_hurts_what_is_left():
    assert GreedyRemoval()(*CASE).flatten().tolist() == [2.0, 1.0, 4.0, 3.0]


def test_it_finds_what_occlusion_of_single_positions_cannot():
    assert Occlusion()(*CASE).flatten().tolist()[:2] == [0.0, 0.0]
    strong = ONES.clone()
    strong[0, 0, 0] = 3
    scores = GreedyRemoval()(Either(), strong, torch.tensor([1]), ["a"]).flatten()
    assert Occlusion()(Either(), strong, *CASE[2:]).flatten().tolist() == [0.0, 0.0, 2.0, 1.0]
    assert scores.tolist() == [2.0, 1.0, 4.0, 3.0]


def test_after_the_last_removal_the_others_follow_as_they_stood():
    scores = GreedyRemoval(removals=1)(*CASE).flatten()
    assert scores.tolist() == [2.0, 1.0, 4.0, 3.0]
    assert GreedyRemoval(removals=1).passes((2, 2)) == (4, 0)
    assert GreedyRemoval(removals=3).passes((7, 7)) == (49 + 48 + 47, 0)
    assert GreedyRemoval().passes((7, 7)) == GreedyRemoval(removals=49).passes((7, 7)) == (49 * 25 - 1, 0)


def test_values_that_differ_by_rounding_keep_reading_order():
    logits = torch.tensor([[1.0, 0.5 + 1e-7, 0.5, 1.0 - 1e-7, 0.4]])
    assert lowest_first(logits).tolist() == [[4, 1, 2, 0, 3]]


def test_one_position_scores_one():
    assert GreedyRemoval()(nn.Flatten(), torch.ones(1, 2, 1, 1), torch.tensor([1]), ["a"]).tolist() == [[[1.0]]]


def test_more_removals_than_positions_are_an_error():
    with pytest.raises(ConfigError, match="removals=5 must be at most 4, the positions"):
        GreedyRemoval(removals=5)(*CASE)


def test_no_removals_are_an_error():
    with pytest.raises(ConfigError, match="removals=0 must be at least 1, or None for all"):
        GreedyRemoval(removals=0)
