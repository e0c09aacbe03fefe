"""Infidelity: does a map foretell what the extractor does when positions are replaced?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.config import raise_all
from vqcortex.evaluation.metrics.protocol import Reads, Score, check_lengths, checked_maps, concept_logits
from vqcortex.extractors.still import still
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Infidelity:
    """Mean squared error of (a times the sum of the scores of replaced positions) against the fall of the logit.

    The factor a is the best one that is not negative, per image: maps have no scale of their own.

    Args:
        fill: What a replaced position holds: one code (d,), or one per position (d, h, w); None: zero.
        draws: Random sets of positions per image, at least 2.
        share: The largest share of positions replaced, above 0 and at most 1; how many is drawn evenly from 1 up.
        seed: Draws depend on this and on the image id.
        at_once: Grids in one forward, at least 1; bounds memory, decides nothing.
    """

    better: ClassVar[Literal["lower"]] = "lower"
    unit: ClassVar[str] = "squared logits, 0 or more"
    source: ClassVar[str] = (
        "Yeh et al. 2019, arXiv:1901.09392, definition of infidelity, with the optimal scaling of their code and of "
        "Captum's normalize. Where we differ: whole positions are replaced, as tokens are; the factor is not negative, "
        "so that an inverted map gains nothing"
    )
    reads: ClassVar[Reads] = "method"

    fill: Float[Tensor, "d ..."] | None = field(default=None, repr=False, compare=False)
    draws: int = 100
    share: float = 0.5
    seed: int = 0
    at_once: int = 256

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
        maps = checked_maps(score(embedded, concept, image_ids), embedded)
        hidden = self.replaced(image_ids, (embedded.shape[2], embedded.shape[3])).to(embedded.device)
        foretold = (hidden * maps.double()[:, None]).flatten(2).sum(2)  # (b, s)
        fall = self._falls(extractor, embedded, hidden, concept)
        square = foretold.square().mean(1)
        factor = ((foretold * fall).mean(1) / square.where(square > 0, 1)).clamp(min=0)
        return (factor[:, None] * foretold - fall).square().mean(1).float()

    def replaced(self, image_ids: Sequence[str], grid: tuple[int, int]) -> Bool[Tensor, "b s h w"]:
        """Which positions each draw replaces, a function of (seed, image id) alone."""
        cells = grid[0] * grid[1]
        most = max(1, round(self.share * cells))
        return torch.stack([self._sets(name, cells, most) for name in image_ids]).unflatten(2, grid)

    def _sets(self, image_id: str, cells: int, most: int) -> Bool[Tensor, "s n"]:
        rng = generator_for(self.seed, image_id, "infidelity")
        count = torch.randint(1, most + 1, (self.draws, 1), generator=rng)
        return torch.rand(self.draws, cells, generator=rng).argsort(1).argsort(1) < count

    def _falls(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        hidden: Bool[Tensor, "b s h w"],
        concept: Int[Tensor, " b"],
    ) -> Float[Tensor, "b s"]:
        """Logit before minus after replacing, float64."""
        fill = embedded.new_zeros(embedded.shape[1], 1, 1) if self.fill is None else self.fill.to(embedded)
        fill = fill.reshape(embedded.shape[1], *(fill.shape[1:] or (1, 1)))
        with still(extractor), torch.no_grad():
            before = concept_logits(extractor, embedded.split(self.at_once), concept)
            image = torch.arange(len(embedded)).repeat_interleave(self.draws)
            rows = zip(image.split(self.at_once), hidden.flatten(0, 1).split(self.at_once), strict=True)
            grids = (torch.where(mask[:, None], fill, embedded[one.to(embedded.device)]) for one, mask in rows)
            after = concept_logits(extractor, grids, concept.cpu()[image])
        return before[:, None] - after.unflatten(0, (len(embedded), -1))

    def _problems(self) -> Iterator[str]:
        if self.draws < 2:
            yield f"draws={self.draws} must be at least 2"
        if not 0 < self.share <= 1:
            yield f"share={self.share} must be above 0 and at most 1"
        if self.at_once < 1:
            yield f"at_once={self.at_once} must be at least 1"
