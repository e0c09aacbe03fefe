"""Banzhaf values by sampling: what a position adds to the concept's logit, every other one shown by a coin's toss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.attribution.baselines import DrawnCodes, baseline_grid
from vqcortex.attribution.logits import (
    AT_ONCE,
    at_once_problems,
    check_finite,
    check_lengths,
    evaluated,
    hidden_logits,
)
from vqcortex.attribution.noise import sampling_problems
from vqcortex.config import raise_all
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Banzhaf:
    """Mean of the concept's logit over maskings that show a position, minus that over those that hide it.

    Args:
        masks: Maskings per image, at least 2; every forward serves all positions at once.
        sampling: "plain": independent maskings. "antithetic": each followed by its complement, which cancels all
            effects of even order (a gain only where these outweigh the others: single effects of other positions
            remain, with half as many independent maskings); an odd last one is made even. "quasi": pairs again, and
            the maskings of a block are rows of a Hadamard matrix under random signs, so that single effects cancel
            too: exact for an extractor with single and pairwise effects only once masks is twice the smallest power
            of two that is at least h * w (128 on 7x7, 512 on 16x16).
        seed: Maskings depend on this and on the image id, never on the batch.
        baseline: What a hidden position holds: one code (d,), codes drawn by use (every pair of maskings, or every
            plain one, has a draw of its own), or None: zero.
        at_once: Grids in one forward, at least 1; bounds memory, decides nothing.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = (
        "Wang and Jia 2022, arXiv:2205.15466, section 4 (every masking counts for every position); "
        "orthogonal maskings: fold-over of Plackett and Burman 1946"
    )

    masks: int = 128
    sampling: str = "quasi"
    seed: int = 0
    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        wrong = [] if self.masks >= 2 else [f"masks={self.masks} must be at least 2"]
        raise_all([*wrong, *sampling_problems(self.sampling), *at_once_problems(self.at_once)])

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        return self.masks if self.sampling == "plain" else 2 * -(-self.masks // 2), 0

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        check_lengths(embedded, concept, image_ids)
        concept, (h, w) = concept.cpu(), embedded.shape[2:]
        with evaluated(extractor):
            signs, values = zip(*self._asked(extractor, embedded, concept, image_ids), strict=True)
        sign, value = torch.cat(signs, 1), torch.cat(values, 1)  # (b, m, h*w), (b, m)
        check_finite(value, image_ids, "logits")
        asked = value.shape[1]
        # Twice the covariance of sign and value; centring costs one degree of freedom unless the signs are balanced.
        count = asked - 1 if self.sampling == "plain" else asked
        centred = value - value.mean(1, keepdim=True)
        return (2 / count * torch.einsum("bm,bmp->bp", centred, sign.to(value))).unflatten(1, (h, w))

    def _asked(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Signs (+1 shown, -1 hidden) and logits, a few maskings at a time."""
        h, w = embedded.shape[2:]
        pairs = self.sampling != "plain"
        generators = [generator_for(self.seed, name, "masks") for name in image_ids]
        count = -(-self.masks // 2) if pairs else self.masks
        each = [masks_of(count, h * w, self.sampling, generator) for generator in generators]
        together = 1 if isinstance(self.baseline, DrawnCodes) else max(1, self.at_once // (2 * len(embedded)))
        for first in range(0, count, together):
            rows = [torch.stack(list(islice(masks, together))) for masks in each]
            shown = torch.stack(rows).to(embedded.device)  # (b, together, h*w)
            shown = torch.cat([shown, ~shown], 1) if pairs else shown
            fill = baseline_grid(self.baseline, first, embedded, image_ids)
            yield (
                shown.to(torch.int8) * 2 - 1,
                hidden_logits(extractor, embedded, fill, ~shown.unflatten(2, (h, w)), concept, self.at_once),
            )


def masks_of(masks: int, positions: int, sampling: str, generator: torch.Generator) -> Iterator[Bool[Tensor, " n"]]:
    """Yield maskings of one image, True where shown; of pairs, the first."""
    side = 1 << (positions - 1).bit_length()
    column = torch.arange(positions)
    for one in range(masks):
        if sampling != "quasi":
            yield torch.rand(positions, generator=generator) < 0.5
            continue
        if one % side == 0:
            flips = torch.rand(positions, generator=generator) < 0.5
            turns = torch.randperm(side, generator=generator)
        yield odd_bits(column & turns[one % side]) ^ flips


def odd_bits(numbers: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether the number of ones in each number's binary form is odd: the signs of Sylvester's Hadamard matrix."""
    for shift in (32, 16, 8, 4, 2, 1):
        numbers = numbers ^ (numbers >> shift)
    return (numbers & 1).bool()
