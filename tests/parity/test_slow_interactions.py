"""Interactions again, naively, from their definitions."""

from __future__ import annotations

from itertools import combinations, permutations
from math import factorial

import pytest
import torch
from torch import nn

from vqcortex.attribution.baselines import DrawnCodes
from vqcortex.attribution.insertion import insertion_synergy
from vqcortex.attribution.interactions import group_effect, measure_together, pairs_of, positions_of, synergy

CODES = torch.linspace(-2, 2, 30).reshape(6, 5).sin().double()
IDS = ["n01/1", "n01/2"]
CONCEPT = [2, 0]
PLAYERS = (4, 1, 2, 0)
NEAR = {"abs": 1e-9}


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(5, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)).double().requires_grad_(False)
    tokens = torch.randint(6, (2, 3, 4))
    tokens[1][tokens[1] == 2] = 5  # the second image lacks a player
    return net, tokens, CODES[tokens].permute(0, 3, 1, 2)


def fills(kind, row):
    if kind == "code":
        return [CODES[3].expand(3, 4, 5)]
    drawn = DrawnCodes(codebook=CODES, frequency=torch.arange(6.0), draws=2)
    return [CODES[drawn.tokens(draw, (3, 4), IDS)[row]] for draw in range(2)]


def slow_value(net, tokens, row, present, kind):
    """The logit when the positions of absent players hold the fill, one grid at a time."""
    found = []
    for fill in fills(kind, row):
        grid = torch.empty(5, 3, 4, dtype=torch.float64)
        for i in range(3):
            for j in range(4):
                code = int(tokens[row, i, j])
                is_hidden = code in PLAYERS and code not in present
                grid[:, i, j] = fill[i, j] if is_hidden else CODES[code]
        found.append(float(net(grid[None])[0, CONCEPT[row]]))
    return sum(found) / len(found)


@pytest.mark.parametrize("kind", ["code", "drawn"])
@pytest.mark.parametrize("row", [0, 1])
def test_every_index_is_its_definition(case, kind, row):
    net, tokens, embedded = case
    baseline = CODES[3] if kind == "code" else DrawnCodes(codebook=CODES, frequency=torch.arange(6.0), draws=2)
    players = positions_of(tokens, PLAYERS, 6)
    given = (net, embedded, torch.tensor(CONCEPT), IDS, players)
    found = measure_together(*given, baseline=baseline)
    value = {
        frozenset(some): slow_value(net, tokens, row, some, kind) for n in range(5) for some in combinations(PLAYERS, n)
    }
    # Shapley values: the mean over all orders of what a player adds to those before it.
    orders = list(permutations(PLAYERS))
    for place, player in enumerate(PLAYERS):
        gains = [
            value[frozenset(order[: order.index(player) + 1])] - value[frozenset(order[: order.index(player)])]
            for order in orders
        ]
        assert float(found.shapley[row, place]) == pytest.approx(sum(gains) / len(orders), **NEAR)
        assert float(found.alone[row, place]) == pytest.approx(value[frozenset([player])] - value[frozenset()], **NEAR)
    for number, (a, b) in enumerate(pairs_of(4)):
        i, j = PLAYERS[a], PLAYERS[b]
        others = [one for one in PLAYERS if one not in (i, j)]
        second = {
            s: value[s | {i, j}] - value[s | {i}] - value[s | {j}] + value[s]
            for n in range(3)
            for s in map(frozenset, combinations(others, n))
        }
        # Interaction index: sum over contexts of (m - s - 2)! s! / (m - 1)! times the second difference.
        index = sum(factorial(2 - len(s)) * factorial(len(s)) / factorial(3) * one for s, one in second.items())
        assert float(found.interaction[row, number]) == pytest.approx(index, **NEAR)
        assert float(found.banzhaf[row, number]) == pytest.approx(sum(second.values()) / 4, **NEAR)
        assert float(synergy(found.pairs)[row, number]) == pytest.approx(second[frozenset(others)], **NEAR)
    everything = value[frozenset(PLAYERS)] - value[frozenset()]
    singles = sum(value[frozenset([one])] - value[frozenset()] for one in PLAYERS)
    assert float(found.joint[row]) == pytest.approx(everything, **NEAR)
    effect = group_effect(*given, baseline=baseline)
    assert effect[row].tolist() == pytest.approx([everything, singles], **NEAR)


def test_insertion_is_its_formula(case):
    net, _, embedded = case
    at_a, at_b = torch.zeros(3, 4).bool(), torch.zeros(3, 4).bool()
    at_a[0, 1] = at_a[2, 2] = at_b[1, 1] = True
    found = insertion_synergy(net, embedded, torch.tensor([1, 1]), IDS, CODES[0], CODES[1], at_a, at_b)
    for row in range(2):
        logit = {}
        for put in ("", "a", "b", "ab"):
            grid = embedded[row].clone()
            for one, at, code in (("a", at_a, 0), ("b", at_b, 1)):
                for i, j in at.nonzero().tolist() if one in put else ():
                    grid[:, i, j] = CODES[code]
            logit[put] = float(net(grid[None])[0, 1])
        assert float(found[row]) == pytest.approx(logit["ab"] - logit["a"] - logit["b"] + logit[""], **NEAR)


def test_the_shapley_index_is_that_of_shapiq(case):
    shapiq = pytest.importorskip("shapiq")
    net, tokens, embedded = case
    players = positions_of(tokens, PLAYERS, 6)
    found = measure_together(net, embedded, torch.tensor(CONCEPT), IDS, players, baseline=CODES[3])

    def game(coalitions):
        return torch.tensor(
            [
                slow_value(net, tokens, 0, [one for one, is_in in zip(PLAYERS, row, strict=True) if is_in], "code")
                for row in coalitions
            ]
        ).numpy()

    index = shapiq.ExactComputer(n_players=4, game=game)("SII", order=2)
    for number, pair in enumerate(pairs_of(4)):
        assert float(found.interaction[0, number]) == pytest.approx(float(index[pair]), abs=1e-6)
