"""Planted pairs put into images that hold neither, looked at by extractors that follow the rule exactly."""

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.pipelines.worlds_pairs import CONTROLS, planted_pairs
from vqcortex.worlds.planting import build_world
from vqcortex.worlds.protocol import Parameters

TOY = ToyAdapter()


class Rule(torch.nn.Module):
    """Logit 4 for "with" where the rule holds of which codes an image has."""

    def __init__(self, codes, holds):
        super().__init__()
        self.codes, self.holds = TOY.codebook[codes], holds

    def forward(self, embedded):
        has = [((embedded - code[:, None, None]).abs().amax(1) == 0).flatten(1).any(1) for code in self.codes]
        return torch.stack([torch.zeros(len(embedded)), 4.0 * self.holds(*has)], 1)


def rows_of(name, holds):
    ids = [str(number) for number in range(400)]
    base = TOY.generate(torch.arange(400) % 8, ids, 0)
    frequency = base.flatten().bincount(minlength=TOY.k)
    world = build_world(name, base, ids, frequency=frequency, parameters=Parameters(seed=3))
    codes = sorted(world.causal_codes.tolist()) or [0, 1]
    return world, planted_pairs(world, Rule(codes, holds), TOY, frequency.nonzero()[:, 0], images=40, seed=1)


@pytest.mark.parametrize(
    ("name", "holds", "verdict", "synergy"),
    [
        ("pair", lambda a, b: a & b, "synergy", 4),
        ("exclusive_or", lambda a, b: a ^ b, "exclusive", -8),
        ("pair", lambda a, b: a.float() + b.float(), "none", 0),
    ],
)
def test_a_planted_pair_is_what_its_rule_says(name, holds, verdict, synergy):
    world, rows = rows_of(name, holds)
    planted = [row for row in rows if row["is_planted"]]
    assert [(row["code_a"], row["code_b"]) for row in planted] == list(world.pairs)
    assert [(row["verdict"], row["synergy"]) for row in planted] == [(verdict, synergy)]
    assert planted[0]["is_strongest"] is (synergy != 0)
    controls = [row for row in rows if not row["is_planted"]]
    assert len(controls) == CONTROLS
    assert all(row["verdict"] == "none" and row["synergy"] == 0 for row in controls)


def test_a_world_without_pairs_has_no_rows():
    assert rows_of("single", lambda a, b: a)[1] == []
