"""Where tokens may change: a box of a grid, read from text."""

from __future__ import annotations

import re

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.errors import ConfigError


def region_mask(text: str, grid: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Return True where tokens may change.

    Args:
        text: "all"; "centre" (a quarter of the rows and of the columns, at least 1); or rows and columns counted from
            0, the end not included, as in "2:6,0:4".
        grid: Rows and columns of the grid.

    Raises:
        ConfigError: The text is none of these, or the box is empty or reaches outside the grid.

    Example:
        >>> region_mask("0:1,1:3", (2, 3)).int().tolist()
        [[0, 1, 1], [0, 0, 0]]
    """
    mask = torch.zeros(grid, dtype=torch.bool)
    rows, columns = _spans(text, grid)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def _spans(text: str, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    if text == "all":
        return (0, grid[0]), (0, grid[1])
    if text == "centre":
        return _middle(grid[0]), _middle(grid[1])
    if not (found := re.fullmatch(r"\s*(\d+):(\d+)\s*,\s*(\d+):(\d+)\s*", text)):
        raise ConfigError(f"cannot read region {text!r}; write centre, all, or ROWS,COLUMNS as in 2:6,0:4")
    top, bottom, left, right = map(int, found.groups())
    if not (top < bottom <= grid[0] and left < right <= grid[1]):
        raise ConfigError(
            f"region {text!r} is empty or outside the grid of {grid[0]} rows and {grid[1]} columns; "
            f"rows go from 0:1 to 0:{grid[0]}, columns from 0:1 to 0:{grid[1]}"
        )
    return (top, bottom), (left, right)


def _middle(length: int) -> tuple[int, int]:
    side = max(1, round(length / 4))
    first = (length - side) // 2
    return first, first + side
