from __future__ import annotations

import numpy as np
import pytest
import torch

from vqcortex.errors import ShapeError
from vqcortex.pipelines.strips import GAP, strip


def test_a_strip_shows_before_after_difference_and_changed_tokens():
    before = torch.zeros(1, 3, 112, 112)
    after = before.clone()
    after[:, :, :56, :56] = 1
    changed = torch.tensor([[[True, False], [False, False]]])
    pixels = np.asarray(strip(before, after, changed))
    assert pixels.shape == (112 + GAP, 4 * (112 + GAP), 3)
    at = [[pixels[20, start + 20].tolist(), pixels[90, start + 90].tolist()] for start in range(0, 4 * 118, 118)]
    assert at[0] == [[0] * 3, [0] * 3]
    assert at[1] == [[255] * 3, [0] * 3]
    assert at[2] == [[0] * 3, [255] * 3]
    assert at[3] == [[248, 180, 146], [0] * 3]


def test_small_pictures_are_enlarged_and_images_stand_below_each_other():
    pixels = np.asarray(strip(torch.zeros(2, 3, 28, 28), torch.ones(2, 3, 28, 28), torch.ones(2, 7, 7).bool()))
    assert pixels.shape == (2 * (112 + GAP), 4 * (112 + GAP), 3)


def test_numbers_of_images_must_agree():
    with pytest.raises(ShapeError, match="2 images came with 1 edits and 2 marks"):
        strip(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.ones(2, 2, 2).bool())
