"""What stages do differently when an image has several grids of tokens."""

import pytest
import torch
from leveled import SHARED, TWO

from vqcortex.adapters.protocol import join_levels, one_level, split_levels
from vqcortex.pipelines.levels import (
    finest_codes,
    finest_grid,
    frequency_by_position,
    in_finest,
    patch_of,
    picture_error,
    picture_map,
    shares_codes,
)

ONE = one_level((2, 3), 5)


def test_one_grid_is_left_as_it_is():
    free, maps = torch.eye(2, 3).bool(), torch.rand(4, 2, 3)
    assert in_finest(free, ONE) is free
    assert picture_map(maps, ONE) is maps
    assert picture_error(maps, ONE) is maps
    assert frequency_by_position(torch.rand(5), ONE).shape == (5,)
    assert finest_codes(torch.tensor([True, False, True, True, True]), ONE).tolist() == [True, False, True, True, True]
    assert patch_of(ONE, 1, 2, (8, 9)) == (4, 6, 4, 3)


def test_a_region_lies_in_the_finest_grid():
    free = torch.zeros(4, 4, dtype=torch.bool)
    free[1:3, 1:3] = True
    top, bottom = split_levels(in_finest(free, TWO), TWO)
    assert not top.any()
    assert torch.equal(bottom, free)


def test_only_codes_of_the_finest_grid_are_searched():
    alive = torch.ones(16, dtype=torch.bool)
    alive[9] = False
    assert finest_codes(alive, TWO).nonzero()[:, 0].tolist() == [8, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize(("levels", "k", "shares"), [(TWO, 16, False), (SHARED, 8, True), (ONE, 5, True)])
def test_a_shared_codebook_can_be_searched_everywhere(levels, k, shares):
    assert shares_codes(levels, k) is shares


def test_a_code_is_never_drawn_where_it_may_not_stand():
    shares = frequency_by_position(torch.ones(16), TWO)
    top, bottom = split_levels(shares, TWO)
    assert (top[:8] == 1).all()
    assert (top[8:] == 0).all()
    assert (bottom[:8] == 0).all()
    assert (bottom[8:] == 1).all()


def test_levels_are_laid_over_each_other():
    top, bottom = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(4, 4)
    bottom[0, 0] = 10
    laid = picture_map(join_levels([top, bottom]), TWO)
    assert laid.tolist() == [[11, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    error = picture_error(join_levels([3 * torch.ones(2, 2), 4 * torch.ones(4, 4)]), TWO)
    assert (error == 5).all()
    assert finest_grid(TWO) == (4, 4)


def test_a_position_owns_its_part_of_the_picture():
    assert patch_of(TWO, 0, 1, (24, 24)) == (0, 12, 12, 12)
    assert patch_of(TWO, 0, 4 + 5, (24, 24)) == (6, 6, 6, 6)
