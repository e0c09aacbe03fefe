from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.evaluation.curves import Curves
from vqcortex.evaluation.metrics.drops import Comprehensiveness, Drop, Sufficiency

ONE = Curves(
    arms=("x",), fills=("black",), counts=(1, 3), judges=("j",), image_ids=("a",), positions=4,
    before=torch.tensor([[0.8]]), removed=torch.tensor([0.4, 0.2]).reshape(1, 1, 2, 1, 1),
    kept=torch.tensor([0.5, 0.9]).reshape(1, 1, 2, 1, 1), empty=torch.tensor([[[0.1]]]),
)  # fmt: skip


def test_falls_are_those_worked_out_by_hand():
    assert Comprehensiveness()(ONE).item() == pytest.approx(0.5)
    assert Sufficiency()(ONE).item() == pytest.approx(0.1)
    assert Drop()(ONE).item() == pytest.approx(0.5)
    assert Drop(counts=(3,))(ONE).item() == pytest.approx(0.6)


@pytest.mark.parametrize(("counts", "words"), [((3, 2), "n=2 was not measured; measured: 1, 3"), ((), "empty list")])
def test_a_count_that_was_not_measured_is_named(counts, words):
    with pytest.raises(ConfigError, match=words):
        Drop(counts=counts)(ONE)


def test_without_kept_positions_there_is_no_sufficiency():
    with pytest.raises(ConfigError, match="measure them with kept=True"):
        Sufficiency()(replace(ONE, kept=None))
