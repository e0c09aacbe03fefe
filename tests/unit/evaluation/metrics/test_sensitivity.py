from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.errors import ConfigError
from vqcortex.evaluation.metrics.sensitivity import MaxSensitivity

IDS = ["a", "b", "c"]
EMBEDDED = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
CONCEPT = torch.tensor([0, 1, 1])
IDLE = nn.Identity()


def ask(score, **settings):
    return MaxSensitivity(**settings)(score, IDLE, EMBEDDED, CONCEPT, IDS)


def test_a_map_that_ignores_the_image_does_not_move():
    assert ask(lambda e, c, i: torch.ones(3, 3, 3)).tolist() == [0.0] * 3


def test_a_map_that_is_the_image_moves_by_the_radius():
    moved = ask(lambda e, c, i: e[:, 0], radius=0.1, draws=50)
    flat = EMBEDDED.flatten(1)
    most = 0.1 * (flat.amax(1) - flat.amin(1)) * 9**0.5 / EMBEDDED[:, 0].flatten(1).norm(dim=1)
    assert (moved < most).all()
    assert (moved > most / 3).all()


def test_the_scale_of_a_map_does_not_matter_and_an_empty_one_is_no_division_by_zero():
    one, ten = (ask(lambda e, c, i, scale=scale: scale * e[:, 0]) for scale in (1, 10))
    torch.testing.assert_close(one, ten)
    assert ask(lambda e, c, i: 0 * e[:, 0]).tolist() == [0.0] * 3


def test_perturbations_stay_within_the_radius_and_differ_between_draws():
    metric = MaxSensitivity(radius=0.1)
    one, two = (metric.perturbation(EMBEDDED, IDS, draw).flatten(1) for draw in (0, 1))
    reach = 0.1 * (EMBEDDED.flatten(1).amax(1) - EMBEDDED.flatten(1).amin(1))
    assert (one.abs().amax(1) <= reach).all()
    assert not torch.equal(one, two)


def test_wrong_settings_are_listed():
    with pytest.raises(ConfigError, match=r"2 settings wrong: radius=0 .*draws=0"):
        MaxSensitivity(radius=0, draws=0)
