"""Shapley values by sampling: what a position adds to the concept's logit, averaged over orders of hiding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.baselines import DrawnCodes, baseline_grid, completeness_gap
from vqcortex.attribution.logits import (
    AT_ONCE,
    at_once_problems,
    check_finite,
    check_lengths,
    concept_logits,
    evaluated,
    hidden_logits,
)
from vqcortex.attribution.noise import sampling_problems
from vqcortex.config import raise_all
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shapley:
    """Mean fall of the concept's logit when a position is hidden after those before it in a random order.

    The scores of an image add up to its logit minus its baseline's, for any number of orders.

    Args:
        permutations: Orders per image, at least 1.
        sampling: "plain": independent orders. "antithetic": each followed by its reverse, which is exact for an
            extractor whose logit has main and pairwise effects only; an odd last one stands alone. "quasi": pairs
            again, and the orders of a block are turns of one order, so that each position stands early, in the middle
            and late equally often.
        seed: Orders depend on this and on the image id, never on the batch.
        baseline: What a hidden position holds: one code (d,), codes drawn by use (every pair of orders, or every
            plain order, has a draw of its own), or None: zero.
        at_once: Grids in one forward, at least 1; bounds memory, decides nothing.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = (
        "Castro et al. 2009, doi:10.1016/j.cor.2008.04.004; reversed orders: Mitchell et al. 2022, arXiv:2104.12199, "
        "section 3; turns of an order: strata by place, Maleki et al. 2013, arXiv:1306.4265"
    )

    permutations: int = 16
    sampling: str = "antithetic"
    seed: int = 0
    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        wrong = [] if self.permutations >= 1 else [f"permutations={self.permutations} must be at least 1"]
        raise_all([*wrong, *sampling_problems(self.sampling), *at_once_problems(self.at_once)])

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        empty = len(set(self._draws())) if isinstance(self.baseline, DrawnCodes) else 1
        return 1 + empty + self.permutations * (grid[0] * grid[1] - 1), 0

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        check_lengths(embedded, concept, image_ids)
        concept, (h, w) = concept.cpu(), embedded.shape[2:]
        orders = self._orders(h * w, image_ids)
        last = torch.arange(1, h * w, device=embedded.device)[:, None]
        empty, held = None, -1  # logit of the all-hidden grid, and the draw it belongs to
        with evaluated(extractor):
            full = concept_logits(extractor, embedded, concept, self.at_once)
            total = torch.zeros(len(embedded), h * w, dtype=full.dtype, device=full.device)
            for order, draw in zip(orders, self._draws(), strict=True):
                fill = baseline_grid(self.baseline, draw, embedded, image_ids)
                if empty is None or (draw != held and isinstance(self.baseline, DrawnCodes)):
                    empty, held = concept_logits(extractor, fill, concept, self.at_once), draw
                order = order.to(embedded.device)
                hidden = order.argsort(1)[:, None] < last  # after 1, 2, ... positions; (b, h*w - 1, h*w)
                between = hidden_logits(extractor, embedded, fill, hidden.unflatten(2, (h, w)), concept, self.at_once)
                values = torch.cat([full[:, None], between, empty[:, None]], 1)
                total.scatter_add_(1, order, values[:, :-1] - values[:, 1:])
        check_finite(total, image_ids, "logits")
        return total.unflatten(1, (h, w)) / self.permutations

    def gap(
        self,
        scores: Float[Tensor, "b h w"],
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, " b"]:
        """By how much the scores fail to add up, in logits: see `protocol.ReportsGap`; here only by rounding."""
        draws = self._draws()
        return completeness_gap(
            scores, extractor, embedded, concept, image_ids, baseline=self.baseline, draws=draws, at_once=self.at_once
        )

    def _draws(self) -> list[int]:
        """Which draw of the baseline each order hides with."""
        return [one if self.sampling == "plain" else one // 2 for one in range(self.permutations)]

    def _orders(self, positions: int, image_ids: Sequence[str]) -> Iterator[Int[Tensor, "b n"]]:
        each = [
            orders_of(self.permutations, positions, self.sampling, generator_for(self.seed, name, "permutations"))
            for name in image_ids
        ]
        return (torch.stack(rows) for rows in zip(*each, strict=True))


def orders_of(orders: int, positions: int, sampling: str, generator: torch.Generator) -> Iterator[Int[Tensor, " n"]]:
    """Yield the orders of hiding of one image, position numbers first to last."""
    pairs = -(-orders // 2)
    for one in range(orders if sampling == "plain" else pairs):
        if sampling != "quasi":
            order = torch.randperm(positions, generator=generator)
        else:
            turn = one % positions
            if turn == 0:
                base, turns = torch.randperm(positions, generator=generator), min(positions, pairs - one)
            order = base.roll(-(turn * positions // turns))
        yield order
        if sampling != "plain" and 2 * one + 1 < orders:
            yield order.flip(0)
