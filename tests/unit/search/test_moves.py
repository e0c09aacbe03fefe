from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.search.greedy import Greedy
from vqcortex.search.moves import Grids, Moves, held, start_codes, swapped
from vqcortex.search.problem import Problem, pose

CODEBOOK = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
TOKENS = torch.tensor([[[0, 1, 2], [1, 1, 1]], [[3, 2, 1], [0, 0, 0]]])
FREE = torch.tensor([[True, False, True], [False, True, False]])
TARGET = torch.tensor([1, 0])


def problem(**more) -> Problem:
    return pose(CODEBOOK, TOKENS, FREE, TARGET, ["a", "b"], **more)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).requires_grad_(False)


@pytest.mark.parametrize("path", [0, 1, 3])
@pytest.mark.parametrize("objective", ["logit", "margin"])
def test_estimates_of_a_linear_extractor_are_exact(net, path, objective):
    moves = Moves(Greedy(path=path, objective=objective, batch=1), net, problem())
    start = moves.start()
    estimated = moves.estimated(start.choice[:, 0])
    for place in range(3):
        for code in range(4):
            at, which = torch.full((2, 1), place), torch.full((2, 1), code)
            found = moves.measured(swapped(start.choice[:, 0], at, which))
            torch.testing.assert_close(estimated[:, place, code], (found.value - start.value)[:, 0])


def test_the_way_to_the_mean_code_sees_what_the_slope_at_a_flat_place_does_not():
    class Step(nn.Module):
        """Flat where the grid stands; code 3 is far away and worth much."""

        def forward(self, embedded):
            worth = (embedded[:, 0] - 2).relu().sum((1, 2))
            return torch.stack([worth, 0 * worth], 1)

    rows = pose(CODEBOOK * 3, TOKENS[:1] * 0, FREE, TARGET[1:], ["a"])
    choice = torch.zeros(1, 3, dtype=torch.int64)
    flat, along = (Moves(Greedy(path=path), Step(), rows).estimated(choice) for path in (0, 2))
    assert not flat.any()
    assert along[0].argmax(1).tolist() == [3, 3, 3]


def test_the_passes_of_an_estimate_are_counted(net):
    assert Moves(Greedy(path=0), net, problem()).gradients == 2
    # The free positions (0, 0), (0, 2), (1, 1) have two colours: the first two differ in neither row nor column parity.
    assert Moves(Greedy(path=3), net, problem()).gradients == 2 * 3 * 2


def test_promising_swaps_come_best_first_and_never_name_what_stands_there(net):
    moves = Moves(Greedy(candidates=100), net, problem())
    choice = moves.start().choice[:, 0]
    assert moves.most == 9
    place, code, estimate = moves.promising(choice, moves.most)
    assert (estimate.diff(dim=1) <= 1e-3 * estimate.abs().amax()).all()
    assert not (choice.gather(1, place) == code).any()
    assert all(len({*zip(p, c, strict=True)}) == 9 for p, c in zip(place.tolist(), code.tolist(), strict=True))


def test_no_position_has_more_than_twice_its_share_while_there_are_others():
    class First(nn.Module):
        def forward(self, embedded):
            worth = 100 * embedded[:, 0, 0, 0] + embedded.sum((1, 2, 3))
            return torch.stack([worth, worth], 1)

    place, _, _ = Moves(Greedy(), First(), problem()).promising(torch.zeros(2, 3, dtype=torch.int64), 3)
    assert place.eq(0).sum(1).tolist() == [2, 2]


def test_equal_swaps_are_ordered_by_place_and_code():
    class Same(nn.Module):
        def forward(self, embedded):
            return embedded.sum((2, 3))

    place, code, _ = Moves(Greedy(), Same(), problem()).promising(torch.zeros(2, 3, dtype=torch.int64), 4)
    assert place.tolist() == [[0, 1, 2, 0]] * 2
    assert code.tolist() == [[3, 3, 3, 2], [3, 3, 3, 1]]


def test_restarts_begin_at_the_start_and_then_at_shaken_ones():
    rows = problem(restarts=3)
    begun = start_codes(Greedy(shake=1.0), rows)
    assert torch.equal(begun[::3], rows.free_tokens()[::3])
    assert torch.equal(start_codes(Greedy(shake=0.0), rows), rows.free_tokens())
    alone = torch.cat([start_codes(Greedy(shake=1.0), part) for part in rows.parts(1)])
    assert torch.equal(alone, begun)
    assert not torch.equal(start_codes(Greedy(shake=1.0, seed=1), rows), begun)


def test_a_search_from_the_mean_begins_at_the_live_code_nearest_to_it():
    assert start_codes(Greedy(start="mean"), problem()).tolist() == [[1, 1, 1]] * 2


def test_grids_are_taken_put_picked_and_joined():
    grids = Grids(torch.arange(12).view(2, 2, 3), torch.tensor([[1.0, 2], [3, 4]]), torch.zeros(2, 2))
    one = grids.take(torch.tensor([1]))
    assert one.value.tolist() == [[3, 4]]
    assert grids.put(torch.tensor([0]), one).value.tolist() == [[3, 4], [3, 4]]
    assert grids.pick(torch.tensor([[1], [0]])).choice.tolist() == [[[3, 4, 5]], [[6, 7, 8]]]
    assert one.beside(one).value.tolist() == [[3, 4, 3, 4]]


def test_what_stood_at_a_number_of_passes_is_what_was_measured_last_before_it():
    chances = [torch.tensor([one]) for one in (0.1, 0.2, 0.3)]
    assert held((0, 10, 20, 30), [1, 10, 25], chances)[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.2, 0.3])
