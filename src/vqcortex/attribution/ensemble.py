"""One map from several extractors: what they agree on stays, their quirks average out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.gradient_x_embedding import NoisyGradientXEmbedding
from vqcortex.attribution.protocol import Method
from vqcortex.errors import ConfigError

FLAT = 1e-6
"""A map whose spread is below this share of its largest value is flat: there is nothing in it to scale up."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Mean over extractors of one method's maps, each divided by its standard deviation over the image's positions.

    The scale is each image's own, so that an image's scores do not depend on its company; it has no unit. A flat map
    has no say (it counts as zeros).

    Args:
        method: What explains each extractor.
        extractors: Those beside the one of the call; all must have the same concepts in the same order. With none,
            the map is that of the call's extractor, scaled.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = (
        "Rieger and Hansen 2019, arXiv:1903.00519, which averages methods; ours averages extractors, scaled"
    )

    method: Method = field(default_factory=NoisyGradientXEmbedding)
    extractors: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Of all extractors together."""
        forward, backward = self.method.passes(grid)
        members = 1 + len(self.extractors)
        return forward * members, backward * members

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        members = (extractor, *self.extractors)
        if len({id(one) for one in members}) < len(members):
            raise ConfigError(
                "an extractor occurs twice in this ensemble and would count twice; "
                "list each once, without the one that is explained"
            )
        maps = [scaled(self.method(one, embedded, concept, image_ids)) for one in members]
        return torch.stack(maps).mean(0)


def scaled(scores: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Each image's map divided by its standard deviation over positions; zeros for a flat one."""
    spread = scores.std((1, 2), correction=0, keepdim=True)
    flat = spread <= FLAT * scores.abs().amax((1, 2), keepdim=True)
    return torch.where(flat, 0, scores / torch.where(flat, 1, spread))
