"""The loop that every gradient search shares, and the start they share: only the variables differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.extractors.still import still
from vqcortex.results import Trace
from vqcortex.search.objective import Objective
from vqcortex.search.problem import Problem, embed, logits_of, nearest, slope_of
from vqcortex.search.protocol import Ascending, Starting, recorded
from vqcortex.seeds import generator_for

LOGITS_AT_ONCE = 1 << 25  # rows x positions x codes: 128 MB a copy, and a step holds about seven


@runtime_checkable
class Variables(Protocol):
    """What a search moves: parameters for the free positions only."""

    def propose(self, step: int) -> Float[Tensor, "m n d"]:
        """Embedding to try at the free positions at this step, counted from 0."""
        ...

    def improve(self, gradient: Float[Tensor, "m n d"]) -> None:
        """Take one step uphill, given the gradient of the target's logit at what was proposed."""
        ...

    def decode(self) -> Int[Tensor, "m n"]:
        """The live code (0..a-1) that each free position now stands for."""
        ...


def ascend(
    strategy: str,
    settings: Ascending,
    variables: Callable[[Problem], Variables],
    extractor: nn.Module,
    problem: Problem,
) -> Trace:
    """Run a gradient search over all rows, `settings.batch` at a time."""
    at = recorded(settings.steps, settings.record_every)
    grids, chances = [], []
    with still(extractor), torch.no_grad():
        for part in problem.parts(rows_at_once(settings.batch, problem)):
            moved = variables(part)
            chances.append(torch.stack(list(_climb(extractor, part, moved, at, settings.objective))))
            grids.append(part.filled(moved.decode()))
    return traced(strategy, problem, torch.cat(grids), at, torch.cat(chances, 1))


def rows_at_once(batch: int, problem: Problem) -> int:
    """Return the rows that run together: `batch`, or fewer where their logits would not fit in memory."""
    _, places, codes = problem.shape
    return max(1, min(batch, LOGITS_AT_ONCE // (places * codes)))


def _climb(
    extractor: nn.Module, problem: Problem, moved: Variables, at: tuple[int, ...], objective: Objective
) -> Iterator[Tensor]:
    """Step to each of the numbers in `at` and yield the target's probability there, (m,)."""
    rows, columns = problem.places
    embedded = problem.embedded()
    yield probability_of(extractor, problem, problem.filled(moved.decode()))
    for first, last in pairwise(at):
        for step in range(first, last):
            embedded[:, :, rows, columns] = moved.propose(step).transpose(1, 2)
            slope = slope_of(extractor, embedded, problem.target, objective=objective)
            moved.improve(slope[:, :, rows, columns].transpose(1, 2))
        yield probability_of(extractor, problem, problem.filled(moved.decode()))


def probability_of(extractor: nn.Module, problem: Problem, grids: Int[Tensor, "m h w"]) -> Float[Tensor, " m"]:
    """Probability that the extractor gives the target for these grids; raises as `logits_of` does."""
    logits = logits_of(extractor, embed(grids, problem.codebook), problem.target)
    return logits.softmax(1).gather(1, problem.target[:, None])[:, 0]


def traced(
    strategy: str,
    problem: Problem,
    grids: Int[Tensor, "m h w"],
    steps: tuple[int, ...],
    probability: Float[Tensor, "s m"],
) -> Trace:
    """Fold rows back into images and restarts."""
    restarts = 1 + max(restart for _, restart in problem.keys)
    free = torch.zeros(grids.shape[1:], dtype=torch.bool, device=grids.device)
    free[problem.places] = True
    return Trace(
        strategy=strategy,
        tokens=grids.view(-1, restarts, *grids.shape[1:]),
        start=problem.grids[::restarts],
        free=free,
        target=problem.target[::restarts],
        steps=steps,
        probability=probability.view(len(steps), -1, restarts),
    )


def start_choice(settings: Starting, problem: Problem) -> Int[Tensor, "m n"] | None:
    """Live codes (0..a-1) where a search begins; None: at no code, but at their mean.

    A dead code in an image is replaced by the nearest live one.
    """
    if settings.start == "mean":
        return None
    if settings.start == "random":
        return drawn_choice(settings.seed, problem, "start codes")
    place = torch.full((len(problem.codebook),), -1, device=problem.live.device)
    place[problem.live] = torch.arange(len(problem.live), device=problem.live.device)
    tokens = problem.free_tokens()
    known = place[tokens]
    return torch.where(known >= 0, known, nearest(problem.codebook[tokens], problem.codes))


def drawn_choice(seed: int, problem: Problem, purpose: str) -> Int[Tensor, "m n"]:
    """Live codes drawn evenly for every row and free position."""
    _, places, codes = problem.shape
    draws = [torch.randint(codes, (places,), generator=generator_for(seed, *key, purpose)) for key in problem.keys]
    return torch.stack(draws).to(problem.live.device)


def perturbation(settings: Ascending, problem: Problem) -> Float[Tensor, "m n a"]:
    """One normal draw for every row, free position and live code, times `spread`; the same for every search."""
    shape = problem.shape[1:]
    if not settings.spread:
        return torch.zeros(len(problem.keys), *shape, device=problem.codebook.device)
    draws = [torch.randn(shape, generator=generator_for(settings.seed, *key, "start")) for key in problem.keys]
    return settings.spread * torch.stack(draws).to(problem.codebook.device)
