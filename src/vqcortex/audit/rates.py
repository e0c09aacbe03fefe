"""What share of images belongs to each group, by a classifier that errs: its errors are known, so they are taken out.

A classifier that calls 5 % of the plain images marked finds marks in a set without any. It says group i with
probability sum_j M[i, j] rate_j, where M is how it answers images whose group is known; the rates that make what it
said likeliest are the estimate. For two groups this is the correction of Rogan and Gladen, kept within 0 and 1.

It rests on one assumption: within a group, the images at hand look to the classifier as the known ones did.

Source:
    Rogan and Gladen 1978, American Journal of Epidemiology 107, 71-76; Lipton et al. 2018, arXiv:1802.03916 (several
    groups); Jeffreys' prior for the draws behind the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.config import raise_all
from vqcortex.errors import ConfigError, DataError
from vqcortex.seeds import number_for

STEPS = 300  # of the fixed point; 2,000 draws of 2 groups take 40 ms
LEAST_SKILL = 0.1  # of 0 (chance) to 1: below, answers say next to nothing about groups


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Shares of c groups among some images.

    Args:
        rate: The estimate, summing to 1.
        low: Lower end of its interval.
        high: Upper end.
        said: Shares as the classifier said them, errors and all.
        draws: Rates drawn from what is known of them, for tests.
    """

    rate: Float[Tensor, " c"]
    low: Float[Tensor, " c"]
    high: Float[Tensor, " c"]
    said: Float[Tensor, " c"]
    draws: Float[Tensor, "s c"]

    def p_beyond(self, group: int, reference: float, tolerance: float) -> float:
        """Two-sided p-value of "the rate of a group is within `tolerance` of `reference`"; both are shares, 0 to 1."""
        rates = self.draws[:, group]
        inside = (
            (rates <= reference + tolerance)
            if float(self.rate[group]) > reference
            else (rates >= reference - tolerance)
        )
        return min(1.0, 2 * (1 + int(inside.sum())) / (1 + len(rates)))

    def distance(self, group: int, reference: float) -> float:
        """How far the rate is from `reference`, in standard errors, at least 0."""
        spread = float(self.draws[:, group].std().clamp(min=1e-6))
        return abs(float(self.rate[group]) - reference) / spread


def estimate_rates(
    confusion: Int[Tensor, "c c"],
    predicted: Int[Tensor, " c"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Rates:
    """The groups' rates among images, from what a classifier called them.

    Args:
        confusion: Known images by (what they were called, what they are).
        predicted: Images at hand by what they were called.
        level: Of the interval, between 0 and 1.
        draws: Behind the interval, at least 100.
        seed: Of the draws.

    Raises:
        ConfigError: A setting is out of range.
        DataError: No images at hand, a group of which no image is known, or a classifier that cannot tell the groups
            apart.
    """
    raise_all(_problems(level, draws))
    if not int(predicted.sum()):
        raise DataError("rates among 0 images do not exist; give at least 1 neutral image")
    if (empty := confusion.sum(0) == 0).any():
        raise DataError(f"group number {int(empty.nonzero()[0])} has no known images; hold some back for measuring")
    if (skill := skill_of(confusion)) < LEAST_SKILL:
        raise DataError(
            f"the classifier cannot tell the groups apart (skill {skill:.2f} of 0 to 1, at least {LEAST_SKILL} is "
            "needed), so no rate can be estimated; give more or clearer attribute images"
        )
    answers = confusion.double() / confusion.double().sum(0)
    said = predicted.double() / predicted.sum()
    rng = np.random.default_rng(number_for(seed, "rates", int(predicted.sum())))
    drawn = solve_rates(
        _dirichlet(confusion.T, draws, rng).transpose(1, 2), _dirichlet(predicted[None], draws, rng)[:, 0]
    )
    ends = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0)
    rate = solve_rates(answers[None], said[None])[0]
    # Where the estimate sits at an end of what is possible, draws with a prior stay short of it.
    return Rates(
        rate=rate, low=torch.minimum(ends[0], rate), high=torch.maximum(ends[1], rate), said=said, draws=drawn
    )  # fmt: skip


def solve_rates(answers: Float[Tensor, "s c c"], said: Float[Tensor, "s c"]) -> Float[Tensor, "s c"]:
    """The rates that make what was said likeliest, by expectation and maximisation.

    Args:
        answers: Probability of (what is called, what it is); columns sum to 1.
        said: Shares of what was called.
    """
    if answers.shape[1] == 2:  # in closed form
        gap = answers[:, 0, 0] - answers[:, 0, 1]
        safe = torch.where(gap.abs() < 1e-9, torch.full_like(gap, 1e-9), gap)
        first = ((said[:, 0] - answers[:, 0, 1]) / safe).clamp(0, 1)
        return torch.stack([first, 1 - first], 1)
    rate = torch.full_like(said, 1 / said.shape[1])
    for _ in range(STEPS):
        expected = torch.einsum("sij,sj->si", answers, rate).clamp(min=1e-300)
        rate = rate * torch.einsum("sij,si->sj", answers, said / expected)
    return rate


def skill_of(confusion: Int[Tensor, "c c"]) -> float:
    """How well a classifier tells groups apart: 0 at chance, 1 without errors; every group counts alike."""
    right = float((confusion.diagonal().double() / confusion.double().sum(0)).mean())
    chance = 1 / len(confusion)
    return (right - chance) / (1 - chance)


def confusion_of(called: Int[Tensor, " n"], truth: Int[Tensor, " n"], groups: int) -> Int[Tensor, "c c"]:
    """Images by (what they were called, what they are)."""
    return (called.cpu() * groups + truth.cpu()).bincount(minlength=groups**2).view(groups, groups)


def reference_rates(shares: Sequence[float], groups: int) -> Float[Tensor, " c"]:
    """Rates that would be even: those given, brought to a sum of 1, or all alike where none are given.

    Raises:
        ConfigError: Not one share per group, or one that is not above 0.
    """
    if not shares:
        return torch.full((groups,), 1 / groups, dtype=torch.float64)
    if len(shares) != groups or min(shares) <= 0:
        given = ",".join(f"{one:g}" for one in shares)
        raise ConfigError(f"reference={given} must be {groups} shares above 0, one per group in their order")
    found = torch.tensor(shares, dtype=torch.float64)
    return found / found.sum()


def _dirichlet(counts: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    """Shares drawn from what counts say of them, per row: (s, rows, c)."""
    shape = counts.numpy() + 0.5
    gamma = rng.standard_gamma(np.broadcast_to(shape, (draws, *shape.shape)))
    return torch.from_numpy(gamma / gamma.sum(-1, keepdims=True))


def _problems(level: float, draws: int) -> list[str]:
    found = [] if 0 < level < 1 else [f"level={level} must be between 0 and 1"]
    return found + ([] if draws >= 100 else [f"draws={draws} must be at least 100"])
