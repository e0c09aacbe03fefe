from __future__ import annotations

import torch
from torch import nn

from vqcortex.search.greedy import Greedy

CODEBOOK = torch.tensor([[0.0], [1.0], [2.0]])
TOKENS = torch.zeros(1, 3, 3, dtype=torch.int64)
FREE = torch.ones(3, 3, dtype=torch.bool)


class Sum(nn.Module):
    def forward(self, embedded):
        worth = embedded.sum((1, 2, 3))
        return torch.stack([worth, -worth], 1)


def run(**more):
    search = Greedy(**{"path": 0, "candidates": 9, "record_every": 1, **more})
    return search(Sum(), CODEBOOK, TOKENS, FREE, torch.tensor([0]), ["a"])


def changed(passes: int, **more) -> int:
    return int((run(budget=passes, **more).tokens[0, 0] == 2).sum())


def test_one_round_makes_one_swap_or_several_that_do_not_touch():
    assert changed(1 + 2 + 9, together=1) == 1
    assert changed(1 + 2 + 9 + 1, together=3) == 3
    assert changed(1 + 2 + 9 + 1, together=9) == 5  # the corners and the middle: no two of them touch


def test_it_ends_where_nothing_gets_better():
    trace = run(budget=10_000, together=1, record_every=10)
    assert (trace.tokens == 2).all()
    assert trace.probability[-1].item() == trace.probability[20].item()


def test_with_one_code_there_is_nothing_to_do():
    found = Greedy(alive=torch.tensor([True, False, False]))(
        Sum(), CODEBOOK, TOKENS + 1, FREE, torch.tensor([0]), ["a"]
    )
    assert not found.tokens.any()
