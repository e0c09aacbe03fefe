"""What an audit says, in words: biased, even, undecided, or that it cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.audit.rates import Rates
from vqcortex.errors import DataError

Word: TypeAlias = Literal["biased", "even", "undecided"]
# Held-out images per group and neutral images from which intervals of a rate are narrower than about 0.2.
ENOUGH = 50
ENOUGH_NEUTRAL = 100
SURE = 0.1  # how much less sure of neutral images than of known ones a classifier may be
UNLIKE = 0.01  # p-value up to which neutral images are taken to look otherwise than known ones
CONFOUNDED = 0.5  # Cramer's V from which two labels are hard to tell apart


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is said of one group.

    Args:
        group: Its name.
        word: "biased": its interval lies outside the tolerated band; "even": inside; "undecided": it reaches over.
        p: Of "within the band".
        distance: From the reference, in standard errors: what ranks generators by how surely they are biased.
        sentence: The verdict with its numbers.
    """

    group: str
    word: Word
    p: float
    distance: float
    sentence: str


def judge_rates(
    rates: Rates, names: Sequence[str], reference: Float[Tensor, " c"], tolerance: float, alpha: float
) -> list[Verdict]:
    """One verdict per group.

    Args:
        rates: Of neutral images.
        names: Of the groups.
        reference: Even rates.
        tolerance: How far a rate may be from its reference without being called biased, as a share.
        alpha: A group is called biased if its p-value is at most this.
    """
    return [_judge(rates, number, name, reference, tolerance, alpha) for number, name in enumerate(names)]


def _judge(rates: Rates, number: int, name: str, reference: Tensor, tolerance: float, alpha: float) -> Verdict:
    even, rate = float(reference[number]), float(rates.rate[number])
    low, high = float(rates.low[number]), float(rates.high[number])
    p = rates.p_beyond(number, even, tolerance)
    inside = even - tolerance <= low and high <= even + tolerance
    word: Word = "biased" if p <= alpha and abs(rate - even) > tolerance else "even" if inside else "undecided"
    measured = f"{rate:.0%} [{low:.0%}, {high:.0%}] of the neutral images are {name!r} where {even:.0%} would be even"
    band = f"{100 * tolerance:.0f} points"
    ending = {
        "biased": f"that is more than {band} {'too many' if rate > even else 'too few'} (p = {p:.2g})",
        "even": f"that is within {band}",
        "undecided": f"the interval reaches across the {band} tolerated, so more neutral images are needed",
    }[word]
    return Verdict(
        group=name, word=word, p=p, distance=rates.distance(number, even), sentence=f"{measured}: {ending}."
    )  # fmt: skip


def overall(verdicts: Sequence[Verdict]) -> tuple[Word, str]:
    """The audit in one word and one sentence: the surest bias towards a group, or else what holds for all."""
    biased = [one for one in verdicts if one.word == "biased"]
    if biased:
        worst = max(biased, key=lambda one: ("too many" in one.sentence, one.distance))
        return "biased", f"The generator is biased: {worst.sentence}"
    if all(one.word == "even" for one in verdicts):
        return "even", f"No bias beyond the tolerance: {verdicts[0].sentence}"
    first = next(one for one in verdicts if one.word == "undecided")
    return "undecided", f"The images do not decide it: {first.sentence}"


def thin_notes(
    confusion: Int[Tensor, "c c"], neutral: int, names: Sequence[str], sureness: tuple[float, float]
) -> Iterator[str]:
    """Where the statistics are too thin to speak, or rest on what may not hold, one sentence each.

    Args:
        confusion: Held-out images by (called, truth).
        neutral: Neutral images.
        names: Of the groups.
        sureness: Mean probability of the likeliest group: of held-out images, and of neutral ones.
    """
    for name, held in zip(names, confusion.sum(0).tolist(), strict=True):
        if held < ENOUGH:
            yield (
                f"only {held} held-out images of {name!r} tell how often the extractor errs on it; from {ENOUGH} on "
                "the correction can be relied on"
            )
    if neutral < ENOUGH_NEUTRAL:
        yield f"only {neutral} neutral images were counted; below {ENOUGH_NEUTRAL} most biases stay undecided"
    known, found = sureness
    if found < known - SURE:
        yield (
            f"the extractor is less sure of neutral images ({found:.2f}) than of held-out ones ({known:.2f}): they may "
            "look unlike every group, and rates are then a guess"
        )


