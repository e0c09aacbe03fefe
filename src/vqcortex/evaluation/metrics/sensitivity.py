"""Max-sensitivity: how far can a map be moved by a change of the codes that is too small to mean anything?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.config import raise_all
from vqcortex.evaluation.metrics.protocol import Reads, Score, check_lengths, checked_maps
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MaxSensitivity:
    """Largest distance of the map of a perturbed image from the map of the image, over the length of the latter.

    A map of length 0 counts as one of length 1.

    Args:
        radius: The most that a number of a code is moved by, as a share of the image's value range, above 0.
        draws: Perturbations per image, drawn evenly, at least 1.
        seed: Draws depend on this and on the image id.
    """

    better: ClassVar[Literal["lower"]] = "lower"
    unit: ClassVar[str] = "share of the map's length, 0 or more"
    source: ClassVar[str] = (
        "Yeh et al. 2019, arXiv:1901.09392, definition of max-sensitivity, by Monte Carlo; divided by the map's length "
        "as Captum does. Where we differ: the radius is a share of the image's value range, not a fixed number"
    )
    reads: ClassVar[Reads] = "method"

    radius: float = 0.02
    draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def __call__(
        self,
        score: Score,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, " b"]:
        check_lengths(embedded, concept, image_ids)
        maps = checked_maps(score(embedded, concept, image_ids), embedded).double()
        farthest = maps.new_zeros(len(maps))
        for draw in range(self.draws):
            moved = embedded + self.perturbation(embedded, image_ids, draw)
            other = checked_maps(score(moved, concept, image_ids), embedded).double()
            farthest = torch.maximum(farthest, (other - maps).flatten(1).norm(dim=1))
        length = maps.flatten(1).norm(dim=1)
        return (farthest / length.where(length > 0, 1)).float()

    def perturbation(
        self, embedded: Float[Tensor, "b d h w"], image_ids: Sequence[str], draw: int
    ) -> Float[Tensor, "b d h w"]:
        """What one draw adds to each image, a function of the image and (seed, image id, draw) alone."""
        flat = embedded.flatten(1)
        reach = self.radius * (flat.amax(1) - flat.amin(1))
        drawn = [
            torch.rand(embedded.shape[1:], generator=generator_for(self.seed, name, "sensitivity", draw))
            for name in image_ids
        ]
        return reach[:, None, None, None] * (2 * torch.stack(drawn).to(embedded) - 1)

    def _problems(self) -> Iterator[str]:
        if not self.radius > 0:
            yield f"radius={self.radius} must be above 0"
        if self.draws < 1:
            yield f"draws={self.draws} must be at least 1"
