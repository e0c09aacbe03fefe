"""Beam search over swaps of single codes; with one grid in the beam it is the greedy search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, final, runtime_checkable

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
from vqcortex.search.protocol import Regulariser, Start, Swapping, recorded, swap_problems
from vqcortex.seeds import generator_for


@runtime_checkable
class Climbing(Swapping, Protocol):
    """Settings of a search that takes the best of the swaps it verified.

    Args:
        together: Swaps of one round that may be made at once, best first, no two of them side by side, at least 1; they
            are made when that is better than the best of them alone.
    """

    @property
    def together(self) -> int: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """Keep the best few grids; in every round verify the most promising swaps of each, until nothing gets better.

    Args:
        restarts: See `Restarted`; so are seed, batch, alive.
        start: See `Starting`; so are record_every, objective.
        budget: See `Swapping`; so are candidates, path, shake, regulariser, weight.
        together: See `Climbing`.
        width: Grids kept, at least 1.
    """

    name: ClassVar[str] = "beam"
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
    width: int = 4

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        yield from climb_problems(self)
        if self.width < 1:
            yield f"width={self.width} must be at least 1"

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
        return climb(self.name, self, self.width, extractor, problem)


def climb_problems(settings: Climbing) -> Iterator[str]:
    """Say what is wrong with the settings of a search that takes the best swaps, one sentence each."""
    yield from swap_problems(settings)
    if settings.together < 1:
        yield f"together={settings.together} must be at least 1"


def climb(strategy: str, settings: Climbing, width: int, extractor: nn.Module, problem: Problem) -> Trace:
    """Run a beam search over all rows, as many at a time as `settings.batch` grids."""
    check_regulariser(settings, problem)
    at = recorded(settings.budget, settings.record_every)
    grids, chances = [], []
    with still(extractor), torch.no_grad():
        for part in problem.parts(rows_at_once(max(1, settings.batch // width), problem)):
            best, seen = _climbed(Moves(settings, extractor, part), settings, width)
            chances.append(held(at, *seen))
            grids.append(part.filled(best))
    return traced(strategy, problem, torch.cat(grids), at, torch.cat(chances, 1))


def _climbed(moves: Moves, settings: Climbing, width: int) -> tuple[Int[Tensor, "m n"], tuple[list[int], list[Tensor]]]:
    """The best grid of every row; and after how many passes each row's best grid had which probability."""
    beam = moves.start()
    used, wide = 1, 1
    passes, chances = [used], [beam.chance[:, 0]]
    active = torch.arange(len(beam.value), device=beam.value.device)
    while len(active) and (count := _affordable(moves, settings, used, wide)):
        grown = _grown(moves.of(active), settings, beam.take(active), count, width)
        is_same = (grown.value == _padded(beam, width).take(active).value).all(1)
        beam = _padded(beam, width).put(active, grown)
        active = active[~is_same]
        used += wide * (moves.gradients + count + (settings.together > 1))
        wide = width
        passes.append(used)
        chances.append(beam.chance[:, 0])
    return beam.choice[:, 0], (passes, chances)


def _affordable(moves: Moves, settings: Climbing, used: int, wide: int) -> int:
    """Candidates of each grid that the budget still pays for, besides its gradient and the swaps made at once."""
    each = (settings.budget - used) // wide - moves.gradients - (settings.together > 1)
    return max(0, min(moves.most, each))


def _padded(beam: Grids, width: int) -> Grids:
    """The beam at its full width; the empty places are worth minus infinity."""
    rows, wide, places = beam.choice.shape
    if wide == width:
        return beam
    empty = beam.value.new_full((rows, width - wide), -torch.inf)
    return beam.beside(Grids(beam.choice[:, :1].expand(-1, width - wide, places), empty, empty))


def _grown(moves: Moves, settings: Climbing, beam: Grids, count: int, width: int) -> Grids:
    """The best `width` different grids among the beam's and all that were verified from them."""
    rows, wide, places = beam.choice.shape
    parents = moves.of(torch.arange(rows, device=beam.value.device).repeat_interleave(wide))
    before = beam.choice.flatten(0, 1)
    place, code, _ = parents.promising(before, count)
    found = parents.measured(swapped(before, place, code))
    if settings.together > 1:
        gain = found.value - beam.value.view(-1, 1)
        joint = _joined(before, place, code, gain, _side_by_side(moves.problem), settings.together)
        found = found.beside(parents.measured(joint[:, None]))
    orphans = beam.value.view(-1, 1) == -torch.inf
    new = Grids(
        found.choice.view(rows, -1, places),
        found.value.masked_fill(orphans, -torch.inf).view(rows, -1),
        found.chance.view(rows, -1),
    )
    return _best(_padded(beam, width).beside(new), width)


def _joined(
    choice: Int[Tensor, "m n"],
    place: Int[Tensor, "m x"],
    code: Int[Tensor, "m x"],
    gain: Float[Tensor, "m x"],
    side_by_side: Bool[Tensor, "n n"],
    most: int,
) -> Int[Tensor, "m n"]:
    """The grids with up to `most` of the swaps that help, best first, no two of them at one place or side by side."""
    order = _in_steps(gain).sort(dim=1, descending=True, stable=True).indices
    choice = choice.clone()
    is_closed = torch.zeros_like(choice, dtype=torch.bool)
    taken = torch.zeros(len(choice), dtype=torch.int64, device=choice.device)
    for at in order.unbind(1):
        here = place.gather(1, at[:, None])
        is_good = _in_steps(gain).gather(1, at[:, None])[:, 0] > 0
        is_good &= ~is_closed.gather(1, here)[:, 0] & (taken < most)
        old, new = choice.gather(1, here), code.gather(1, at[:, None])
        choice.scatter_(1, here, torch.where(is_good[:, None], new, old))
        is_closed |= side_by_side[here[:, 0]] & is_good[:, None]
        taken += is_good
    return choice


def _side_by_side(problem: Problem) -> Bool[Tensor, "n n"]:
    """Which free positions touch, a position itself included."""
    row, column = problem.places
    return (row[:, None] - row).abs() + (column[:, None] - column).abs() <= 1


def _best(grids: Grids, width: int) -> Grids:
    """The best grids, best first, none twice; of equals the first."""
    grids = grids.pick(_in_steps(grids.value).sort(dim=1, descending=True, stable=True).indices)
    mark = _marks(grids.choice)
    is_twice = (mark[:, :, None] == mark[:, None]).tril(-1).any(2)
    kept = grids.pick(is_twice.long().sort(dim=1, stable=True).indices[:, :width])
    is_full = torch.arange(width, device=mark.device) < (~is_twice).sum(1, keepdim=True)
    return Grids(kept.choice, kept.value.masked_fill(~is_full, -torch.inf), kept.chance)


def _in_steps(value: Tensor) -> Tensor:
    return (value / FINENESS).round()


def _marks(choice: Int[Tensor, "m w n"]) -> Int[Tensor, "m w"]:
    """A number per grid that equal grids share and others, but for a chance of 1 in 2**64, do not."""
    some = torch.randint(-(2**62), 2**62, choice.shape[2:], generator=generator_for(0, "marks of grids"))
    return ((choice + 1) * some.to(choice.device)).sum(2)
