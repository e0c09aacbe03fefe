"""Rank correlation, independence of maps and the bounds of trust again, in plain loops from their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from vqcortex.evaluation.rank_agreement import rank_correlation
from vqcortex.evaluation.sanity.protocol import Limits, measured_difference, measured_independence
from vqcortex.evaluation.trust import Answers, Bounds, reasons_for

RNG = torch.Generator().manual_seed(3)
ONE = torch.randint(0, 6, (9, 3, 4), generator=RNG).float()  # with ties
OTHERS = [torch.randint(0, 6, (9, 3, 4), generator=RNG).float() + ONE * weight for weight in (0.5, -0.5, 0.0)]


def slow_ranks(values):
    """1 for the smallest; equal values share the mean of the ranks they take up."""
    ranks = []
    for value in values:
        below = sum(other < value for other in values)
        equal = sum(other == value for other in values)
        ranks.append(below + (equal + 1) / 2)
    return ranks


def slow_spearman(one, other):
    a, b = slow_ranks(one.flatten().tolist()), slow_ranks(other.flatten().tolist())
    mean = (len(a) + 1) / 2
    cover = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return cover / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


@pytest.mark.parametrize("other", OTHERS)
def test_rank_correlation(other):
    slow = [slow_spearman(*pair) for pair in zip(ONE, other, strict=True)]
    assert rank_correlation(ONE, other).rho.tolist() == pytest.approx(slow)


def test_independence_is_the_mean_of_absolute_means():
    means = [sum(slow_spearman(a, b) for a, b in zip(ONE, other, strict=True)) / 9 for other in OTHERS]
    slow = sum(map(abs, means)) / 3
    for limit, verdict in ((slow + 1e-9, "pass"), (slow - 1e-9, "fail")):
        found = measured_independence("check", ONE, OTHERS, Limits(independent=limit))
        assert found.value == pytest.approx(slow)
        assert found.verdict == verdict


def test_difference_is_the_signed_mean():
    slow = sum(slow_spearman(a, b) for a, b in zip(ONE, OTHERS[1], strict=True)) / 9
    assert slow < 0
    assert measured_difference("check", ONE, OTHERS[1], Limits()).value == pytest.approx(slow)


def slow_standing(same, images, chance):
    """Bad, doubtful or fine, from the way between chance and 1 and Wilson's lower end."""
    way = (same / images - chance) / (1 - chance)
    z, share = 1.959964, same / images
    low = (share + z**2 / (2 * images) - z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))) / (
        1 + z**2 / images
    )
    if way < Bounds().bad_share:
        return "bad"
    return "fine" if way >= Bounds().fine_share and (low - chance) / (1 - chance) >= Bounds().bad_share else "doubtful"


@pytest.mark.parametrize("seed", range(12))
def test_standings(seed):
    rng = torch.Generator().manual_seed(seed)
    images, names = 20 + 15 * seed, ("a", "b", "c")
    truth = torch.randint(0, 3, (images,), generator=rng)
    noisy = torch.rand(2, images, generator=rng) < 0.8 - 0.06 * seed
    named, theirs = torch.where(noisy, truth, torch.randint(0, 3, (2, images), generator=rng))
    found = reasons_for(Answers(concept=truth, named=named, judges={"j": theirs}), None, names)
    said = {(one.concept, one.subject): one.standing for one in found}
    pairs = list(zip(truth.tolist(), named.tolist(), theirs.tolist(), strict=True))
    commonest = max(sum(t == c for t, _, _ in pairs) for c in range(3)) / images
    assert said["all", "accuracy"] == slow_standing(sum(t == n for t, n, _ in pairs), images, commonest)
    chance = sum(
        sum(n == c for _, n, _ in pairs) / images * sum(j == c for _, _, j in pairs) / images for c in range(3)
    )
    assert said["all", "judge"] == slow_standing(sum(n == j for _, n, j in pairs), images, chance)
    for number, name in enumerate(names):
        here = [(n, j) for t, n, j in pairs if t == number]
        called = [t for t, n, _ in pairs if n == number]
        assert said[name, "accuracy"] == slow_standing(sum(n == number for n, _ in here), len(here), 1 / 3)
        assert said[name, "judge"] == slow_standing(sum(n == j for n, j in here), len(here), 1 / 3)
        right = sum(t == number for t in called)
        assert said[name, "naming"] == slow_standing(right, len(called), len(here) / images)
