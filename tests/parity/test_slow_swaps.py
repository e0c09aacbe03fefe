"""Searches by swaps and token statistics again, naively, from their words."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.search.beam import Beam
from vqcortex.search.greedy import Greedy
from vqcortex.search.statistics import count_tokens

TOY = ToyAdapter()
IDS = ["x", "y"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(6 * 16, 8)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        return self.out(self.mix(embedded).tanh().flatten(1))


@pytest.fixture
def extractor() -> nn.Module:
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    tokens = TOY.generate(torch.tensor([0, 3]), IDS, seed=0)
    free = torch.zeros(4, 4, dtype=torch.bool)
    free[0, 2] = free[1:3, 1:3] = True
    return tokens, free, torch.tensor([7, 1])


def value(extractor, grid, target) -> float:
    with torch.no_grad():
        return extractor(TOY.embed(grid[None]))[0, target].item()


def slow_steps(extractor, grid, free, target) -> list[Tensor]:
    """Every grid that one swap away holds, in the order of places and codes."""
    found = []
    for i, j in free.nonzero().tolist():
        for code in range(8):
            if code != grid[i, j]:
                other = grid.clone()
                other[i, j] = code
                found.append(other)
    return found


def slow_greedy(extractor, grid, free, target) -> Tensor:
    while True:
        best = max(slow_steps(extractor, grid, free, target), key=lambda one: value(extractor, one, target))
        if value(extractor, best, target) <= value(extractor, grid, target) + 1e-4:
            return grid
        grid = best


def slow_beam(extractor, grid, free, target, width) -> Tensor:
    beam = [grid]
    while True:
        everyone = {str(one.tolist()): one for one in beam}
        for parent in beam:
            for one in slow_steps(extractor, parent, free, target):
                everyone.setdefault(str(one.tolist()), one)
        new = sorted(everyone.values(), key=lambda one: -value(extractor, one, target))[:width]
        if {str(one.tolist()) for one in new} == {str(one.tolist()) for one in beam}:
            return new[0]
        beam = new


def test_greedy_over_all_candidates_equals_trying_every_swap(extractor, case):
    tokens, free, target = case
    search = Greedy(candidates=1000, together=1, budget=10_000)
    found = search(extractor, TOY.codebook, tokens, free, target, IDS).tokens[:, 0]
    for b in range(2):
        assert torch.equal(found[b], slow_greedy(extractor, tokens[b], free, target[b]))
    assert not torch.equal(found, tokens)


@pytest.mark.parametrize("width", [1, 3])
def test_a_beam_over_all_candidates_equals_keeping_lists(extractor, case, width):
    tokens, free, target = case
    search = Beam(candidates=1000, together=1, budget=20_000, width=width)
    found = search(extractor, TOY.codebook, tokens, free, target, IDS).tokens[:, 0]
    for b in range(2):
        assert torch.equal(found[b], slow_beam(extractor, tokens[b], free, target[b], width))


@pytest.mark.parametrize("settings", [{}, {"together": 1, "candidates": 3}, {"path": 0, "restarts": 3}])
def test_a_beam_of_one_is_the_greedy_search(extractor, case, settings):
    tokens, free, target = case
    one, other = (
        strategy(extractor, TOY.codebook, tokens, free, target, IDS)
        for strategy in (Beam(width=1, **settings), Greedy(**settings))
    )
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.probability, other.probability)


def slow_plausibility(grid, counts, across, down, smoothing) -> float:
    total, pairs = sum(counts.values()), {True: sum(across.values()), False: sum(down.values())}
    height, width = grid.shape
    worth = 0.0
    for i in range(height):
        for j in range(width):
            code = int(grid[i, j])
            worth += math.log((counts[code] + smoothing) / (total + 8 * smoothing))
            for is_across, (k, m) in ((True, (i, j + 1)), (False, (i + 1, j))):
                if k < height and m < width:
                    other = int(grid[k, m])
                    seen = (across if is_across else down)[code, other]
                    chance = pairs[is_across] * counts[code] / total * counts[other] / total
                    worth += math.log((seen + smoothing) / (chance + smoothing))
    return worth


@pytest.fixture
def counted() -> tuple[Tensor, Counter, Counter, Counter]:
    tokens = TOY.generate(torch.tensor([0, 1, 2]).repeat(5), [str(one) for one in range(15)], seed=1)
    counts, across, down = Counter(), Counter(), Counter()
    for grid in tokens.tolist():
        for i in range(4):
            for j in range(4):
                counts[grid[i][j]] += 1
                if j < 3:
                    across[grid[i][j], grid[i][j + 1]] += 1
                if i < 3:
                    down[grid[i][j], grid[i + 1][j]] += 1
    return tokens, counts, across, down


@pytest.mark.parametrize("smoothing", [1.0, 0.3])
def test_plausibility_equals_a_loop_over_positions(counted, case, smoothing):
    tokens, counts, across, down = counted
    found = count_tokens(tokens, 8, smoothing=smoothing)(case[0], case[2])
    slow = [slow_plausibility(grid, counts, across, down, smoothing) for grid in case[0]]
    torch.testing.assert_close(found, torch.tensor(slow), atol=1e-4, rtol=1e-5)


def test_swaps_equal_the_difference_of_two_grids(counted, case):
    tokens, free, target = case
    statistics = count_tokens(counted[0], 8)
    places = free.nonzero(as_tuple=True)
    codes = torch.tensor([1, 4, 7])
    change = statistics.swaps(tokens, target, places, codes)
    for n, (i, j) in enumerate(free.nonzero().tolist()):
        for a, code in enumerate(codes.tolist()):
            other = tokens.clone()
            other[:, i, j] = code
            expected = statistics(other, target) - statistics(tokens, target)
            torch.testing.assert_close(change[:, n, a], expected, atol=1e-4, rtol=1e-4)