def correction_notes(rates: Rates, names: Sequence[str], tolerance: float) -> Iterator[str]:
    """Whether taking out the extractor's errors makes more of a difference than is tolerated, one sentence.

    The correction assumes that neutral images of a group are as hard to tell as the known ones. Where groups touch, say
    at the median of a brightness, a generator that keeps away from it is corrected for errors that are not made.

    Args:
        rates: Of neutral images.
        names: Of the groups.
        tolerance: As a share.
    """
    away = (rates.rate - rates.said).abs().round(decimals=9)  # of equals the first
    number = int(away.argmax())
    if float(away[number]) > tolerance:
        said, rate = float(rates.said[number]), float(rates.rate[number])
        yield (
            f"the extractor calls {said:.0%} of the neutral images {names[number]!r}, and the errors it makes on "
            f"held-out images turn that into {rate:.0%}: right if neutral images are as hard to tell as those; if they "
            f"are clearer cases, the truth is nearer to {said:.0%}"
        )


def misfit_notes(rates: Rates, names: Sequence[str], tolerance: float) -> Iterator[str]:
    """Whether neutral images answer like no mixture of the known ones, one sentence.

    Of no account where the extractor errs too rarely for a rate to be wrong by what is tolerated.

    Args:
        rates: Of neutral images.
        names: Of the groups.
        tolerance: As a share.
    """
    times, p = rates.misfit()
    if p <= UNLIKE and rates.errs > tolerance / 2:
        number = int(rates.rate.argmax())
        low, high = rates.ends(number, 0.95, dispersion=times)
        yield (
            f"the extractor's answers to neutral images are no mixture of its answers to held-out ones (p = {p:.1g}): "
            "images of a group look otherwise there, and intervals, which know of chance only, are too narrow; with "
            f"that misfit taken for noise, {low:.0%} to {high:.0%} are {names[number]!r}"
        )


def confounding_notes(labels: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What else the images of a group have in common, if anything, one sentence.

    Args:
        labels: By group, the concept of each image as its source names it; groups without labels are left out.

    Raises:
        DataError: Every label stands in one group only, so that group and label cannot be told apart.
    """
    names = sorted({one for some in labels.values() for one in some})
    if len(labels) < 2 or len(names) < 2:
        return
    table = torch.tensor([[list(some).count(name) for name in names] for some in labels.values()], dtype=torch.float64)
    if bool(((table > 0).sum(0) == 1).all()):
        parts = "; ".join(f"{group!r}: {', '.join(sorted(set(some)))}" for group, some in labels.items())
        raise DataError(
            f"the groups are perfectly confounded with the concepts of their images ({parts}), so that no audit can "
            "tell the attribute from the concept; take images of the same concepts in every group, or one concept"
        )
    if (v := cramers_v(table)) > CONFOUNDED:
        yield (
            f"the groups differ in the concepts of their images too (Cramer's V {v:.2f} of 0 to 1), so that what is "
            "found may belong to the concept and not to the attribute"
        )


def composition_notes(groups: Mapping[str, Sequence[str]], neutral: Sequence[str]) -> Iterator[str]:
    """Whether the groups hold other concepts than the neutral images, one sentence.

    Args:
        groups: By group, the concepts its images may be of.
        neutral: Those of the neutral images.
    """
    held = {one for some in groups.values() for one in some}
    if (others := sorted(held - set(neutral))) and held & set(neutral):
        yield (
            f"the groups also hold {', '.join(others)}, which no neutral image is: what the excess of a code says may "
            "belong to the concept and not to the attribute; the rates are not touched by it"
        )


def cramers_v(table: Float[Tensor, "r q"]) -> float:
    """How far rows and columns of a table of counts go together: 0 not at all, 1 perfectly.

    Example:
        >>> cramers_v(torch.tensor([[5.0, 0.0], [0.0, 5.0]])), cramers_v(torch.tensor([[2.0, 2.0], [2.0, 2.0]]))
        (1.0, 0.0)
    """
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    chi = ((table - expected) ** 2 / expected.clamp(min=1e-300)).sum()
    return float((chi / table.sum() / (min(table.shape) - 1)).sqrt())
