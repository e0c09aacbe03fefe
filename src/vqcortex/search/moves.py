"""The moves that every search by swaps shares: where it starts, which swaps look good, what they are really worth."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.errors import ConfigError
from vqcortex.search.ascent import drawn_choice, start_choice
from vqcortex.search.objective import value_of
from vqcortex.search.problem import Problem, embed, logits_of, nearest, slope_of
from vqcortex.search.protocol import Swapping
from vqcortex.seeds import generator_for

GRADIENT = 2  # passes: one forward, one backward
COLOURS = 2  # per axis: positions of one colour never touch, not even at a corner
LEVELS = 1 << 12  # steps in which estimates are told apart: equal codes tie exactly, whatever else is in the batch
SHARE = 2  # times its share of the candidates that a position gets at most, or one would have them all
FINENESS = 1e-4  # and values, in units of the objective


@final
@dataclass(frozen=True, slots=True)
class Grids:
    """Some grids per row of a problem, and what they are worth.

    Args:
        choice: Live codes (0..a-1) at the free positions.
        value: Objective and weighted regulariser together; minus infinity where a place is empty.
        chance: The extractor's probability of the target.
    """

    choice: Int[Tensor, "m w n"]
    value: Float[Tensor, "m w"]
    chance: Float[Tensor, "m w"]

    def take(self, rows: Int[Tensor, " some"]) -> Grids:
        """Those of these rows."""
        return Grids(*(getattr(self, one.name)[rows] for one in fields(self)))

    def put(self, rows: Int[Tensor, " some"], new: Grids) -> Grids:
        """The same with other grids in these rows."""
        return Grids(*(getattr(self, one.name).index_copy(0, rows, getattr(new, one.name)) for one in fields(self)))

    def pick(self, at: Int[Tensor, "m x"]) -> Grids:
        """Those at these places of each row."""
        choice = self.choice.gather(1, at[..., None].expand(-1, -1, self.choice.shape[2]))
        return Grids(choice, self.value.gather(1, at), self.chance.gather(1, at))

    def beside(self, *others: Grids) -> Grids:
        """These, then the others, in the same rows."""
        every = (self, *others)
        return Grids(*(torch.cat([getattr(some, one.name) for some in every], 1) for one in fields(self)))


@final
@dataclass(frozen=True, slots=True)
class Moves:
    """What swaps of single codes do to a problem's grids.

    Args:
        settings: Of the search.
        extractor: Held still.
        problem: Its rows.
    """

    settings: Swapping
    extractor: nn.Module
    problem: Problem

    def of(self, rows: Int[Tensor, " some"]) -> Moves:
        """The same for some rows."""
        return Moves(self.settings, self.extractor, self.problem.take(rows))

    @property
    def most(self) -> int:
        """Candidates per grid: as many as asked for, or all swaps there are."""
        _, places, codes = self.problem.shape
        return min(self.settings.candidates, places * (codes - 1))

    def start(self) -> Grids:
        """One grid per row; one pass each."""
        return self.measured(start_codes(self.settings, self.problem)[:, None])

    def measured(self, choice: Int[Tensor, "m w n"]) -> Grids:
        """What these grids are worth, exactly: one pass each."""
        rows = torch.arange(len(choice), device=choice.device).repeat_interleave(choice.shape[1])
        parts = zip(rows.split(self.settings.batch), choice.flatten(0, 1).split(self.settings.batch), strict=True)
        value, chance = torch.cat([self._worth(self.problem.take(some), one) for some, one in parts], 1)
        return Grids(choice, value.view(choice.shape[:2]), chance.view(choice.shape[:2]))

    def _worth(self, problem: Problem, choice: Int[Tensor, "x n"]) -> Float[Tensor, "2 x"]:
        """Value and chance."""
        grids = problem.filled(choice)
        logits = logits_of(self.extractor, embed(grids, problem.codebook), problem.target)
        value = value_of(logits, problem.target, self.settings.objective)
        if self.settings.weight and self.settings.regulariser is not None:
            value = value + self.settings.weight * self.settings.regulariser(grids, problem.target)
        return torch.stack([value, logits.softmax(1).gather(1, problem.target[:, None])[:, 0]])

    @property
    def gradients(self) -> int:
        """Passes that the estimate of all swaps of one grid takes."""
        return GRADIENT * max(1, self.settings.path * len(self._colours()))

    def _colours(self) -> list[Bool[Tensor, " n"]]:
        """The free positions in parts, no two of one part side by side."""
        rows, columns = self.problem.places
        colour = rows % COLOURS * COLOURS + columns % COLOURS
        return [colour == one for one in colour.unique()]

    def estimated(self, choice: Int[Tensor, "m n"]) -> Float[Tensor, "m n a"]:
        """First-order change of the value when a live code is put at a place: `gradients` passes for all of them."""
        rows = torch.arange(len(choice), device=choice.device).split(self.settings.batch)
        return torch.cat([self._estimates(self.problem.take(some), choice[some]) for some in rows])

    def _estimates(self, problem: Problem, choice: Int[Tensor, "x n"]) -> Float[Tensor, "x n a"]:
        grids = problem.filled(choice)
        pull = self._slope(problem, grids, problem.codes[choice]) @ problem.codes.T
        change = pull.sub_(pull.gather(2, choice[..., None]))
        if self.settings.weight and self.settings.regulariser is not None:
            swaps = self.settings.regulariser.swaps(grids, problem.target, problem.places, problem.live)
            change.add_(swaps, alpha=self.settings.weight)
        return change

    def _slope(
        self, problem: Problem, grids: Int[Tensor, "x h w"], standing: Float[Tensor, "x n d"]
    ) -> Float[Tensor, "x n d"]:
        """Gradient at the free positions: where they stand, or its mean over the way to the mean code."""
        embedded, steps = embed(grids, problem.codebook), self.settings.path
        if not steps:
            return self._gradient(problem, embedded, standing)
        slope = torch.zeros_like(standing)
        away = problem.codes.mean(0) - standing
        for part in self._colours():
            for step in range(steps):
                moved = standing + (step + 0.5) / steps * part[:, None] * away
                slope[:, part] += self._gradient(problem, embedded, moved)[:, part] / steps
        return slope

    def _gradient(
        self, problem: Problem, embedded: Float[Tensor, "x d h w"], point: Float[Tensor, "x n d"]
    ) -> Float[Tensor, "x n d"]:
        rows, columns = problem.places
        embedded[:, :, rows, columns] = point.transpose(1, 2)
        slope = slope_of(self.extractor, embedded, problem.target, objective=self.settings.objective)
        return slope[:, :, rows, columns].transpose(1, 2)

    def promising(
        self, choice: Int[Tensor, "m n"], count: int
    ) -> tuple[Int[Tensor, "m x"], Int[Tensor, "m x"], Float[Tensor, "m x"]]:
        """The swaps with the best estimates, best first: their places (0..n-1), their live codes, the estimates.

        No position has more than `SHARE` times its share of them, as long as there are others. Of swaps whose estimates
        differ by less than one of `LEVELS` steps the first in the table comes first.
        """
        change = self.estimated(choice)
        cells = change[0].numel()
        scale = change.nan_to_num(0, 0, 0).abs().amax((1, 2), keepdim=True).clamp_(min=1e-30)
        level = (change / scale).clamp_(-1, 1).mul_(LEVELS).round_().long() + LEVELS + 1
        level.scatter_(2, choice[..., None], 0)  # what stands there is no swap
        order = level.flatten(1).mul_(cells).add_(torch.arange(cells - 1, -1, -1, device=change.device))
        order = _spread(order.view(change.shape), -(-SHARE * count // change.shape[1])).flatten(1)
        best = order.topk(count, dim=1).indices
        return best // change.shape[2], best % change.shape[2], change.flatten(1).gather(1, best)


def check_regulariser(settings: Swapping, problem: Problem) -> None:
    """Return quietly, or raise a ConfigError when the regulariser speaks of another codebook."""
    asked, codes = settings.regulariser, len(problem.codebook)
    if settings.weight and asked is not None and asked.codes != codes:
        raise ConfigError(
            f"the regulariser knows {asked.codes} codes but the codebook has {codes}; make it from this model's tokens"
        )


def start_codes(settings: Swapping, problem: Problem) -> Int[Tensor, "m n"]:
    """Live codes (0..a-1) where a search by swaps begins; at the mean, the live code nearest to it."""
    rows, places, _ = problem.shape
    choice = start_choice(settings, problem)
    if choice is None:
        middle = nearest(problem.codes.mean(0, keepdim=True), problem.codes)
        choice = middle.expand(rows, places)
    even = [torch.rand(places, generator=generator_for(settings.seed, *key, "shake")) for key in problem.keys]
    later = torch.tensor([restart > 0 for _, restart in problem.keys])
    is_shaken = (torch.stack(even) < settings.shake) & later[:, None]
    return torch.where(is_shaken.to(choice.device), drawn_choice(settings.seed, problem, "shaken codes"), choice)


def swapped(choice: Int[Tensor, "m n"], place: Int[Tensor, "m x"], code: Int[Tensor, "m x"]) -> Int[Tensor, "m x n"]:
    """The grids with one of the swaps each."""
    return choice[:, None].repeat(1, place.shape[1], 1).scatter_(2, place[..., None], code[..., None])


def _spread(order: Int[Tensor, "m n a"], most: int) -> Int[Tensor, "m n a"]:
    """The same order for the best `most` of each position, and behind all of them the rest."""
    last = order.topk(min(most, order.shape[2]), dim=2).values[..., -1:]
    return torch.where(order >= last, order, order - (order.amax() + 1))


def held(at: Sequence[int], passes: Sequence[int], chances: Sequence[Tensor]) -> Float[Tensor, "s m"]:
    """The probability that stood at each number of passes in `at`, of those measured after `passes`, ascending."""
    return torch.stack([chances[max(bisect_right(passes, step) - 1, 0)] for step in at])
