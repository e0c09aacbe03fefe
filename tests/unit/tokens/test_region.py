from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcortex.errors import ConfigError
from vqcortex.tokens.region import Region

GRID = (7, 5)
SAME = [
    "2:6,0:4",
    " 2 : 6 , 0:4 ",
    (2, 0, 6, 4),
    [2, 0, 6, 4],
    (np.int64(2), np.int64(0), np.int64(6), np.int64(4)),
    Region(2, 0, 6, 4),
]


@pytest.mark.parametrize("value", SAME)
def test_spelling_of_a_region_does_not_matter(value):
    assert Region.ensure(value, GRID) == Region(top=2, left=0, bottom=6, right=4)


@pytest.mark.parametrize("value", ["all", " ALL ", (0, 0, 7, 5)])
def test_all_is_the_whole_grid(value):
    region = Region.ensure(value, GRID)
    assert len(region) == 35
    assert bool(region.mask(GRID).all())


@pytest.mark.parametrize(
    "value", ["", "2-6", "2:6", "a:b,c:d", "2:6,0:4,1:2", (1, 2, 3), (0.0, 1, 2, 3), True, None, 7]
)
def test_what_is_no_region_is_shown_with_the_grid_and_an_example(value):
    with pytest.raises(ConfigError, match=r"cannot be read; the grid has rows 0 to 6 and columns 0 to 4; .*'0:4,0:3'"):
        Region.ensure(value, GRID)


@pytest.mark.parametrize("value", ["0:8,0:5", "0:7,0:6", "3:3,0:2", "5:2,0:2", (-1, 0, 2, 2), "0:2,9:11"])
def test_a_region_that_leaves_the_grid_or_is_empty_is_an_error(value):
    with pytest.raises(ConfigError, match=r"means rows .* and columns .*: empty or outside the grid"):
        Region.ensure(value, GRID)


def test_the_example_in_the_message_is_itself_right():
    with pytest.raises(ConfigError, match="as in '0:1,0:1'"):
        Region.ensure("x", (1, 1))
    assert len(Region.ensure("0:1,0:1", (1, 1))) == 1


def test_the_centre_window_is_the_published_one():
    assert Region.centre((16, 16), 4) == Region(6, 6, 10, 10)
    assert str(Region.centre((7, 7), 2)) == "2:4,2:4"


@pytest.mark.parametrize("side", [0, 6])
def test_a_centre_window_must_fit(side):
    with pytest.raises(ConfigError, match=f"side={side} does not fit a grid of 7x5; write a side of 1 to 5"):
        Region.centre(GRID, side)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_mask_positions_length_and_text_agree(data):
    h, w = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    bottom, right = data.draw(st.integers(top + 1, h)), data.draw(st.integers(left + 1, w))
    region = Region.ensure((top, left, bottom, right), (h, w))
    assert [tuple(at) for at in torch.nonzero(region.mask((h, w))).tolist()] == list(region.positions)
    assert len(region) == len(region.positions)
    assert Region.ensure(str(region), (h, w)) == region
