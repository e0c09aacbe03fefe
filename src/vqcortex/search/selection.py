"""Token selection: which code to put at every free position, learned through straight-through Gumbel-softmax draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.config import raise_all
from vqcortex.results import Trace
from vqcortex.search.ascent import ascend, perturbation, start_choice
from vqcortex.search.objective import Objective
from vqcortex.search.problem import Problem, pose
from vqcortex.search.protocol import Start, ascent_problems
from vqcortex.seeds import generator_for

Schedule = Literal["constant", "linear", "cosine"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSelection:
    """Maximise the objective over one logit per live code at every free position; the result is their argmax.

    A step draws one code per position (Gumbel noise, hard choice), asks the extractor for the gradient at the drawn
    embedding, and moves the logits by the gradient of the softmax at the same noise.

    Args:
        restarts: See `Restarted`; so are seed, batch, alive.
        steps: See `Ascending`; so are rate, start, spread, record_every, objective.
        temperature: Of the softmax at the first step, above 0 (published: 1 throughout).
        temperature_end: At the last step, above 0; without effect while the schedule is "constant".
        schedule: How the temperature goes from one to the other: "constant", "linear", "cosine".
        margin: Logits by which the code that a search starts from stands above every other, above 0; None: log(a - 1)
            for a live codes, with which it is drawn at least half of the time at temperature 1 and spread 0.

    Source:
        Yang et al. 2025, arXiv:2506.00698, codebook-level explanation; Jang et al. 2017, arXiv:1611.01144, for the
        estimator. Where we differ: only free positions have parameters, the argmax is decoded and not a draw, and the
        start is the image (published: normal logits).

    Example:
        >>> search = TokenSelection(steps=100, rate=0.1, restarts=2)
        >>> trace = search(extractor, codebook, tokens, free, target, ["a", "b"])  # doctest: +SKIP
    """

    name: ClassVar[str] = "token_selection"
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
    temperature: float = 1.0
    temperature_end: float = 1.0
    schedule: Schedule = "constant"
    margin: float | None = None

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        yield from ascent_problems(self)
        for name in ("temperature", "temperature_end"):
            if not 0 < getattr(self, name) < math.inf:
                yield f"{name}={getattr(self, name)} must be above 0 and finite"
        if self.schedule not in (known := get_args(Schedule)):
            yield f"schedule={self.schedule!r} must be one of {', '.join(known)}"
        if self.margin is not None and not 0 < self.margin < math.inf:
            yield f"margin={self.margin} must be above 0 and finite, or None"

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
        return ascend(self.name, self, lambda part: _Choice(self, part), extractor, problem)


@final
class _Choice:
    """Logits over the live codes, moved by Adam; gradients are written out, so that no graph of size k is kept."""

    def __init__(self, settings: TokenSelection, problem: Problem) -> None:
        self.settings = settings
        self.codes = problem.codes
        self.logits = start_logits(settings, problem)
        self.sources = [generator_for(settings.seed, *key, "gumbel") for key in problem.keys]
        self.adam = torch.optim.Adam([self.logits], lr=settings.rate, maximize=True, fused=True)
        self.soft = torch.empty(0)
        self.temperature = settings.temperature

    def propose(self, step: int) -> Float[Tensor, "m n d"]:
        one = self.settings
        self.temperature = temperature_at(step, one.steps, one.temperature, one.temperature_end, one.schedule)
        noisy = gumbel(self.sources, self.logits).add_(self.logits)
        drawn = noisy.argmax(2)
        self.soft = noisy.div_(self.temperature).softmax(2)
        return self.codes[drawn]

    def improve(self, gradient: Float[Tensor, "m n d"]) -> None:
        self.logits.grad = straight_through(gradient, self.codes, self.soft).div_(self.temperature)
        self.adam.step()

    def decode(self) -> Int[Tensor, "m n"]:
        return self.logits.argmax(2)


def straight_through(
    gradient: Float[Tensor, "m n d"], codes: Float[Tensor, "a d"], soft: Float[Tensor, "m n a"]
) -> Float[Tensor, "m n a"]:
    """Gradient with respect to the logits under a softmax of temperature 1, given the one at the drawn embedding.

    The hard draw counts as the soft one: the embedding's derivative by soft weight v is code v, and the softmax takes
    the weighted mean away. Overwrites nothing that was passed in.
    """
    pull = (gradient.reshape(-1, gradient.shape[2]) @ codes.T).view_as(soft)
    mean = torch.einsum("mna,mna->mn", soft, pull)
    return pull.sub_(mean[..., None]).mul_(soft)


def gumbel(sources: Sequence[torch.Generator], like: Float[Tensor, "m n a"]) -> Float[Tensor, "m n a"]:
    """Standard Gumbel noise, the next draw of each row's own generator: a row's noise knows nothing of the others."""
    noise = torch.empty(like.shape)
    for source, row in zip(sources, noise, strict=True):
        torch.rand(row.shape, generator=source, out=row)
    noise.clamp_(min=torch.finfo(noise.dtype).tiny)  # rand can give 0, whose logarithm is not finite
    return noise.to(like.device).log_().neg_().log_().neg_()


def temperature_at(step: int, steps: int, first: float, last: float, schedule: Schedule) -> float:
    """Temperature at a step counted from 0: `first` at step 0, `last` at step `steps` - 1.

    Example:
        >>> [temperature_at(step, 3, 1.0, 0.5, "linear") for step in range(3)]
        [1.0, 0.75, 0.5]
    """
    if schedule == "constant":
        return first
    done = step / max(steps - 1, 1)
    if schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return first + (last - first) * done


def start_logits(settings: TokenSelection, problem: Problem) -> Float[Tensor, "m n a"]:
    """Logits to begin with: the perturbation, and the start's code `margin` above the highest other."""
    logits = perturbation(settings, problem)
    choice = start_choice(settings, problem)
    if choice is None:
        return logits
    codes = problem.shape[2]
    margin = math.log(max(codes - 1, 2)) if settings.margin is None else settings.margin
    return logits.scatter_(2, choice[..., None], logits.amax(2, keepdim=True) + margin)
