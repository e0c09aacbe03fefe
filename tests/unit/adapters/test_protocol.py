"""Levels laid out as one row, and addresses in them."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqcortex.adapters.protocol import (
    DECODE,
    ENCODE,
    Adapter,
    Generator,
    Level,
    address,
    check_ability,
    join_levels,
    one_level,
    split_levels,
)
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError, ShapeError

GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=2, max_size=4)


def levels_of(grids) -> tuple[Level, ...]:
    return tuple(Level(name=f"scale {n + 1}", grid=grid, codes=(0, 9)) for n, grid in enumerate(grids))


def test_a_level_knows_its_length():
    assert Level(name="top", grid=(3, 4), codes=(0, 64)).length == 12


def test_a_position_of_one_grid_is_its_address():
    levels = one_level((3, 4), 64)
    assert (levels[0].name, levels[0].codes) == ("tokens", (0, 64))
    assert address(levels, (2, 3)) == (0, 2, 3)


@pytest.mark.parametrize("position", [(3, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_position_outside_one_grid_is_refused(position):
    with pytest.raises(ConfigError, match=rf"position \({position[0]}, {position[1]}\) lies outside the 3x4 grid"):
        address(one_level((3, 4), 64), position)


@pytest.mark.parametrize("position", [(1, 0), (0, 21), (0, -1), (-1, 3)])
def test_a_position_outside_a_row_of_levels_is_refused(position):
    with pytest.raises(ConfigError, match="lies outside the 1x21 grid; count rows and columns from 0"):
        address(levels_of([(1, 1), (4, 5)]), position)


@given(GRIDS)
def test_every_position_of_the_row_has_the_address_it_came_from(grids):
    levels = levels_of(grids)
    parts = [
        torch.tensor([[number * 100 + row * 10 + column for column in range(w)] for row in range(h)])
        for number, (h, w) in enumerate(grids)
    ]
    row = join_levels(parts)
    assert row.shape == (1, sum(h * w for h, w in grids))
    for column, value in enumerate(row[0].tolist()):
        assert address(levels, (0, column)) == (value // 100, value // 10 % 10, value % 10)


@given(GRIDS)
def test_splitting_undoes_joining_whatever_axes_stand_before(grids):
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, *grid, generator=draw) for grid in grids]
    for before, after in zip(parts, split_levels(join_levels(parts), levels_of(grids)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("shape", [(2, 1, 20), (2, 3, 7), (21,)])
def test_a_row_of_another_length_is_refused(shape):
    with pytest.raises(ShapeError, match=rf"has shape {re.escape(str(shape))} but \(\.\.\., 1, 21\) is needed"):
        split_levels(torch.zeros(shape), levels_of([(1, 1), (4, 5)]))


def test_what_a_model_cannot_do_is_said_with_what_it_can():
    check_ability("m", frozenset({ENCODE}), ENCODE, "unused")
    with pytest.raises(ModelError, match=r"model 'm' cannot decode, .*; it can: encode; try another"):
        check_ability("m", frozenset({ENCODE}), DECODE, "try another")
    with pytest.raises(ModelError, match="it can: nothing; try another"):
        check_ability("m", frozenset(), DECODE, "try another")


def test_the_toy_follows_the_protocols():
    assert isinstance(ToyAdapter(), Adapter)
    assert isinstance(ToyAdapter(), Generator)
