"""What share of images belongs to each group, by a classifier that errs: its errors are known, so they are taken out.

A classifier that calls 5 % of the plain images marked finds marks in a set without any. It gives answer i with
probability sum_j M[i, j] rate_j, where M is how it answers images whose group is known; the rates that make what it
answered likeliest are the estimate. An answer is the group that it names and how sure it is of that, in up to four
levels: images that it is sure of hardly need a correction, the others do. With one level and two groups this is the
correction of Rogan and Gladen, kept within 0 and 1.

It rests on one assumption: within a group, the images at hand look to the classifier as the known ones did. Levels make
it matter less, since clear cases are compared with clear cases. Their price: M has more entries to learn, and where a
group hardly comes and the classifier errs often, images in entries that few known ones filled are taken for that group,
and the interval holds the truth less often than it says (docs/audit.md).

Source:
    Rogan and Gladen 1978, American Journal of Epidemiology 107, 71-76; Lipton et al. 2018, arXiv:1802.03916 (several
    groups); Forman 2008, Data Mining and Knowledge Discovery 17, 164-206 (mixtures of score histograms); Jeffreys'
    prior for the draws behind the interval.
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

STEPS, STILL = 2000, 1e-7  # of the fixed point at most, and the change of a rate at which it stops
LEVELS, PER_LEVEL = 4, 10  # of sureness at most, and known images of every group that each must be worth
DIGITS = 6  # decimals of sureness: what rounds to 1 is equally sure
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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How a classifier answers images whose group is known.

    Args:
        counts: Known images by (answer, group); answer = group named * levels + level of sureness, 0 the least sure.
        edges: Probability of the named group above which the next level begins, ascending, per group named.
    """

    counts: Int[Tensor, "a c"]
    edges: Float[Tensor, "c l"]

    @property
    def levels(self) -> int:
        """Of sureness."""
        return self.edges.shape[1] + 1

    @property
    def confusion(self) -> Int[Tensor, "c c"]:
        """Known images by (what they were called, what they are)."""
        return self.counts.unflatten(0, (-1, self.levels)).sum(1)

    def of(self, probabilities: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
        """The answers that probabilities of the groups come to."""
        return _answers(probabilities, self.edges)


def known_answers(probabilities: Float[Tensor, "n c"], truth: Int[Tensor, " n"]) -> Answers:
    """Learn how a classifier answers.

    Args:
        probabilities: That it gives the groups of images that it was not trained on.
        truth: Their groups, 0..c-1.
    """
    groups = probabilities.shape[1]
    sure, called = _sureness(probabilities)
    levels = max(1, min(LEVELS, int(truth.bincount(minlength=groups).min()) // PER_LEVEL))
    parts = torch.linspace(0, 1, levels + 1, dtype=torch.float64)[1:-1]
    edges = torch.zeros(groups, levels - 1, dtype=torch.float64)
    for group in called.unique().tolist():
        edges[group] = sure[called == group].quantile(parts)
    answers = _answers(probabilities, edges)
    counts = (answers * groups + truth.cpu()).bincount(minlength=groups**2 * levels)
    return Answers(counts=counts.view(-1, groups), edges=edges)


def _answers(probabilities: Tensor, edges: Tensor) -> Int[Tensor, " n"]:
    sure, called = _sureness(probabilities)
    return called * (edges.shape[1] + 1) + (sure[:, None] > edges[called]).sum(1)


def _sureness(probabilities: Tensor) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Probability of the likeliest group, and that group."""
    sure, called = probabilities.cpu().double().max(1)
    return sure.round(decimals=DIGITS), called


def estimate_rates(
    known: Int[Tensor, "a c"],
    answered: Int[Tensor, " a"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Rates:
    """The groups' rates among images, from how a classifier answered them.

    Args:
        known: Known images by (answer, group), the answers in the order of `Answers`: as many for every group named.
        answered: Images at hand by answer.
        level: Of the interval, between 0 and 1.
        draws: Behind the interval, at least 100.
        seed: Of the draws.

    Raises:
        ConfigError: A setting is out of range.
        DataError: No images at hand, a group of which no image is known, or a classifier that cannot tell the groups
            apart.
    """
    raise_all(_problems(level, draws))
    if not int(answered.sum()):
        raise DataError("rates among 0 images do not exist; give at least 1 neutral image")
    if (empty := known.sum(0) == 0).any():
        raise DataError(f"group number {int(empty.nonzero()[0])} has no known images; hold some back for measuring")
    levels = len(known) // known.shape[1]
    if (skill := skill_of(known.unflatten(0, (-1, levels)).sum(1))) < LEAST_SKILL:
        raise DataError(
            f"the classifier cannot tell the groups apart (skill {skill:.2f} of 0 to 1, at least {LEAST_SKILL} is "
            "needed), so no rate can be estimated; give more or clearer attribute images"
        )
    share = answered.double() / answered.sum()
    rng = np.random.default_rng(number_for(seed, "rates", int(answered.sum())))
    drawn = solve_rates(
        _dirichlet(known.T, levels, draws, rng).transpose(1, 2), _dirichlet(answered[None], levels, draws, rng)[:, 0]
    )
    ends = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0)
    rate = solve_rates((known.double() / known.double().sum(0))[None], share[None])[0]
    # Where the estimate sits at an end of what is possible, draws with a prior stay short of it.
    return Rates(
        rate=rate, low=torch.minimum(ends[0], rate), high=torch.maximum(ends[1], rate),
        said=share.unflatten(0, (-1, levels)).sum(1), draws=drawn,
    )  # fmt: skip


def solve_rates(answers: Float[Tensor, "s a c"], shares: Float[Tensor, "s a"]) -> Float[Tensor, "s c"]:
    """The rates that make what was answered likeliest, by expectation and maximisation.

    Args:
        answers: Probability of (answer, group); columns sum to 1.
        shares: Of every answer; one that no known image was given tells nothing.
    """
    if answers.shape[1:] == (2, 2):  # in closed form
        gap = answers[:, 0, 0] - answers[:, 0, 1]
        safe = torch.where(gap.abs() < 1e-9, torch.full_like(gap, 1e-9), gap)
        first = ((shares[:, 0] - answers[:, 0, 1]) / safe).clamp(0, 1)
        return torch.stack([first, 1 - first], 1)
    count = answers.shape[2]
    rate = torch.full((len(shares), count), 1 / count, dtype=shares.dtype, device=shares.device)
    for _ in range(STEPS):
        expected = torch.einsum("saj,sj->sa", answers, rate).clamp(min=1e-300)
        better = rate * torch.einsum("saj,sa->sj", answers, shares / expected)
        total = better.sum(1, keepdim=True)  # below 1 where an answer was given that no known image got
        better = torch.where(total > 0, better / total, rate)
        moved, rate = float((better - rate).abs().max()), better
        if moved < STILL:
            break
    return rate


def skill_of(confusion: Int[Tensor, "c c"]) -> float:
    """How well a classifier tells groups apart: 0 at chance, 1 without errors; every group counts alike."""
    right = float((confusion.diagonal().double() / confusion.double().sum(0)).mean())
    chance = 1 / len(confusion)
    return (right - chance) / (1 - chance)


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


def _dirichlet(counts: Tensor, levels: int, draws: int, rng: np.random.Generator) -> Tensor:
    """Shares drawn from what counts say of them, per row: (s, rows, a). A named group is worth half an image before."""
    shape = counts.numpy() + 0.5 / levels
    gamma = np.maximum(rng.standard_gamma(np.broadcast_to(shape, (draws, *shape.shape))), 1e-300)
    return torch.from_numpy(gamma / gamma.sum(-1, keepdims=True))


def _problems(level: float, draws: int) -> list[str]:
    found = [] if 0 < level < 1 else [f"level={level} must be between 0 and 1"]
    return found + ([] if draws >= 100 else [f"draws={draws} must be at least 100"])
