from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.errors import ConfigError, DataError, ShapeError
from vqcortex.evaluation.metrics.protocol import check_lengths, check_maps, checked_maps, concept_logits

EMBEDDED = torch.zeros(2, 3, 2, 2)


def test_maps_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"maps have shape \(1, 2, 2\) but the mask \(1, 4\)"):
        check_maps(torch.zeros(1, 2, 2), torch.zeros(1, 4), "the mask")
    with pytest.raises(ShapeError, match=r"gave maps of shape \(2, 4\) but \(2, 2, 2\) is needed"):
        checked_maps(torch.zeros(2, 4), EMBEDDED)


def test_nan_is_refused():
    with pytest.raises(ConfigError, match="maps hold NaN"):
        check_maps(torch.full((1, 2, 2), torch.nan), torch.zeros(1, 2, 2), "the mask")
    with pytest.raises(ConfigError, match="hold NaN or infinity"):
        checked_maps(torch.full((2, 2, 2), torch.inf), EMBEDDED)


def test_images_come_with_concepts_and_ids():
    with pytest.raises(ShapeError, match="2 images came with 2 concepts and 1 ids"):
        check_lengths(EMBEDDED, torch.zeros(2), ["a"])
    with pytest.raises(DataError, match="no images"):
        check_lengths(EMBEDDED[:0], torch.zeros(0), [])


def test_a_concept_without_a_logit_is_named():
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ConfigError, match=r"concepts span \[0, 2\] but this extractor has logits \[0, 1\]"):
        concept_logits(extractor, [EMBEDDED], torch.tensor([0, 2]))
