"""Greedy removal: hide the position whose loss hurts the concept's logit most, then the next, and so on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.attribution.baselines import DrawnCodes, baseline_grid, draws_of
from vqcortex.attribution.logits import (
    AT_ONCE,
    at_once_problems,
    check_finite,
    check_lengths,
    evaluated,
    hidden_logits,
)
from vqcortex.config import raise_all
from vqcortex.errors import ConfigError

TIE = 1e-5
"""Logits nearer than this share of the largest one (at least of 1) are equal: rounding must not decide."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyRemoval:
    """The order of greedy removal as a score: h*w for the position removed first, 1 for the last.

    Of equal positions the first in reading order goes first.

    Args:
        removals: Positions removed one by one, 1..h*w; the others follow in the order that they have when the last
            of these is chosen. None: all, which costs about (h*w)**2 / 2 forward passes.
        baseline: What a removed position holds: one code (d,), codes drawn by use (the logit is averaged over their
            draws), or None: zero.
        at_once: Grids in one forward, at least 1; bounds memory, decides nothing.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = "Greedy on the deletion curve of Petsiuk et al. 2018, arXiv:1806.07421, section 4.1"

    removals: int | None = None
    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        raise_all([*self._problems(), *at_once_problems(self.at_once)])

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        positions = grid[0] * grid[1]
        return draws_of(self.baseline) * sum(positions - one for one in range(self._rounds(positions))), 0

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        check_lengths(embedded, concept, image_ids)
        concept, (h, w) = concept.cpu(), embedded.shape[2:]
        left = torch.arange(h * w, device=embedded.device).expand(len(embedded), -1)  # numbers of those still there
        removed: list[Tensor] = []
        with evaluated(extractor):
            for _ in range(self._rounds(h * w)):
                gone = mask_of(removed, left, h * w)
                one_more = gone[:, None].expand(-1, left.shape[1], -1).scatter(2, left[..., None], True)
                logits = self._mean_logits(extractor, embedded, one_more.unflatten(2, (h, w)), concept, image_ids)
                check_finite(logits, image_ids, "logits")
                ordered = left.gather(1, lowest_first(logits))
                removed.append(ordered[:, :1])
                left = ordered[:, 1:].sort(1).values
        order = torch.cat([torch.cat(removed, 1), ordered[:, 1:]], 1)
        scores = torch.arange(h * w, 0, -1, device=embedded.device, dtype=logits.dtype).expand_as(order)
        return torch.empty_like(scores).scatter(1, order, scores).unflatten(1, (h, w))

    def _mean_logits(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        hidden: Bool[Tensor, "b m h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b m"]:
        draws = draws_of(self.baseline)
        fills = (baseline_grid(self.baseline, draw, embedded, image_ids) for draw in range(draws))
        each = [hidden_logits(extractor, embedded, fill, hidden, concept, self.at_once) for fill in fills]
        return torch.stack(each).mean(0)

    def _rounds(self, positions: int) -> int:
        """Removals that need a choice: the last position needs none, but one round there is always."""
        if self.removals is not None and self.removals > positions:
            raise ConfigError(f"1 setting wrong: removals={self.removals} must be at most {positions}, the positions")
        return max(1, min(self.removals or positions, positions - 1))

    def _problems(self) -> Iterator[str]:
        if self.removals is not None and self.removals < 1:
            yield f"removals={self.removals} must be at least 1, or None for all positions"


def mask_of(removed: Sequence[Tensor], like: Tensor, positions: int) -> Bool[Tensor, "b n"]:
    """True at the positions removed so far, a list of (b, 1) position numbers."""
    mask = torch.zeros(len(like), positions, dtype=torch.bool, device=like.device)
    return mask.scatter(1, torch.cat(list(removed), 1), True) if removed else mask


def lowest_first(logits: Float[Tensor, "b m"]) -> Int[Tensor, "b m"]:
    """Order from the lowest logit up; runs of logits nearer to each other than TIE keep the order they came in."""
    tie = TIE * logits.abs().amax(1, keepdim=True).clamp_min(1)
    values, order = logits.sort(dim=1, stable=True)
    group = torch.cat([torch.zeros_like(order[:, :1]), (values.diff(dim=1) > tie).long().cumsum(1)], 1)
    return torch.empty_like(group).scatter(1, order, group).sort(dim=1, stable=True).indices
