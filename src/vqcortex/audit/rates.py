"""What share of images belongs to each group, by a classifier that errs: its errors are known, so they are taken out.

A classifier that calls 5 % of the plain images marked finds marks in a set without any. It gives answer i with
probability sum_j M[i, j] rate_j, where M is how it answers images whose group is known; the rates that make what it
answered likeliest are the estimate. An answer is the group that it names and how sure it is of that, in up to four
levels: images that it is sure of hardly need a correction, the others do. With one level and two groups this is the
correction of Rogan and Gladen, kept within 0 and 1.

The interval holds the rates at which audits like this one, simulated from the known images on, give what was found or
more, and what was found or less, often enough. So it allows for the estimate's going astray where a group hardly comes
and the classifier errs often.

All rests on one assumption: within a group, the images at hand look to the classifier as the known ones did. Levels
make it matter less, since clear cases are compared with clear cases, and make it testable: `Rates.misfit`. (Learning M
from the images at hand as well is better where the assumption holds, and many times worse where it does not.)

Source:
    Rogan and Gladen 1978, American Journal of Epidemiology 107, 71-76; Lipton et al. 2018, arXiv:1802.03916 (several
    groups); Forman 2008, Data Mining and Knowledge Discovery 17, 164-206 (mixtures of score histograms); Garthwaite and
    Buckland 1992, Applied Statistics 41, 159-171 (intervals by simulation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor

from vqcortex.config import raise_all
from vqcortex.errors import ConfigError, DataError
from vqcortex.seeds import number_for

STEPS, TOWARDS, STILL = 60, 0.1, 1e-11  # of the interior point at most, how much each aims at, and where it ends
NIL = 5e-5  # an interior point comes ever closer to a rate of 0 and never gets there: what it leaves is 0
RIDGE = 1e-9  # to the curvature, which has none where two groups are answered alike
TINY = 1e-100  # in place of 0, where something is divided by it
LEVELS, PER_LEVEL = 4, 30  # of sureness at most, and known images of every group that each must be worth
DIGITS = 6  # decimals of sureness: what rounds to 1 is equally sure
LEAST_SKILL = 0.1  # of 0 (chance) to 1: below, answers say next to nothing about groups
CLOSE = 5e-4  # how near the ends of an interval are sought


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Shares of c groups among some images.

    Args:
        rate: The estimate, summing to 1.
        low: Lower end of its interval.
        high: Upper end.
        said: Shares as the classifier said them, errors and all.
        known: Known images by (answer, group).
        answered: Images at hand by answer.
        draws: Audits simulated for a p-value or an end.
        seed: Of those.
    """

    rate: Float[Tensor, " c"]
    low: Float[Tensor, " c"]
    high: Float[Tensor, " c"]
    said: Float[Tensor, " c"]
    known: Int[Tensor, "a c"]
    answered: Int[Tensor, " a"]
    draws: int
    seed: int

    @property
    def errs(self) -> float:
        """Share of known images that are called by another group, where that is worst."""
        confusion = self.known.unflatten(0, (self.known.shape[1], -1)).sum(1).double()
        return float(1 - (confusion.diagonal() / confusion.sum(0)).min())

    def p_beyond(self, group: int, reference: float, tolerance: float) -> float:
        """Two-sided p-value of "the rate of a group is within `tolerance` of `reference`"; both are shares, 0 to 1."""
        rate = float(self.rate[group])
        if abs(rate - reference) <= tolerance:
            return 1.0
        above = rate > reference
        edge = min(1.0, reference + tolerance) if above else max(0.0, reference - tolerance)
        return min(1.0, 2 * _Audits(self, group).as_far(edge, above))

    def distance(self, group: int, reference: float) -> float:
        """How far the rate is from `reference`, in standard errors, at least 0."""
        rate = float(self.rate[group])
        simulated, _ = _Audits(self, group).at(rate)
        return abs(rate - reference) / float(simulated[:, group].std().clamp(min=1e-6))

    def ends(self, group: int, level: float, dispersion: float = 1.0) -> tuple[float, float]:
        """The interval of a group's rate.

        Args:
            group: Whose.
            level: Between 0 and 1.
            dispersion: How many times as much as by chance counts are taken to vary, at least 1.
        """
        audits, found = _Audits(self, group, dispersion), []
        for end, above in ((0.0, True), (1.0, False)):
            inside, outside = float(self.rate[group]), end
            if audits.as_far(outside, above) > (1 - level) / 2:
                inside = outside
            while abs(inside - outside) > CLOSE:
                middle = (inside + outside) / 2
                if audits.as_far(middle, above) > (1 - level) / 2:
                    inside = middle
                else:
                    outside = middle
            found.append(inside)
        return found[0], found[1]

    def misfit(self) -> tuple[float, float]:
        """Whether the images at hand answer like a mixture of the known ones: how much worse, and p of that by chance.

        Returns:
            Distance from the best mixture (likelihood ratio) as a multiple of what simulated mixtures have on average;
            and its p-value.
        """
        audits = _Audits(self, 0)
        simulated, shares = audits.at(float(self.rate[0]))
        by_chance = _distance_from(audits.answers, simulated, shares)
        known, answered = self.known.double(), self.answered.double()
        share = (answered / answered.sum())[None]
        found = float(_distance_from((known / known.sum(0))[None], self.rate[None], share))
        p = (1 + int((by_chance >= found - 1e-9).sum())) / (1 + self.draws)
        return max(0.0, found) / float(by_chance.mean().clamp(min=1e-9)), p


