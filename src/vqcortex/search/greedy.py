"""Greedy search: in every round the swap of one code that helps most, found by its gradient and verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.config import raise_all
from vqcortex.results import Trace
from vqcortex.search.beam import climb, climb_problems
from vqcortex.search.objective import Objective
from vqcortex.search.problem import pose
from vqcortex.search.protocol import Regulariser, Start


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """Estimate all swaps by one gradient, verify the most promising, make the best, until nothing gets better.

    Args:
        restarts: See `Restarted`; so are seed, batch, alive.
        start: See `Starting`; so are record_every, objective.
        budget: See `Swapping`; so are candidates, path, shake, regulariser, weight.
        together: See `Climbing`.

    Source:
        Ebrahimi et al. 2018, arXiv:1712.06751 (first-order swaps of discrete tokens); Zou et al. 2023,
        arXiv:2307.15043, section 2.2 (the best of verified candidates). Where we differ: candidates are the best swaps
        over all positions and not a drawn sample, and swaps that do not touch may be made at once.

    Example:
        >>> search = Greedy(budget=200, restarts=2)
        >>> trace = search(extractor, codebook, tokens, free, target, ["a", "b"])  # doctest: +SKIP
    """

    name: ClassVar[str] = "greedy"
    restarts: int = 1
    seed: int = 0
    batch: int = 32
    alive: Bool[Tensor, " k"] | None = field(default=None, repr=False, compare=False)
    start: Start = "image"
    record_every: int = 500
    objective: Objective = "logit"
    budget: int = 600
    candidates: int = 16
    path: int = 2
    shake: float = 0.5
    regulariser: Regulariser | None = field(default=None, repr=False, compare=False)
    weight: float = 0.0
    together: int = 4

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        yield from climb_problems(self)

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
        return climb(self.name, self, 1, extractor, problem)
