"""Edits and regions written by hand: explicit swaps, mask images, a concept's tokens, what another image has there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vqcortex.errors import ConfigError, ShapeError, TokenError

SPELLING = re.compile(r"\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*=\s*([0-9]{1,9})\s*")


@final
@dataclass(frozen=True, slots=True, order=True)
class Swap:
    """A code put at a position.

    Args:
        row: Of the grid, from 0.
        column: Likewise.
        code: What is put there.
    """

    row: int
    column: int
    code: int

    def __str__(self) -> str:
        return f"{self.row},{self.column}={self.code}"


@lru_cache(maxsize=512)
def parse_swaps(text: str) -> tuple[Swap, ...]:
    """Read "3,4=901; 3,5=17" into swaps; rows and columns count from 0.

    Raises:
        ConfigError: Another spelling, no swap at all, or two for one position.

    Example:
        >>> parse_swaps("3,4=901; 3,5=17")[1]
        Swap(row=3, column=5, code=17)
    """
    swaps = []
    for part in text.split(";"):
        if not part.strip():
            continue
        if not (found := SPELLING.fullmatch(part)):
            raise ConfigError(f"swap {part.strip()!r} cannot be read; write row,column=code, as in '3,4=901; 3,5=17'")
        swaps.append(Swap(*map(int, found.groups())))
    if not swaps:
        raise ConfigError(f"swaps {text!r} hold no swap; write row,column=code, as in '3,4=901; 3,5=17'")
    places = [(one.row, one.column) for one in swaps]
    if twice := [place for place in places if places.count(place) > 1]:
        row, column = twice[0]
        raise ConfigError(f"swaps {text!r} put two codes at {row},{column}; give each position one")
    return tuple(swaps)


def swapped(tokens: Int[Tensor, "b h w"], swaps: Iterable[Swap], k: int) -> Int[Tensor, "b h w"]:
    """The grids with all of the swaps made in each.

    Raises:
        ConfigError: A swap lies outside the grid.
        TokenError: Its code lies outside the codebook.
    """
    found, (h, w) = tokens.clone(), tokens.shape[1:]
    for one in swaps:
        if one.row >= h or one.column >= w:
            raise ConfigError(
                f"swap '{one}' lies outside the {h}x{w} grid; rows go from 0 to {h - 1}, columns from 0 to {w - 1}"
            )
        if one.code >= k:
            raise TokenError(f"swap '{one}' wants code {one.code} but this codebook holds [0, {k - 1}]")
        found[:, one.row, one.column] = one.code
    return found


def swaps_between(before: Int[Tensor, "h w"], after: Int[Tensor, "h w"]) -> str:
    """The swaps that turn one grid into another, as `parse_swaps` reads them; empty where they are alike.

    Example:
        >>> swaps_between(torch.tensor([[1, 2]]), torch.tensor([[1, 7]]))
        '0,1=7'
    """
    return "; ".join(
        str(Swap(row, column, int(after[row, column]))) for row, column in (before != after).nonzero().tolist()
    )


def copied(
    tokens: Int[Tensor, "b h w"], other: Int[Tensor, "rows columns"], free: Bool[Tensor, "b h w"]
) -> Int[Tensor, "b h w"]:
    """The grids with what another image has in their region.

    Raises:
        ShapeError: The other grid has another shape.
    """
    if other.shape != tokens.shape[1:]:
        raise ShapeError(
            f"the image copied from has a grid of {tuple(other.shape)} but {tuple(tokens.shape[1:])} is needed; "
            "copy from an image of the same model"
        )
    return torch.where(free, other.to(tokens), tokens)


def where_tokens(tokens: Int[Tensor, "b h w"], codes: Int[Tensor, " m"]) -> Bool[Tensor, "b h w"]:
    """True where one of some codes stands."""
    return torch.isin(tokens, codes.to(tokens.device))


def masked(mask: Float[Tensor, "H W"], grid: tuple[int, int], size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """A mask image as positions: those of which at least half is painted.

    Args:
        mask: Brightness, 0 to 1; 0.5 and more is painted. As many rows and columns as the grid or the model's images.
        grid: Rows and columns of the grid, (h, w).
        size: Height and width of the model's images.

    Raises:
        ConfigError: The mask has another shape, or nothing is painted.
    """
    shape = tuple(mask.shape)
    if shape not in (grid, size):
        raise ConfigError(
            f"the mask has {shape[0]}x{shape[1]} pixels but {size[0]}x{size[1]} (the model's images) or "
            f"{grid[0]}x{grid[1]} (one per token) are needed; resize it"
        )
    share = F.adaptive_avg_pool2d((mask >= 0.5).float()[None, None], grid)[0, 0]
    if not (share >= 0.5).any():
        raise ConfigError(
            "no token lies at least half under the painted part of the mask; paint it white where tokens may change"
        )
    return share >= 0.5


def best_window(gain: Float[Tensor, "b h w"], side: int) -> Bool[Tensor, "b h w"]:
    """The square of `side` x `side` positions with the largest sum, in each; of equals the first in reading order.

    Raises:
        ConfigError: The side is below 1 or larger than the grid.
    """
    h, w = gain.shape[1:]
    if not 1 <= side <= min(h, w):
        raise ConfigError(f"a window of {side}x{side} does not fit the {h}x{w} grid; write a side of 1 to {min(h, w)}")
    sums = F.avg_pool2d(gain[:, None].double(), side, 1)[:, 0].flatten(1)
    top, left = (sums.argmax(1) // (w - side + 1)), (sums.argmax(1) % (w - side + 1))
    rows, columns = torch.arange(h, device=gain.device), torch.arange(w, device=gain.device)
    is_row = (rows >= top[:, None]) & (rows < top[:, None] + side)
    is_column = (columns >= left[:, None]) & (columns < left[:, None] + side)
    return is_row[:, :, None] & is_column[:, None]