class _Audits:
    """Audits like one that was, simulated: known images and those at hand are answered anew."""

    def __init__(self, found: Rates, group: int, dispersion: float = 1.0) -> None:
        """Answer the known images.

        Args:
            found: What the audit that was found.
            group: Whose rate will be varied, the others' in proportion.
            dispersion: How many times as much as by chance counts are to vary, at least 1.
        """
        levels, rng = len(found.known) // found.known.shape[1], np.random.default_rng(number_for(found.seed, "rates"))
        # A named group is worth half an image before: what no known image was answered may still be answered.
        prior = found.known.double().numpy() + 0.5 / levels
        *known, size = (max(1, round(int(one) / dispersion)) for one in (*found.known.sum(0), found.answered.sum()))
        # Latin hypercubes: one number in every thousandth (of 1,000 draws), so that tails are not left to luck.
        chance = rng.random((len(known) + 1, found.draws, len(prior) - 1))
        strata = np.broadcast_to(np.arange(found.draws)[:, None], chance.shape)
        chance = (rng.permuted(strata, axis=1) + chance) / found.draws
        self._found, self._group, self._size, self._chance = found, group, size, chance[-1]
        self._truth = prior / prior.sum(0)
        answers = [_drawn(*one) for one in zip(known, self._truth.T, chance, strict=False)]
        self.answers = torch.from_numpy(np.stack(answers, 2))  # of known images, as shares: (s, a, c)

    def at(self, rate: float) -> tuple[Float[Tensor, "s c"], Float[Tensor, "s a"]]:
        """What they find of images of which the group has that rate, and how these were answered."""
        others = (np.arange(self._truth.shape[1]) != self._group).astype(float)
        rates = self._found.rate.numpy() * others
        rates = rates if rates.sum() else others  # without rates to be in proportion to they are all alike
        rates = rates * (1 - rate) / rates.sum()
        rates[self._group] = rate
        shares = torch.from_numpy(_drawn(self._size, self._truth @ rates, self._chance))
        return solve_rates(self.answers, shares), shares

    def as_far(self, rate: float, above: bool) -> float:
        """How often they find of images of that rate what was found or more; or, if not `above`, less."""
        simulated, was = self.at(rate)[0][:, self._group], float(self._found.rate[self._group])
        far = simulated >= was - 1e-6 if above else simulated <= was + 1e-6
        return (1 + int(far.sum())) / (1 + self._found.draws)


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
    draws: int = 1000,
    seed: int = 0,
) -> Rates:
    """The groups' rates among images, from how a classifier answered them.

    Args:
        known: Known images by (answer, group), the answers in the order of `Answers`: as many for every group named.
        answered: Images at hand by answer.
        level: Of the interval, between 0 and 1.
        draws: Audits simulated for an end of the interval, at least 100.
        seed: Of those.

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
    groups = known.shape[1]
    named = (groups, len(known) // groups)
    if (skill := skill_of(known.unflatten(0, named).sum(1))) < LEAST_SKILL:
        raise DataError(
            f"the classifier cannot tell the groups apart (skill {skill:.2f} of 0 to 1, at least {LEAST_SKILL} is "
            "needed), so no rate can be estimated; give more or clearer attribute images"
        )
    share = answered.double() / answered.sum()
    rate = solve_rates((known.double() / known.double().sum(0))[None], share[None])[0]
    found = Rates(
        rate=rate, low=rate, high=rate, said=share.unflatten(0, named).sum(1), known=known.cpu(),
        answered=answered.cpu(), draws=draws, seed=seed,
    )  # fmt: skip
    ends = [found.ends(group, level) for group in range(groups if groups > 2 else 1)]
    ends += [(1 - high, 1 - low) for low, high in ends] if groups == 2 else []
    low, high = torch.tensor(ends, dtype=torch.float64).T
    return replace(found, low=low, high=high)


def solve_rates(answers: Float[Tensor, "s a c"], shares: Float[Tensor, "s a"]) -> Float[Tensor, "s c"]:
    """The rates that make what was answered likeliest, by an interior point method; there is one best.

    Rates r minimise sum r - sum_i share_i log (M r)_i over r >= 0, which makes them sum to 1; z are the multipliers of
    the bound, and r z goes down to 0.

    Args:
        answers: Probability of (answer, group); columns sum to 1.
        shares: Of every answer; one that no known image was given tells nothing.
    """
    shares = torch.where(answers.sum(2) > 0, shares, 0.0)
    shares = shares / shares.sum(1, keepdim=True).clamp(min=TINY)
    count = answers.shape[2]
    rate = torch.full((len(shares), count), 1 / count, dtype=shares.dtype, device=shares.device)
    bound = torch.ones_like(rate)
    for _ in range(STEPS):
        middle = (rate * bound).mean(1, keepdim=True) * TOWARDS
        if float(middle.max()) < STILL:
            break
        told = torch.einsum("saj,sj->sa", answers, rate).clamp(min=TINY)
        slope = 1 - torch.einsum("saj,sa->sj", answers, shares / told)
        curve = torch.einsum("saj,sak,sa->sjk", answers, answers, shares / told**2) + torch.diag_embed(
            bound / rate + RIDGE
        )
        step = torch.linalg.solve(curve, middle / rate - slope)
        other = middle / rate - bound - bound / rate * step
        rate, bound = rate + _room(rate, step) * step, bound + _room(bound, other) * other
    rate = torch.where(rate < NIL, 0.0, rate)
    total = rate.sum(1, keepdim=True)  # 0 where nothing is told
    return torch.where(total > 0, rate / total.clamp(min=TINY), 1 / count)


def _room(at: Tensor, step: Tensor) -> Float[Tensor, "s 1"]:
    """How much of a step stays above 0."""
    most = torch.where(step < 0, at / (-step).clamp(min=TINY), torch.inf).amin(1, keepdim=True)
    return (0.995 * most).clamp(max=1)


def _drawn(size: int, shares: Float[np.ndarray, " a"], chance: Float[np.ndarray, "s r"]) -> Float[np.ndarray, "s a"]:
    """Shares of answers among images, by inversion: what is drawn changes as little as what it is drawn from.

    Args:
        size: Images of every draw.
        shares: Of the answers.
        chance: Numbers from 0 to 1, for every answer but the last.
    """
    left, counts = np.full(len(chance), size), []
    rest = np.maximum(shares[::-1].cumsum()[::-1], TINY)  # of this answer and all after it
    for share, total, one in zip(shares[:-1], rest, chance.T, strict=False):
        counts.append(np.maximum(binom.ppf(one, left, min(1.0, share / total)), 0).astype(int))
        left = left - counts[-1]
    return np.stack([*counts, left], 1) / size


def _distance_from(answers: Tensor, rates: Tensor, shares: Tensor) -> Float[Tensor, " s"]:
    """Of answers given from those that a mixture would give, per image: Kullback and Leibler's divergence."""
    told = torch.einsum("saj,sj->sa", answers, rates)
    told = told.clamp(min=1e-4 / shares.shape[1])  # what no known image was answered is not impossible
    return torch.xlogy(shares, shares / told).sum(1)


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
    if len(shares) != groups or not all(0 < one < math.inf for one in shares):
        given = ",".join(f"{one:g}" for one in shares)
        raise ConfigError(f"reference={given} must be {groups} shares above 0, one per group in their order")
    found = torch.tensor(shares, dtype=torch.float64)
    return found / found.sum()


def _problems(level: float, draws: int) -> list[str]:
    found = [] if 0 < level < 1 else [f"level={level} must be between 0 and 1"]
    return found + ([] if draws >= 100 else [f"draws={draws} must be at least 100"])
