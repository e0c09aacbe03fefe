from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.results import Trace
from vqcortex.search.stability import pairwise_jaccard, pairwise_jaccard_cells, search_stability


@pytest.mark.parametrize(
    ("tokens", "codes", "cells"),
    [
        ([[1, 2, 3], [1, 2, 3]], 1.0, 1.0),
        ([[1, 2, 3], [3, 1, 2]], 1.0, 0.0),
        ([[1, 2, 3], [4, 5, 6]], 0.0, 0.0),
        ([[1, 1, 2], [2, 3, 3]], 1 / 3, 0.0),
        ([[1, 2], [1, 3]], 1 / 3, 1 / 3),
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 3 / 5, 3 / 5),
        ([[1], [1], [2]], 1 / 3, 1 / 3),
        ([[7, 7, 7, 7], [7, 7, 7, 8]], 1 / 2, 3 / 5),
    ],
)
def test_agreement_in_closed_form(tokens, codes, cells):
    assert pairwise_jaccard(torch.tensor(tokens)) == pytest.approx(codes)
    assert pairwise_jaccard_cells(torch.tensor(tokens)) == pytest.approx(cells)


def test_agreement_equals_a_loop_over_sets():
    tokens = torch.randint(0, 9, (6, 7), generator=torch.Generator().manual_seed(0))
    pairs = [(one.tolist(), two.tolist()) for i, one in enumerate(tokens) for two in tokens[i + 1 :]]
    codes = [len({*one} & {*two}) / len({*one} | {*two}) for one, two in pairs]
    cells = [
        len({*enumerate(one)} & {*enumerate(two)}) / len({*enumerate(one)} | {*enumerate(two)}) for one, two in pairs
    ]
    assert pairwise_jaccard(tokens) == pytest.approx(sum(codes) / 15)
    assert pairwise_jaccard_cells(tokens) == pytest.approx(sum(cells) / 15)


@pytest.mark.parametrize("shape", [(1, 3), (2, 0)])
def test_one_restart_has_no_stability(shape):
    with pytest.raises(ConfigError, match=rf"{shape[0]} restart\(s\) at {shape[1]} position\(s\)"):
        pairwise_jaccard(torch.zeros(shape, dtype=torch.long))


def test_a_trace_is_judged_at_its_free_positions_only():
    free = torch.tensor([[True, False], [True, False]])
    tokens = torch.tensor([[[[1, 9], [2, 9]], [[1, 9], [3, 9]]], [[[4, 9], [5, 9]], [[5, 9], [4, 9]]]])
    trace = Trace(strategy="x", tokens=tokens, start=tokens[:, 0], free=free, target=torch.tensor([0, 0]))
    codes, cells = search_stability(trace)
    torch.testing.assert_close(codes, torch.tensor([1 / 3, 1.0]))
    torch.testing.assert_close(cells, torch.tensor([1 / 3, 0.0]))
