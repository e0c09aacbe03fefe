"""The published effect is half of the true one, and says so."""

import torch

from vqcortex.audit.effect import cliffs_delta
from vqcortex.audit.reference import published_half_delta


def test_it_is_half_of_cliffs_delta():
    a, b = torch.tensor([1, 4, 4, 7]), torch.tensor([0, 4, 2])
    assert published_half_delta(a, b) == cliffs_delta(a, b).delta.item() / 2


def test_groups_that_do_not_overlap_get_a_half():
    assert published_half_delta(torch.tensor([5, 6]), torch.tensor([1, 2])) == 0.5
