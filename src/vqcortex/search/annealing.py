"""Simulated annealing over swaps of single codes, proposed where the gradient points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.config import raise_all
from vqcortex.extractors.still import still
from vqcortex.results import Trace
from vqcortex.search.ascent import rows_at_once, traced
from vqcortex.search.moves import FINENESS, Grids, Moves, check_regulariser, held, swapped
from vqcortex.search.objective import Objective
from vqcortex.search.problem import Problem, pose
from vqcortex.search.protocol import Regulariser, Start, recorded, swap_problems
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Annealing:
    """Draw a swap among the most promising, make it if it helps or, the colder the rarer, even if it harms.

    The result is the best grid met, by the search's own objective.

    Args:
        restarts: See `Restarted`; so are seed, batch, alive.
        start: See `Starting`; so are record_every, objective.
        budget: See `Swapping`; so are candidates, path, shake, regulariser, weight.
        hot: Temperature at the first pass, in units of the objective, above 0.
        cold: At the last, above 0 and at most `hot`; geometric in between.
        refresh: Swaps drawn between two gradients, at least 1.

    Source:
        Kirkpatrick et al. 1983, Optimization by Simulated Annealing, Science 220. Where we differ: swaps are drawn in
        proportion to exp(estimate / temperature) among the candidates, and that is not corrected for when one is
        accepted, so this is a search and no sampler.
    """

    name: ClassVar[str] = "annealing"
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
    hot: float = 1.0
    cold: float = 0.01
    refresh: int = 8

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        yield from swap_problems(self)
        if not 0 < self.cold <= self.hot < math.inf:
            yield f"hot={self.hot} and cold={self.cold} must be above 0 and finite, cold at most hot"
        if self.refresh < 1:
            yield f"refresh={self.refresh} must be at least 1"

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
        check_regulariser(self, problem)
        at = recorded(self.budget, self.record_every)
        grids, chances = [], []
        with still(extractor), torch.no_grad():
            for part in problem.parts(rows_at_once(self.batch, problem)):
                best, seen = _cooled(self, Moves(self, extractor, part))
                chances.append(held(at, *seen))
                grids.append(part.filled(best))
        return traced(self.name, problem, torch.cat(grids), at, torch.cat(chances, 1))


def _cooled(settings: Annealing, moves: Moves) -> tuple[Int[Tensor, "m n"], tuple[list[int], list[Tensor]]]:
    """The best grid met in every row; and after how many passes each row's best grid had which probability."""
    now = best = moves.start()
    draws = _draws(settings, moves.problem)
    used, drawn = 1, 0
    passes, chances = [used], [best.chance[:, 0]]
    while moves.most and settings.budget - used > moves.gradients:
        place, code, estimate = moves.promising(now.choice[:, 0], moves.most)
        used += moves.gradients
        for _ in range(min(settings.refresh, settings.budget - used)):
            heat = temperature_after(used, settings)
            at = picked(estimate / heat, draws[:, drawn, 0])[:, None]
            new = moves.measured(swapped(now.choice[:, 0], place.gather(1, at), code.gather(1, at)))
            now = _either(draws[:, drawn, 1:] < ((new.value - now.value) / heat).exp(), new, now)
            best = _either(now.value > best.value + FINENESS, now, best)
            used, drawn = used + 1, drawn + 1
            passes.append(used)
            chances.append(best.chance[:, 0])
    return best.choice[:, 0], (passes, chances)


def _draws(settings: Annealing, problem: Problem) -> Float[Tensor, "m x 2"]:
    """Even numbers in [0, 1), from each row's own generator: which swap, and whether it is made."""
    rows = [torch.rand(settings.budget, 2, generator=generator_for(settings.seed, *key, "annealing"))
            for key in problem.keys]  # fmt: skip
    return torch.stack(rows).to(problem.codebook.device)


def temperature_after(passes: int, settings: Annealing) -> float:
    """Temperature after so many passes of the budget, `hot` at 0 and `cold` at the budget.

    Example:
        >>> temperature_after(50, Annealing(budget=100, hot=4.0, cold=1.0))
        2.0
    """
    return settings.hot * (settings.cold / settings.hot) ** (passes / settings.budget)


def picked(weights: Float[Tensor, "m x"], even: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
    """One index per row, drawn in proportion to exp(weight) through the cumulative distribution."""
    cumulative = weights.double().softmax(1).cumsum(1)
    wanted = even.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _either(is_first: Bool[Tensor, "m 1"], first: Grids, second: Grids) -> Grids:
    """The first where it is wanted, else the second."""
    return Grids(
        torch.where(is_first[..., None], first.choice, second.choice),
        torch.where(is_first, first.value, second.value),
        torch.where(is_first, first.chance, second.chance),
    )
