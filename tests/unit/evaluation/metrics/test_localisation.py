from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.evaluation.metrics.localisation import LocalisationAUROC, LocalisationPrecision

SCORES = torch.tensor([[[4.0, 3.0, 2.0, 1.0]], [[1.0, 1.0, 1.0, 0.0]]])
RELEVANT = torch.tensor([[[True, False, True, False]], [[False, True, False, False]]])


def test_figures_are_those_worked_out_by_hand():
    assert LocalisationAUROC()(SCORES, RELEVANT).tolist() == pytest.approx([3 / 4, 2 / 3])  # a tie counts half
    assert LocalisationPrecision()(SCORES, RELEVANT).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("metric", [LocalisationAUROC(), LocalisationPrecision()])
@pytest.mark.parametrize(("value", "count"), [(False, 0), (True, 4)])
def test_a_mask_without_two_sides_is_refused(metric, value, count):
    mask = RELEVANT.clone()
    mask[1] = value
    with pytest.raises(ConfigError, match=rf"marks {count} of 4 positions of image number 1 \(1 such images\)"):
        metric(SCORES, mask)
