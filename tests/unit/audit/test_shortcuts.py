"""Enrichment, objects and counterfactuals, on cases whose answer is plain."""

import pytest
import torch

from vqcortex.audit.shortcuts import change_without, gaps, measure_enrichment, outside_object
from vqcortex.errors import DataError, ShapeError


def test_only_the_code_of_one_concept_is_enriched_there():
    holding = torch.tensor([[90, 50, 0], [5, 50, 0]])
    found = measure_enrichment(holding, torch.tensor([100, 100]))
    assert found.q[0, 0] < 1e-20
    assert found.lift[0, 0] > 10
    assert (found.q[0, 1], found.q[0, 2], found.q[1, 0]) == (pytest.approx(1, abs=0.5), 1, 1)
    assert (found.share[0, 0], found.elsewhere[0, 0]) == (0.9, 0.05)


def test_a_concept_without_images_is_enriched_in_nothing():
    found = measure_enrichment(torch.tensor([[3], [0], [1]]), torch.tensor([10, 0, 10]))
    assert found.q[1, 0] == 1
    assert found.share[1, 0] == 0
    with pytest.raises(DataError, match=r"1 concept\(s\) have images"):
        measure_enrichment(torch.tensor([[3], [0]]), torch.tensor([10, 0]))


def test_a_patch_in_the_corner_is_no_object_and_the_object_is():
    pixels = torch.zeros(1, 3, 24, 24)
    pixels[:, :, 8:20, 4:20] = 0.8
    pixels[:, :, 1:4, 20:23] = 1.0
    outside, plain = outside_object(pixels, (6, 6))
    assert plain.all()
    assert outside[0, 0, 5]
    assert not outside[0, 3, 2]


def test_a_busy_background_gives_no_answer():
    pixels = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    pixels[:, :, :, ::2] = 1.0
    pixels[:, :, ::2, :] = 0.0
    assert not outside_object(pixels, (6, 6))[1].any()


def test_an_empty_image_is_all_outside():
    outside, plain = outside_object(torch.zeros(2, 3, 8, 8), (2, 2))
    assert outside.all()
    assert plain.all()
    with pytest.raises(ShapeError, match="smaller than the 9x2 grid"):
        outside_object(torch.zeros(1, 3, 8, 8), (9, 2))


def test_a_change_is_what_is_said_after_less_what_is_said_before():
    def ask(embedded):
        total = embedded.flatten(1).sum(1)
        return torch.stack([total, 0 * total], 1)

    at = torch.tensor([[[True, False]]])
    changed = change_without(ask, torch.ones(1, 2, 1, 2), at, torch.zeros(1, 2, 1, 2))
    assert changed.tolist() == [[-2, 0]]
    assert gaps(changed, -1).tolist() == [2]
    assert gaps(-changed, 1).tolist() == [2]
