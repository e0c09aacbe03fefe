from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.evaluation.curves import Curves
from vqcortex.evaluation.metrics.areas import DeletionAUC, InsertionAUC

ONE = Curves(
    arms=("x",), fills=("black",), counts=(1, 3), judges=("j",), image_ids=("a",), positions=4,
    before=torch.tensor([[0.8]]), removed=torch.tensor([0.4, 0.2]).reshape(1, 1, 2, 1, 1),
    kept=torch.tensor([0.5, 0.7]).reshape(1, 1, 2, 1, 1), empty=torch.tensor([[[0.1]]]),
)  # fmt: skip


def test_areas_are_those_worked_out_by_hand():
    assert DeletionAUC()(ONE).item() == pytest.approx((0.6 + 2 * 0.3 + 0.15) / 4)
    assert InsertionAUC()(ONE).item() == pytest.approx((0.3 + 2 * 0.6 + 0.75) / 4)


def test_a_count_of_all_positions_adds_no_area():
    all_four = torch.tensor([0.4, 0.2, 0.1]).reshape(1, 1, 3, 1, 1)
    assert (
        DeletionAUC()(replace(ONE, counts=(1, 3, 4), removed=all_four, kept=None)).item() == DeletionAUC()(ONE).item()
    )


def test_a_judge_that_never_changes_its_mind_gives_its_probability():
    flat = replace(ONE, removed=torch.full((1, 1, 2, 1, 1), 0.8), empty=torch.tensor([[[0.8]]]))
    assert DeletionAUC()(flat).item() == pytest.approx(0.8)


def test_without_kept_positions_there_is_no_insertion():
    with pytest.raises(ConfigError, match="these curves hold no kept positions; measure them with kept=True"):
        InsertionAUC()(replace(ONE, kept=None))
