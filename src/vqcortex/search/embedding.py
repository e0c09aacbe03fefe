"""Embedding optimisation: move the embedding itself uphill and take the nearest codes at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.config import raise_all
from vqcortex.results import Trace
from vqcortex.search.ascent import ascend, perturbation, start_choice
from vqcortex.search.objective import Objective
from vqcortex.search.problem import Problem, nearest, pose
from vqcortex.search.protocol import Start, ascent_problems


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOptimisation:
    """Maximise the objective over the embedding at the free positions; the result is the nearest live codes.

    Args:
        restarts: See `Restarted`; so are seed, batch, alive.
        steps: See `Ascending`; so are rate, start, spread, record_every, objective.

    Source:
        Yang et al. 2025, arXiv:2506.00698, the rival of token selection. Where we differ: only free positions have
        parameters, and restarts begin at perturbed codes.
    """

    name: ClassVar[str] = "embedding_optimisation"
    restarts: int = 1
    seed: int = 0
    batch: int = 32
    alive: Bool[Tensor, " k"] | None = field(default=None, repr=False, compare=False)
    steps: int = 5000
    rate: float = 0.01
    start: Start = "image"
    spread: float = 0.1
    record_every: int = 500
    objective: Objective = "logit"

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        yield from ascent_problems(self)

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
        return ascend(self.name, self, lambda part: _Point(self, part), extractor, problem)


@final
class _Point:
    """An embedding moved by Adam."""

    def __init__(self, settings: EmbeddingOptimisation, problem: Problem) -> None:
        self.codes = problem.codes
        self.point = start_point(settings, problem)
        self.adam = torch.optim.Adam([self.point], lr=settings.rate, maximize=True, fused=True)

    def propose(self, step: int) -> Float[Tensor, "m n d"]:
        return self.point

    def improve(self, gradient: Float[Tensor, "m n d"]) -> None:
        self.point.grad = gradient.contiguous()
        self.adam.step()

    def decode(self) -> Int[Tensor, "m n"]:
        return nearest(self.point, self.codes)


def start_point(settings: EmbeddingOptimisation, problem: Problem) -> Float[Tensor, "m n d"]:
    """Embedding to begin with: the start's codes or the mean code, moved by the perturbation of the logits.

    Weights z over the codes move it by z @ (codes - mean) / sqrt(a): normal, with the codebook's own covariance.
    """
    codes = problem.codes
    mean = codes.mean(0)
    choice = start_choice(settings, problem)
    base = mean if choice is None else codes[choice]
    return base + perturbation(settings, problem) @ (codes - mean) / math.sqrt(len(codes))
