"""Random codes: the control that any search has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.config import raise_all
from vqcortex.extractors.still import still
from vqcortex.results import Trace
from vqcortex.search.ascent import drawn_choice, probability_of, traced
from vqcortex.search.problem import pose
from vqcortex.search.protocol import restart_problems


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCodes:
    """Live codes drawn evenly at the free positions; the trace holds the start (step 0) and the draw (step 1).

    Args:
        restarts: See `Restarted`; so are seed, batch, alive.
    """

    name: ClassVar[str] = "random_codes"
    restarts: int = 1
    seed: int = 0
    batch: int = 32
    alive: Bool[Tensor, " k"] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        yield from restart_problems(self)

    def __call__(
        self,
        extractor: nn.Module,
        codebook: Float[Tensor, "k d"],
        tokens: Int[Tensor, "b h w"],
        free: Bool[Tensor, "rows columns"],
        target: Int[Tensor, " targets"],
        image_ids: Sequence[str],
    ) -> Trace:
        problem = pose(codebook, tokens, free, target, image_ids, alive=self.alive, restarts=self.restarts)
        grids, chances = [], []
        with still(extractor), torch.no_grad():
            for part in problem.parts(self.batch):
                drawn = part.filled(drawn_choice(self.seed, part, "random codes"))
                pair = (part.grids, drawn)
                chances.append(torch.stack([probability_of(extractor, part, one) for one in pair]))
                grids.append(drawn)
        return traced(self.name, problem, torch.cat(grids), (0, 1), torch.cat(chances, 1))
