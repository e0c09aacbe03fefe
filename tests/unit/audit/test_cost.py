"""Distances and diversity of features, where they are known in closed form."""

import pytest
import torch

from vqcortex.audit.cost import diversity, frechet_distance
from vqcortex.errors import DataError


def test_equal_sets_are_at_no_distance_and_a_shift_counts_squared():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(x, x + torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(25, rel=1e-4)


def test_a_spread_counts_by_its_root():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
    wanted = torch.cov(x.T).trace() * (1 - 2) ** 2  # of N(0, S) and N(0, 4 S)
    x = x - x.mean(0)
    assert frechet_distance(x, 2 * x) == pytest.approx(wanted.item(), rel=1e-6)


def test_one_feature_is_enough():
    assert frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])) == pytest.approx(1)


def test_diversity_is_the_mean_distance_of_two():
    assert diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx(10 / 3)
    assert diversity(torch.ones(4, 2)) == 0


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="a distance of 1 and 5 images"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    with pytest.raises(DataError, match=r"1 image\(s\) have no diversity"):
        diversity(torch.zeros(1, 2))
