"""Tokens drawn anew by the model's own generator, asked for the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.config import raise_all
from vqcortex.editing.protocol import Means, Task, check_task, embed, leads, needed
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FromGenerator:
    """Draw the free positions in reading order, each given the target and all tokens before it; keep the best draw.

    Of several draws that one stays which the choosers find most like the target, or without choosers the likeliest.
    What stands after a position plays no part in its draw, because the generator has not seen it yet.

    Args:
        draws: Draws per image, at least 1.

    Source:
        Esser et al. 2021, arXiv:2012.09841, section 3.2 (the order of the draws). Where we differ: what is not free
        stays, and the draws are of the model's own distribution at temperature 1.
    """

    name: ClassVar[str] = "generator"
    draws: int = 8

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        if self.draws < 1:
            yield f"draws={self.draws} must be at least 1"

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        check_task(task, means)
        needed(means.chances, self.name, "a generator that says how likely it draws a code", "choose another strategy")
        drawn = torch.stack([self._drawn(task, means, draw) for draw in range(self.draws)], 1)  # (b, s, h, w)
        worth = torch.stack([self._worth(task, one, means) for one in drawn.unbind(1)], 1)
        return drawn[torch.arange(len(task), device=drawn.device), worth.argmax(1)]

    def _drawn(self, task: Task, means: Means, draw: int) -> Int[Tensor, "b h w"]:
        assert means.chances is not None
        found, width = task.tokens.clone(), task.free.shape[2]
        even = torch.stack(
            [
                torch.rand(task.free[0].numel(), generator=generator_for(task.seed, name, target, draw, "resampled"))
                for name, target in zip(task.image_ids, task.target.tolist(), strict=True)
            ]
        ).to(means.codebook)
        for place in task.free.flatten(1).any(0).nonzero()[:, 0].tolist():
            row, column = divmod(place, width)
            log = means.chances(found, task.target)[:, :, row, column].masked_fill(~means.alive, -torch.inf)
            step = log.double().softmax(1).cumsum(1)
            wanted = even[:, place, None].double() * step[:, -1:]
            code = torch.searchsorted(step, wanted, right=True)[:, 0].clamp(max=len(means.alive) - 1)
            found[:, row, column] = torch.where(task.free[:, row, column], code, found[:, row, column])
        return found

    def _worth(self, task: Task, grids: Int[Tensor, "b h w"], means: Means) -> Tensor:
        if not means.choosers:
            assert means.chances is not None
            return means.chances(grids, task.target).gather(1, grids[:, None]).sum((1, 2, 3))
        with torch.no_grad():
            return leads(means.choosers, embed(grids, means.codebook), task.source, task.target, "others").mean(0)
