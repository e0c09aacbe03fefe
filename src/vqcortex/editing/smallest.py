"""The smallest edit: the fewest swaps that make every chooser put the target first, within a leak budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.config import raise_all
from vqcortex.editing.protocol import AT_ONCE, Means, Task, check_task, embed, leads, needed

SHARE = 2  # times its share of the candidates that a position gets at most, or one would have them all
MORE = 4  # times as many candidates where the first ones did not help
COLOURS = 2  # per axis: positions of one colour never touch, not even at a corner
DIGITS = 4  # decimals by which values are told apart, in nats: rounding must not decide between equals


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Smallest:
    """Swap one token at a time, always the one that helps the choosers most, until all of them are sure; then take
    back every swap that they do not miss.

    A round estimates all swaps by gradients, taken along the way from what stands there to the mean code, and verifies
    the most promising by a forward each. A chooser that is sure adds nothing more, so that no single one is pleased at
    the others' cost.

    Args:
        sureness: Lead of the target with which a chooser is content, in nats; 0: as likely as what it must beat.
        over: What it must beat: "source", the concept shown before, or "others", every other concept.
        budget: Mean absolute change of a pixel outside the region and its footprint at most, 0 to 1; None: any.
        most: Tokens changed at most; 0: the whole region.
        candidates: Swaps verified per round, at least 1.
        path: Points at which the gradient is taken, at least 1.

    Source:
        Ebrahimi et al. 2018, arXiv:1712.06751 (first-order swaps of discrete tokens). Where we differ: several
        choosers, of which each counts up to its sureness only; swaps that are no longer needed are taken back.
    """

    name: ClassVar[str] = "smallest"
    sureness: float = 5.0
    over: str = "source"
    budget: float | None = None
    most: int = 0
    candidates: int = 64
    path: int = 2

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        if not 0 <= self.sureness < math.inf:
            yield f"sureness={self.sureness} must be at least 0 and finite"
        if self.over not in (known := ("source", "others")):
            yield f"over={self.over!r} must be one of {', '.join(known)}"
        if self.budget is not None and not self.budget >= 0:
            yield f"budget={self.budget} must be at least 0"
        for name, least in {"most": 0, "candidates": 1, "path": 1}.items():
            if getattr(self, name) < least:
                yield f"{name}={getattr(self, name)} must be at least {least}"

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        check_task(task, means)
        needed(means.choosers, self.name, "somebody who chooses", "name extractors or judges with --chosen-by")
        if self.budget is not None:
            needed(means.decode, self.name, "a decoder to keep a leak budget", "leave the budget out")
        found = task.tokens.clone()
        value = self.values(task, found[:, None], means)[:, 0]
        most = task.free.flatten(1).sum(1)  # each image's own: its company must not give it more rounds
        for done in range(self.most or int(most.max())):
            may = torch.ones_like(most, dtype=torch.bool) if self.most else most > done
            rows = (~self._is_content(value) & may).nonzero()[:, 0].tolist()
            if not rows:
                break
            better, worth = self._step(task.take(rows), found[rows], value[rows], means)
            if torch.equal(better, found[rows]):
                break
            found[rows], value[rows] = better, worth
        return self._taken_back(task, found, value, means)

    def values(self, task: Task, grids: Int[Tensor, "b x h w"], means: Means) -> Float[Tensor, "b x"]:
        """What x grids of each image are worth: mean lead over the choosers, each at most its sureness, in nats."""
        images, each = grids.shape[:2]
        flat = grids.flatten(0, 1)
        source, target = (one.repeat_interleave(each) for one in (task.source, task.target))
        rows = torch.arange(len(flat), device=flat.device)
        with torch.no_grad():
            parts = [
                self._content(means, embed(flat[some], means.codebook), source[some], target[some])
                for some in rows.split(AT_ONCE)
            ]
        return torch.cat(parts).view(images, each)

    def _is_content(self, value: Tensor) -> Bool[Tensor, " b"]:
        """Whether every chooser is sure: only then is the mean of what counts as large as it can be."""
        return value >= self._content_with

    @property
    def _content_with(self) -> float:
        return self.sureness - 10**-DIGITS

    def _content(self, means: Means, embedded: Tensor, source: Tensor, target: Tensor) -> Float[Tensor, " b"]:
        lead = leads(means.choosers, embedded, source, target, self.over)
        return lead.clamp(max=self.sureness).mean(0)

    def _best(
        self, task: Task, grids: Int[Tensor, "b x h w"], worth: Float[Tensor, "b x"], least: Tensor, means: Means
    ) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
        """The best grid of each image that keeps the budget, and its worth: minus infinity if none is worth `least`.

        Decoding is dear, so that it is asked of the best first, and of ever more of the others only where that leaks.
        """
        order = worth.round(decimals=DIGITS).sort(dim=1, descending=True, stable=True).indices
        worth, each = worth.gather(1, order), torch.arange(len(grids), device=grids.device)
        # Up to the first that is not: the order is by rounded worth, and an image must not hang on its company.
        enough = (worth >= least[:, None]).int().cummin(1).values.bool()
        keeps = enough.clone() if self.budget is None else torch.zeros_like(enough)
        rows, done, number = each[~keeps.any(1)], 0, 1
        while (asked := enough[rows, done : done + number]).any():
            row, place = asked.nonzero(as_tuple=True)
            row, place = rows[row], place + done
            keeps[row, place] = ~self._leaks(task.take(row.tolist()), grids[row, order[row, place]], means)
            rows, done, number = rows[~keeps[rows].any(1)], done + number, MORE * number
        best = keeps.int().argmax(1)
        return order[each, best], worth[each, best].where(keeps.any(1), -torch.inf)

    def _leaks(self, task: Task, grids: Int[Tensor, "b h w"], means: Means) -> Bool[Tensor, " b"]:
        """Whether a grid changes the pixels outside by more than the budget."""
        assert self.budget is not None
        assert means.decode is not None
        found = torch.zeros(len(grids), dtype=torch.bool, device=grids.device)
        if task.inside is None:
            return found
        outside = ~task.inside
        rows = outside.flatten(1).any(1).nonzero()[:, 0]  # of a whole grid there is nothing to decode for
        for some in rows.split(AT_ONCE // 2) if len(rows) else ():
            with torch.no_grad():
                shown = means.decode(embed(torch.cat([task.tokens[some], grids[some]]), means.codebook))
            away = (shown[len(some) :] - shown[: len(some)]).abs().mean(1) * outside[some]
            found[some] = away.sum((1, 2)) / outside[some].sum((1, 2)) > self.budget
        return found

    def _step(self, task: Task, found: Tensor, value: Tensor, means: Means) -> tuple[Tensor, Tensor]:
        """The best verified swap of each image, where it helps."""
        chosen, worth = self._tried(task, found, value, means, self.candidates)
        # Where nothing helped, more is tried: estimates may be poor.
        rows = (worth == value).nonzero()[:, 0].tolist()
        if rows:
            part = task.take(rows)
            chosen[rows], worth[rows] = self._tried(part, found[rows], value[rows], means, MORE * self.candidates)
        return chosen, worth

    def _tried(self, task: Task, found: Tensor, value: Tensor, means: Means, count: int) -> tuple[Tensor, Tensor]:
        place, code = self.promising(task, found, means, count)
        tried = found[:, None].repeat(1, place.shape[1], 1, 1).flatten(2)
        tried = tried.scatter_(2, place[..., None], code[..., None]).view(len(found), -1, *found.shape[1:])
        least = value + 10**-DIGITS
        best, worth = self._best(task, tried, self.values(task, tried, means), least, means)
        gains, each = worth > least, torch.arange(len(found), device=found.device)
        chosen = torch.where(gains[:, None, None], tried[each, best], found)
        return chosen, torch.where(gains, worth, value)

    def promising(
        self, task: Task, found: Tensor, means: Means, count: int
    ) -> tuple[Int[Tensor, "b x"], Int[Tensor, "b x"]]:
        """Positions (0..h*w-1) and codes of the `count` swaps with the best estimates, best first."""
        cells = task.free.shape[1] * task.free.shape[2]
        change = self.estimates(task, found, means)
        change = change.masked_fill(~task.free[:, None], -torch.inf).scatter(1, found[:, None], -torch.inf)
        flat = change.flatten(2)  # (b, k, cells)
        count = min(count, len(means.codebook) * cells)
        # Of each position so many, by the size of the image's own region.
        free = task.free.flatten(1).sum(1).clamp(min=1)
        each = ((SHARE * count + free - 1) // free).clamp(max=len(means.codebook))  # rounded up
        best, codes = flat.topk(int(each.max()), dim=1)
        beyond = torch.arange(int(each.max()), device=flat.device) >= each[:, None]  # (b, codes)
        estimate = best.masked_fill(beyond[:, :, None], -torch.inf).flatten(1)
        order = estimate.topk(min(count, estimate.shape[1]), dim=1).indices
        place, code = order % cells, codes.flatten(1).gather(1, order)
        usable = estimate.gather(1, order) > -torch.inf
        # Where there are fewer swaps than candidates, what stands there is tried again: it gains nothing.
        return place, torch.where(usable, code, found.flatten(1).gather(1, place))

    def estimates(self, task: Task, found: Tensor, means: Means) -> Float[Tensor, "b k h w"]:
        """First-order gain of every live code at every position, in nats; minus infinity for other codes."""
        change = torch.einsum("bdhw,kd->bkhw", self.slopes(task, found, means), means.codebook)
        change = change - change.gather(1, found[:, None])
        return change.masked_fill(~means.alive[None, :, None, None], -torch.inf)

    def slopes(self, task: Task, found: Tensor, means: Means) -> Float[Tensor, "b d h w"]:
        """Gradient of the leads that still count, its mean over the way from the codes to the mean code.

        Positions that touch do not go at once: each is looked at while its neighbours are what they are.
        """
        middle, here = means.codebook[means.alive].mean(0)[None, :, None, None], embed(found, means.codebook)
        goes = task.free & colours(found.shape[1:]).to(found.device)[:, None]  # (c, b, h, w)
        goes = goes[goes.flatten(1).any(1), :, None]
        steps = (torch.arange(self.path, device=found.device) + 0.5) / self.path
        points = here + steps[:, None, None, None, None, None] * goes * (middle - here)  # (s, c, b, d, h, w)
        many = points.flatten(0, 2).requires_grad_()
        source, target = (one.repeat(len(many) // len(found)) for one in (task.source, task.target))
        with torch.enable_grad():
            lead = leads(means.choosers, many, source, target, self.over)
            (slope,) = torch.autograd.grad(lead.clamp(max=self.sureness).mean(0).sum(), many)
        return (slope.view_as(points) * goes).sum((0, 1)) / self.path

    def _taken_back(self, task: Task, found: Tensor, value: Tensor, means: Means) -> Tensor:
        """Without the swaps that no chooser misses, one after the other, of images where all are content."""
        found, rows = found.clone(), self._is_content(value).nonzero()[:, 0].tolist()
        while rows:
            part = task.take(rows)
            flat, before = found[rows].flatten(1), part.tokens.flatten(1)
            eye = torch.eye(flat.shape[1], dtype=torch.bool, device=flat.device)
            changed = flat != before
            most = int(changed.sum(1).max())
            if not most:
                break
            place = changed.int().topk(most, dim=1, sorted=True).indices.sort(1).values
            back = torch.where(eye[place], before[:, None], flat[:, None]).unflatten(2, found.shape[1:])
            worth = self.values(part, back, means).masked_fill(~changed.gather(1, place), -torch.inf)
            best, worth = self._best(part, back, worth, torch.full_like(worth[:, 0], self._content_with), means)
            kept, each = self._is_content(worth), torch.arange(len(rows), device=flat.device)
            rows = [row for row, is_kept in zip(rows, kept.tolist(), strict=True) if is_kept]
            found[rows] = back[each, best][kept]
        return found


def colours(grid: Sequence[int]) -> Bool[Tensor, "c h w"]:
    """The positions of a grid in up to four parts, no two of one part side by side."""
    row, column = (torch.arange(n) % COLOURS for n in grid)
    colour = row[:, None] * COLOURS + column
    return torch.stack([colour == one for one in colour.unique()])
