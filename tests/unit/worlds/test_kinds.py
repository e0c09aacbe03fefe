"""The rules of worlds, and which codes they let stand."""

import pytest
import torch

from vqcortex.seeds import generator_for
from vqcortex.worlds import WORLDS

EVERY = torch.cartesian_prod(torch.tensor([False, True]), torch.tensor([False, True]))  # ff ft tf tt


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("any_of", [0, 1, 1, 1]), ("shortcut", [0, 1, 1, 1]), ("pair", [0, 0, 0, 1]), ("exclusive_or", [0, 1, 1, 0]),
        ("null", [0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_the_rule_of_two_codes(name, said):
    assert WORLDS[name].holds(EVERY).int().tolist() == said


@pytest.mark.parametrize(
    ("name", "wanted", "seen"),
    [
        ("single", True, {(1,)}), ("single", False, {(0,)}),
        ("any_of", True, {(0, 1), (1, 0)}), ("any_of", False, {(0, 0)}),
        ("pair", True, {(1, 1)}), ("pair", False, {(0, 0), (0, 1), (1, 0)}),
        ("exclusive_or", True, {(0, 1), (1, 0)}), ("exclusive_or", False, {(0, 0), (1, 1)}),
        ("null", True, {()}), ("null", False, {()}),
    ],
)  # fmt: skip
def test_every_way_to_meet_or_miss_a_rule_is_drawn(name, wanted, seen):
    kind = WORLDS[name]
    m = 2 if kind.causal is None else kind.causal
    drawn = {tuple(map(int, kind.present(wanted, m, generator_for(0, number)))) for number in range(40)}
    assert drawn == seen
