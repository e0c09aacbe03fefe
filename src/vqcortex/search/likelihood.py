"""A generator's own likelihood as what plausible means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import Likely

IMPOSSIBLE = -100.0  # nats that stand for "never": a search must be able to leave a grid that cannot be drawn


@final
@dataclass(frozen=True, slots=True)
class GeneratorLikelihood:
    """Log-likelihood that the model draws a grid when asked for the target; a `Regulariser`.

    Args:
        model: Whose concepts are those of the targets, in the same order.
        batch: Grids it reads at once; changes speed and memory, never results.
    """

    model: Likely
    batch: int = 64

    @property
    def codes(self) -> int:
        """k, codes it knows."""
        return self.model.k

    def __call__(self, grids: Int[Tensor, "m h w"], target: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        parts = zip(grids.split(self.batch), target.split(self.batch), strict=True)
        return torch.cat([self._chances(some, one)[1].sum((1, 2)) for some, one in parts])

    def swaps(
        self,
        grids: Int[Tensor, "m h w"],
        target: Int[Tensor, " m"],
        places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
        codes: Int[Tensor, " a"],
    ) -> Float[Tensor, "m n a"]:
        """What the swapped code's own term changes by; what it does to the terms after it is left out."""
        found = []
        for some, one in zip(grids.split(self.batch), target.split(self.batch), strict=True):
            every, standing = self._chances(some, one)
            here = every[:, :, places[0], places[1]].transpose(1, 2)[:, :, codes]
            found.append(here - standing[:, places[0], places[1], None])
        return torch.cat(found)

    def _chances(
        self, grids: Int[Tensor, "b h w"], target: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b k h w"], Float[Tensor, "b h w"]]:
        """Log-probabilities of all codes, and of those that stand there."""
        every = self.model.log_probabilities(grids, target).clamp_(min=IMPOSSIBLE)
        return every, every.gather(1, grids[:, None])[:, 0]
