"""Occlusion: hide a position, or a block of them, and see how far the concept's logit falls."""

from __future__ import annotations

from collections.abc import Sequence
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
    concept_logits,
    evaluated,
    hidden_logits,
)
from vqcortex.config import raise_all
from vqcortex.errors import ConfigError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Occlusion:
    """Fall of the concept's logit when a position's code is replaced, others kept.

    With blocks, every whole b x b block is hidden in turn; a position's score is the mean over the blocks that cover
    it of the fall per position hidden.

    Args:
        block: Side of the hidden square, in positions, 1..min(h, w).
        baseline: What takes the place: one code (d,), codes drawn by use (averaged over their draws), or None: zero.
        at_once: Grids in one forward, at least 1; bounds memory, decides nothing.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = "Zeiler and Fergus 2013, arXiv:1311.2901, section 4.2; drawn codes instead of a grey square"

    block: int = 1
    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        wrong = [] if self.block >= 1 else [f"block={self.block} must be at least 1"]
        raise_all([*wrong, *at_once_problems(self.at_once)])

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        return 1 + len(blocks(grid, self.block)) * draws_of(self.baseline), 0

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        check_lengths(embedded, concept, image_ids)
        hidden = blocks((embedded.shape[2], embedded.shape[3]), self.block).to(embedded.device)  # (m, h, w)
        concept, draws = concept.cpu(), draws_of(self.baseline)
        every = hidden.expand(len(embedded), *hidden.shape)
        with evaluated(extractor):
            full = concept_logits(extractor, embedded, concept, self.at_once)
            falls = torch.zeros(every.shape[:2], dtype=full.dtype, device=full.device)
            for draw in range(draws):
                fill = baseline_grid(self.baseline, draw, embedded, image_ids)
                without = hidden_logits(extractor, embedded, fill, every, concept, self.at_once)
                falls += (full[:, None] - without) / draws
        check_finite(falls, image_ids, "logits")
        cover = hidden.to(falls.dtype)
        return torch.einsum("bm,mhw->bhw", falls, cover) / (self.block**2 * cover.sum(0))


def blocks(grid: tuple[int, int], side: int) -> Bool[Tensor, "m h w"]:
    """Every whole square block of a grid, row by row.

    Raises:
        ConfigError: The block is larger than the grid.
    """
    h, w = grid
    if side > min(h, w):
        raise ConfigError(f"1 setting wrong: block={side} must be at most {min(h, w)} on a {h}x{w} grid")
    corners = [(row, column) for row in range(h - side + 1) for column in range(w - side + 1)]
    found = torch.zeros(len(corners), h, w, dtype=torch.bool)
    for one, (row, column) in zip(found, corners, strict=True):
        one[row : row + side, column : column + side] = True
    return found
