"""What stages do differently for a model with several grids of tokens: which of them is searched, and how maps lie in a
picture. For a model with one grid everything here gives back what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters.protocol import Level, address, allowed_cells, join_levels, split_levels


def in_finest(free: Bool[Tensor, "p q"], levels: Sequence[Level]) -> Bool[Tensor, "h w"]:
    """A region of the finest grid as a region of the laid-out one; the other levels are not free."""
    if len(levels) == 1:
        return free
    fixed = [torch.zeros(level.grid, dtype=torch.bool) for level in levels[:-1]]
    return join_levels([*fixed, free])


def finest_codes(alive: Bool[Tensor, " k"], levels: Sequence[Level]) -> Bool[Tensor, " k"]:
    """Of the live codes those that may stand in the finest grid."""
    first, past = levels[-1].codes
    code = torch.arange(len(alive), device=alive.device)
    return alive & (code >= first) & (code < past)


def shares_codes(levels: Sequence[Level], k: int) -> bool:
    """Whether every code may stand everywhere, so that a whole grid can be searched from nothing."""
    return allowed_cells(levels, k) is None


def frequency_by_position(frequency: Float[Tensor, " k"], levels: Sequence[Level]) -> Float[Tensor, "k ..."]:
    """How often each code is used, (k,); with codebooks per level (k, h, w), 0 where a code may not stand."""
    allowed = allowed_cells(levels, len(frequency))
    return frequency if allowed is None else frequency[:, None, None] * allowed


def picture_map(maps: Float[Tensor, "*rest h w"], levels: Sequence[Level]) -> Float[Tensor, "*rest p q"]:
    """Maps as they lie in the picture: on the finest grid, every position with what all levels say of its place."""
    if len(levels) == 1:
        return maps
    finest = finest_grid(levels)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    laid = [F.interpolate(part, finest, mode="nearest") for part in split_levels(flat, levels)]
    return torch.stack(laid).sum(0).view(*maps.shape[:-2], *finest)


def picture_error(errors: Float[Tensor, "*rest h w"], levels: Sequence[Level]) -> Float[Tensor, "*rest p q"]:
    """Standard errors of what `picture_map` gives, the levels taken as independent."""
    return errors if len(levels) == 1 else picture_map(errors.square(), levels).sqrt()


def finest_grid(levels: Sequence[Level]) -> tuple[int, int]:
    """Rows and columns of the level that has most of them."""
    return max((level.grid for level in levels), key=lambda grid: grid[0] * grid[1])


def patch_of(levels: Sequence[Level], row: int, column: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a position, (top, left, height, width).

    Args:
        levels: Of the model.
        row: Of the laid-out grid.
        column: Likewise.
        size: Height and width of the picture.
    """
    level, i, j = address(levels, (row, column))
    p, q = (whole // cells for whole, cells in zip(size, levels[level].grid, strict=True))
    return i * p, j * q, p, q
