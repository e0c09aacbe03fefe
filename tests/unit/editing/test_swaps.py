from __future__ import annotations

import pytest
import torch

from vqcortex.editing.swaps import (
    Swap,
    best_window,
    copied,
    masked,
    parse_swaps,
    swapped,
    swaps_between,
    where_tokens,
)
from vqcortex.errors import ConfigError, ShapeError, TokenError

GRID = torch.arange(16).view(1, 4, 4)


def test_swaps_are_read_with_any_spaces_and_written_back():
    assert parse_swaps(" 3,4=901;3 , 5 = 17 ;") == (Swap(3, 4, 901), Swap(3, 5, 17))
    after = swapped(GRID, parse_swaps("0,1=9; 3,3=2"), 16)
    assert (after[0, 0, 1], after[0, 3, 3]) == (9, 2)
    assert int((after != GRID).sum()) == 2
    assert swaps_between(GRID[0], after[0]) == "0,1=9; 3,3=2"
    assert swaps_between(GRID[0], GRID[0]) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3-4", "swap '3-4' cannot be read; write row,column=code"),
        ("3,4=x", "swap '3,4=x' cannot be read"),
        ("-1,4=2", "swap '-1,4=2' cannot be read"),
        (" ; ", "hold no swap"),
        ("1,1=2; 1,1=3", "put two codes at 1,1"),
    ],
)
def test_unknown_syntax_says_which_swap_and_how_to_write_it(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_swaps(text)


def test_a_swap_outside_grid_or_codebook_is_refused():
    with pytest.raises(ConfigError, match="swap '4,0=1' lies outside the 4x4 grid; rows go from 0 to 3"):
        swapped(GRID, parse_swaps("4,0=1"), 16)
    with pytest.raises(TokenError, match=r"wants code 16 but this codebook holds \[0, 15\]"):
        swapped(GRID, parse_swaps("0,0=16"), 16)


def test_a_copy_takes_what_the_other_image_has_in_the_region():
    free = torch.zeros(1, 4, 4, dtype=torch.bool)
    free[0, :2, :2] = True
    found = copied(GRID, torch.full((4, 4), 7), free)
    assert torch.equal(found == 7, free | (GRID == 7))
    with pytest.raises(ShapeError, match=r"grid of \(2, 2\) but \(4, 4\) is needed"):
        copied(GRID, torch.zeros(2, 2, dtype=torch.int64), free)


def test_wherever_tokens_stand_is_a_region():
    assert torch.equal(where_tokens(GRID, torch.tensor([3, 7])), (GRID == 3) | (GRID == 7))


def test_a_mask_image_marks_positions_that_are_half_painted():
    mask = torch.zeros(8, 8)
    mask[:2, :3] = 1.0  # one position whole, the next half
    assert masked(mask, (4, 4), (8, 8)).int().tolist()[0] == [1, 1, 0, 0]
    assert int(masked(mask, (4, 4), (8, 8)).sum()) == 2
    assert torch.equal(masked(torch.eye(4), (4, 4), (8, 8)), torch.eye(4).bool())


def test_a_mask_of_another_shape_or_without_paint_is_refused():
    with pytest.raises(ConfigError, match=r"mask has 5x8 pixels but 8x8 \(the model's images\) or 4x4"):
        masked(torch.ones(5, 8), (4, 4), (8, 8))
    with pytest.raises(ConfigError, match="no token lies at least half under the painted part"):
        masked(torch.zeros(8, 8), (4, 4), (8, 8))


def test_the_best_window_is_the_square_of_largest_sum_the_first_of_equals():
    gain = torch.zeros(2, 4, 5)
    gain[0, 2, 3], gain[0, 3, 4] = 1.0, 1.0
    found = best_window(gain, 2)
    assert found[0].nonzero().tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]
    assert found[1].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    with pytest.raises(ConfigError, match="window of 5x5 does not fit the 4x5 grid"):
        best_window(gain, 5)
