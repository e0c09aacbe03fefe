"""A rectangle of a token grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.errors import ConfigError

SPELLING = re.compile(r"\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*")


@final
@dataclass(frozen=True, slots=True)
class Region:
    """Rows top..bottom-1 and columns left..right-1 of a grid, counted from 0.

    Args:
        top: First row inside.
        left: First column inside.
        bottom: First row below, so `bottom - top` rows are inside.
        right: First column to the right.

    Example:
        >>> Region.ensure("0:2,1:3", grid=(4, 4))
        Region(top=0, left=1, bottom=2, right=3)
    """

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def ensure(cls, value: object, grid: tuple[int, int]) -> Region:
        """Return `value` as a region that lies inside `grid`.

        Args:
            value: A Region; four whole numbers (top, left, bottom, right); text "rows,columns" such as
                "2:6,0:4"; or "all".
            grid: Rows and columns, (h, w).

        Raises:
            ConfigError: None of these spellings, an empty rectangle, or one that leaves the grid.
        """
        region = _read(value, grid)
        if region is None:
            raise ConfigError(f"region {value!r} cannot be read; {_example(grid)}")
        if not (0 <= region.top < region.bottom <= grid[0] and 0 <= region.left < region.right <= grid[1]):
            rows, columns = f"rows {region.top}:{region.bottom}", f"columns {region.left}:{region.right}"
            raise ConfigError(
                f"region {value!r} means {rows} and {columns}: empty or outside the grid; {_example(grid)}"
            )
        return region

    @classmethod
    def centre(cls, grid: tuple[int, int], side: int) -> Region:
        """The square of `side` x `side` positions in the middle; where it cannot be exact, up and left of it.

        Raises:
            ConfigError: `side` is below 1 or larger than the grid.

        Source:
            The published evaluation uses side 4 on a 16x16 grid: rows and columns 6 to 9.
        """
        if not 1 <= side <= min(grid):
            raise ConfigError(
                f"side={side} does not fit a grid of {grid[0]}x{grid[1]}; write a side of 1 to {min(grid)}"
            )
        top, left = (grid[0] - side) // 2, (grid[1] - side) // 2
        return cls(top, left, top + side, left + side)

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """Every (row, column) inside, row by row."""
        return tuple((row, column) for row in range(self.top, self.bottom) for column in range(self.left, self.right))

    def __len__(self) -> int:
        """Positions inside."""
        return (self.bottom - self.top) * (self.right - self.left)

    def __str__(self) -> str:
        """The text that `ensure` reads back."""
        return f"{self.top}:{self.bottom},{self.left}:{self.right}"

    def mask(self, grid: tuple[int, int]) -> Bool[Tensor, "h w"]:
        """True inside, False outside, on a grid of (h, w)."""
        inside = torch.zeros(grid, dtype=torch.bool)
        inside[self.top : self.bottom, self.left : self.right] = True
        return inside


def _read(value: object, grid: tuple[int, int]) -> Region | None:
    if isinstance(value, Region):
        return value
    if isinstance(value, str):
        return _read_text(value, grid)
    if isinstance(value, Sequence) and len(value) == 4 and all(map(_is_whole, value)):
        top, left, bottom, right = map(int, value)
        return Region(top, left, bottom, right)
    return None


def _read_text(text: str, grid: tuple[int, int]) -> Region | None:
    if text.strip().lower() == "all":
        return Region(0, 0, *grid)
    if not (found := SPELLING.fullmatch(text)):
        return None
    top, bottom, left, right = map(int, found.groups())
    return Region(top, left, bottom, right)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _example(grid: tuple[int, int]) -> str:
    h, w = grid
    return (
        f"the grid has rows 0 to {h - 1} and columns 0 to {w - 1}; "
        f"write rows,columns with the end left out, as in '0:{(h + 1) // 2},0:{(w + 1) // 2}', or 'all'"
    )
