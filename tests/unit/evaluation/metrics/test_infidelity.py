from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.errors import ConfigError
from vqcortex.evaluation.metrics.infidelity import Infidelity

IDS = ["a", "b", "c"]
EMBEDDED = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
CONCEPT = torch.tensor([0, 1, 1])
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(18, 2)).requires_grad_(False)
CODE = torch.tensor([0.5, -0.25])


def exact(embedded, concept, image_ids):
    """What a linear extractor loses when a position holds CODE."""
    weight = LINEAR[1].weight[concept].unflatten(1, (2, 3, 3))
    return (weight * (embedded - CODE[:, None, None])).sum(1)


def test_a_map_that_foretells_every_loss_has_none():
    metric = Infidelity(fill=CODE, draws=20)
    assert metric(exact, LINEAR, EMBEDDED, CONCEPT, IDS).max() < 1e-9
    tenfold = metric(lambda *asked: 10 * exact(*asked), LINEAR, EMBEDDED, CONCEPT, IDS)
    assert tenfold.max() < 1e-9  # maps have no scale


def test_a_map_without_scores_or_with_all_reversed_foretells_nothing():
    metric = Infidelity(fill=CODE, draws=20)
    nothing = metric(lambda *asked: 0 * exact(*asked), LINEAR, EMBEDDED, CONCEPT, IDS)
    reversed_ = metric(lambda *asked: -exact(*asked), LINEAR, EMBEDDED, CONCEPT, IDS)
    assert torch.equal(nothing, reversed_)
    assert nothing.min() > 1e-3


def test_a_fill_per_position_and_one_code_for_all_agree():
    everywhere = CODE[:, None, None].expand(2, 3, 3)
    one, other = (Infidelity(fill=fill, draws=5)(wrong, LINEAR, EMBEDDED, CONCEPT, IDS)
                  for fill in (CODE, everywhere))  # fmt: skip
    assert torch.equal(one, other)
    assert not torch.allclose(one, Infidelity(draws=5)(wrong, LINEAR, EMBEDDED, CONCEPT, IDS))


def wrong(embedded, concept, image_ids):
    return embedded[:, 0]


def test_how_many_are_replaced_goes_from_one_to_the_share():
    counts = Infidelity(draws=400, share=0.4).replaced(["a"], (2, 5)).flatten(2).sum(2)
    assert counts.unique().tolist() == [1, 2, 3, 4]


def test_the_size_of_a_step_changes_nothing():
    one, other = (Infidelity(draws=7, at_once=n)(wrong, LINEAR, EMBEDDED, CONCEPT, IDS) for n in (1, 256))
    torch.testing.assert_close(one, other)


def test_the_extractor_is_left_as_it_was():
    extractor = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(18, 2)).train()
    first, second = (Infidelity(draws=5)(wrong, extractor, EMBEDDED, CONCEPT, IDS) for _ in range(2))
    assert torch.equal(first, second)
    assert extractor.training
    assert extractor[2].weight.requires_grad


def test_wrong_settings_are_listed():
    with pytest.raises(ConfigError, match=r"3 settings wrong: draws=1 .*share=0 .*at_once=0"):
        Infidelity(draws=1, share=0, at_once=0)
