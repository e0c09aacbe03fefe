"""How codes occur in real token grids: how often each one, and which stand side by side more often than chance.

Two counts make a plausibility: a code's frequency, and for codes side by side the log-odds of meeting them, observed
over what their frequencies alone would give. Their sum over a grid is the log-likelihood of a random field on it, up to
a constant (Bethe approximation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError, ShapeError
from vqcortex.search.problem import check_tokens

NOWHERE = -1
WAYS = 4  # left, right, above, below


@final
@dataclass(frozen=True, slots=True)
class Pairs:
    """How often two codes stood side by side: for codes met, first * k + second, ascending, and how often."""

    met: Int[Tensor, " u"]
    times: Int[Tensor, " u"]

    def __add__(self, other: Pairs) -> Pairs:
        met, place = torch.cat([self.met, other.met]).unique(return_inverse=True)
        return Pairs(met, torch.zeros_like(met).index_add_(0, place, torch.cat([self.times, other.times])))

    def of(self, asked: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """How often each pair was met."""
        if not len(self.met):
            return torch.zeros_like(asked)
        place = torch.searchsorted(self.met, asked).clamp_(max=len(self.met) - 1)
        return torch.where(self.met[place] == asked, self.times[place], 0)


@final
@dataclass(frozen=True)
class TokenStatistics:
    """What was counted in some grids; adds up over images, and is a `Regulariser`.

    Args:
        grids: Rows and columns of each level, coarse to fine; one for most models.
        counts: How often each code stood anywhere, (k,).
        across: Codes side by side, left first.
        down: Codes one above the other, the upper first.
        smoothing: Added to what was observed and to what was expected, in meetings, above 0: rare codes say little.
    """

    grids: tuple[tuple[int, int], ...]
    counts: Int[Tensor, " k"]
    across: Pairs
    down: Pairs
    smoothing: float = 1.0

    def __post_init__(self) -> None:
        if not self.smoothing > 0:
            raise ConfigError(f"smoothing={self.smoothing} must be above 0")

    def __add__(self, other: TokenStatistics) -> TokenStatistics:
        if (self.grids, self.codes) != (other.grids, other.codes):
            raise ShapeError(
                f"statistics of {self.codes} codes on {self.grids} and of {other.codes} on {other.grids} do not add "
                "up; count images of one model"
            )
        counts, across, down = self.counts + other.counts, self.across + other.across, self.down + other.down
        return TokenStatistics(self.grids, counts, across, down, self.smoothing)

    @property
    def codes(self) -> int:
        """k, codes it knows."""
        return len(self.counts)

    @cached_property
    def log_frequency(self) -> Float[Tensor, " k"]:
        """Logarithm of each code's share of all tokens, smoothed, in nats."""
        smooth = self.counts.double() + self.smoothing
        return (smooth / smooth.sum()).log().float()

    @cached_property
    def _shares(self) -> Float[Tensor, " k"]:
        return self.counts.double() / max(int(self.counts.sum()), 1)

    @cached_property
    def neighbours(self) -> Int[Tensor, "4 n"]:
        """Positions to the left, right, above and below each, of the grid read row by row; -1: none."""
        return neighbours_of(self.grids).to(self.counts.device)

    def log_odds(self, first: Int[Tensor, "*any"], second: Int[Tensor, "*any"], across: bool) -> Float[Tensor, "*any"]:
        """Logarithm of observed over expected meetings of two codes, both smoothed, in nats; 0: as often as chance.

        Args:
            first: Left or upper codes.
            second: Right or lower codes.
            across: Side by side; False: one above the other.
        """
        pairs = self.across if across else self.down
        seen = pairs.of(first * self.codes + second).double()
        expected = self._shares[first] * self._shares[second] * int(pairs.times.sum())
        return ((seen + self.smoothing) / (expected + self.smoothing)).log().float()

    def to(self, device: torch.device) -> TokenStatistics:
        """The same on a device."""
        across, down = (Pairs(one.met.to(device), one.times.to(device)) for one in (self.across, self.down))
        return TokenStatistics(self.grids, self.counts.to(device), across, down, self.smoothing)

    def __call__(self, grids: Int[Tensor, "m h w"], target: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Sum of log-frequencies and of neighbours' log-odds, in nats; the target plays no part."""
        return self.log_frequency[grids].sum((1, 2)) + sum(odds.sum(1) for odds in self._met(grids))

    def swaps(
        self,
        grids: Int[Tensor, "m h w"],
        target: Int[Tensor, " m"],
        places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
        codes: Int[Tensor, " a"],
    ) -> Float[Tensor, "m n a"]:
        """Exactly by how much that changes when a code is put at a place."""
        flat, here = grids.flatten(1), places[0] * grids.shape[2] + places[1]
        now = flat[:, here, None]  # (m, n, 1)
        change = self._around(flat, here, codes[None, None].expand(*now.shape[:2], -1))
        return change - self._around(flat, here, now)

    def _around(
        self, flat: Int[Tensor, "m hw"], here: Int[Tensor, " n"], code: Int[Tensor, "m n a"]
    ) -> Float[Tensor, "m n a"]:
        """What a code at a place adds: its frequency and its log-odds with its neighbours."""
        total = self.log_frequency[code]
        for way in range(WAYS):
            there = self.neighbours[way, here]
            other = flat[:, there.clamp(min=0), None].expand_as(code)
            is_before = way in (0, 2)  # the neighbour is the left or upper one
            odds = self.log_odds(other, code, way < 2) if is_before else self.log_odds(code, other, way < 2)
            total = total + odds * (there != NOWHERE)[None, :, None]
        return total

    def _met(self, grids: Int[Tensor, "m h w"]) -> list[Float[Tensor, "m _"]]:
        """Log-odds of all codes side by side, and of all one above the other."""
        flat = grids.flatten(1)
        return [self.log_odds(flat[:, one], flat[:, two], across) for across, (one, two) in self._pairs()]

    def _pairs(self) -> list[tuple[bool, tuple[Tensor, Tensor]]]:
        return [(way == 1, _touching(self.neighbours[way])) for way in (1, 3)]

    def means(
        self, grids: Int[Tensor, "m h w"], free: Bool[Tensor, "h w"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Mean log-frequency of the codes in a region, and mean log-odds of its pairs with one code in it or both."""
        inside = free.flatten()
        odds = [
            one[:, inside[first] | inside[second]]
            for one, (_, (first, second)) in zip(self._met(grids), self._pairs(), strict=True)
        ]
        return self.log_frequency[grids][:, free].mean(1), torch.cat(odds, 1).mean(1)


def count_tokens(
    tokens: Int[Tensor, "b h w"], codes: int, grids: Sequence[tuple[int, int]] = (), smoothing: float = 1.0
) -> TokenStatistics:
    """Count the codes of some grids and which stand side by side.

    Args:
        tokens: Real grids.
        codes: k.
        grids: Rows and columns of each level, laid out one after the other in the grid; none: it is one grid.
        smoothing: See `TokenStatistics`.

    Raises:
        TokenError: A token is outside the codebook.
        ShapeError: The levels do not fill the grid.
    """
    check_tokens(tokens, torch.zeros(codes, 1))
    levels = tuple(grids) or ((tokens.shape[1], tokens.shape[2]),)
    around, flat = neighbours_of(levels), tokens.flatten(1)
    if around.shape[1] != flat.shape[1]:
        raise ShapeError(f"levels {levels} have {around.shape[1]} positions but the grids {flat.shape[1]}")
    across, down = (_counted(flat, _touching(around[way]), codes) for way in (1, 3))
    return TokenStatistics(levels, flat.flatten().bincount(minlength=codes), across, down, smoothing)


def _counted(flat: Int[Tensor, "b n"], touching: tuple[Tensor, Tensor], codes: int) -> Pairs:
    first, second = touching
    met, times = (flat[:, first] * codes + flat[:, second]).flatten().unique(return_counts=True)
    return Pairs(met, times)


def _touching(after: Int[Tensor, " n"]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Positions that have a neighbour, and that neighbour."""
    first = (after != NOWHERE).nonzero()[:, 0]
    return first, after[first]


def neighbours_of(grids: Sequence[tuple[int, int]]) -> Int[Tensor, "4 n"]:
    """Positions left, right, above and below of each, all levels in one row, each read row by row; -1: none.

    Example:
        >>> neighbours_of([(1, 2)]).tolist()
        [[-1, 0], [1, -1], [-1, -1], [-1, -1]]
    """
    parts, first = [], 0
    for height, width in grids:
        place = torch.full((height + 2, width + 2), NOWHERE)
        place[1:-1, 1:-1] = torch.arange(first, first + height * width).view(height, width)
        inner = slice(1, -1)
        around = (place[inner, :-2], place[inner, 2:], place[:-2, inner], place[2:, inner])
        parts.append(torch.stack([one.flatten() for one in around]))
        first += height * width
    return torch.cat(parts, 1)
