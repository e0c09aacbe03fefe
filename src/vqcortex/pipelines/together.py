"""What was measured of codes together, tested: p-values over images, false discoveries, intervals, verdicts, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.attribution.interactions import ROUNDING, synergy
from vqcortex.evaluation.intervals import Interval, Resampling, intervals
from vqcortex.results import Column, Table
from vqcortex.significance import false_discovery, sign_flip_p

T = TypeVar("T")
REMOVAL, INSERTION = "removal", "insertion"
LEAST = 6  # images below which no verdict is possible: even with all on one side p is 2 / 2^5, above 0.05
NOTHING: tuple[Interval | None, ...] = (None,) * 5
TOO_FEW, NONE, SYNERGY, REDUNDANCY, EXCLUSIVE = "too few images", "none", "synergy", "redundancy", "exclusive"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairValues:
    """What e extractors say of two codes in n images.

    Args:
        concept: Whose logit it is.
        codes: The two.
        form: "removal" or "insertion".
        values: Logit with neither code, the first, the second, both; the study's extractor first, (e, n, 4).
        interaction: Shapley interaction index by the study's extractor, logits, (n,).
    """

    concept: int
    codes: tuple[int, int]
    form: str
    values: Float[Tensor, "e n 4"]
    interaction: Float[Tensor, " n"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupValues:
    """What e extractors say of all codes of a concept in n images, beside as many random codes of the same images.

    Args:
        concept: Whose logit it is.
        codes: The concept's.
        values: All codes against none, the sum of each alone against none, and both again for the random codes, in
            logits; the study's extractor first, (e, n, 4).
        shapley: Mean Shapley value of each code over the images that hold it, by the study's extractor; None: no image.
        cells: Positions that the codes take up, mean over images.
        control_cells: Likewise of the random codes.
    """

    concept: int
    codes: tuple[int, ...]
    values: Float[Tensor, "e n 4"]
    shapley: tuple[float | None, ...]
    cells: float
    control_cells: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Strictness:
    """How surely something must differ from nothing.

    Args:
        alpha: Share of false discoveries allowed, in (0, 1).
        seed: Of random signs and resampled images.
    """

    alpha: float = 0.05
    seed: int = 0

    @property
    def resampling(self) -> Resampling:
        """How intervals are made."""
        return Resampling(seed=self.seed)


def p_values(differences: Sequence[Float[Tensor, "_ _"]], seed: int) -> list[float | None]:
    """P-values of "the mean is 0, or the extractors differ in its sign", one per entry; None: too few images.

    The largest of the extractors' own p-values, and 1 where their means differ in sign: all must agree.

    Source:
        Berger 1982, Technometrics 24, 295-300 (intersection-union test).
    """

    def test(group: list[Tensor]) -> list[float | None]:
        p = sign_flip_p(torch.cat(group), seed=seed).split([len(one) for one in group])
        signs = [one.mean(1).sign() for one in group]
        return [float(a.max()) if bool((s == s[0]).all()) else 1.0 for a, s in zip(p, signs, strict=True)]

    return _by_size(differences, test, least=LEAST)


def corrected(p: Sequence[float | None]) -> list[float | None]:
    """The p-values after control of false discoveries among those that there are."""
    left = iter(false_discovery([one for one in p if one is not None]))
    return [None if one is None else next(left) for one in p]


def _by_size(rows: Sequence[Tensor], work: Callable[[list[Tensor]], list[T | None]], least: int) -> list[T | None]:
    """What `work` makes of rows (v, n) with the same n, asked once for all of them; None below `least`."""
    found: list[T | None] = [None] * len(rows)
    sizes = [row.shape[1] for row in rows]
    for size in sorted({size for size in sizes if size >= least}):
        numbers = [number for number, one in enumerate(sizes) if one == size]
        for number, one in zip(numbers, work([rows[number] for number in numbers]), strict=True):
            found[number] = one
    return found


def _intervals(rows: Sequence[Float[Tensor, "_ _"]], resampling: Resampling) -> list[list[Interval] | None]:
    """An interval per row of each entry; None where there is no image."""

    def work(group: list[Tensor]) -> list[list[Interval] | None]:
        flat = iter(intervals(torch.cat(group), resampling))
        return [[next(flat) for _ in one] for one in group]

    return _by_size(rows, work, least=1)


PAIR_COLUMNS = {
    "concept": Column(unit="name", meaning="The concept whose logit changes."),
    "code_a": Column(unit="code id", meaning="One of the concept's tokens."),
    "code_b": Column(unit="code id", meaning="Another one."),
    "form": Column(
        unit="name",
        meaning="removal: taken out of the concept's images that hold both; insertion: put, where each usually stands, "
        "into images of other concepts that hold neither.",
    ),
    "images": Column(unit="images", meaning="Test images averaged over."),
    "synergy": Column(
        unit="logits", meaning="What both do beyond the sum of each: joint minus effect_a minus effect_b."
    ),
    "low": Column(unit="logits", meaning="Lower end of its 95 % bootstrap interval over images."),
    "high": Column(unit="logits", meaning="Upper end of its 95 % bootstrap interval over images."),
    "p": Column(
        unit="probability, 0 to 1",
        meaning="Sign-flip test over images; the largest of all the study's extractors, 1 where their signs differ.",
    ),
    "q": Column(unit="probability, 0 to 1", meaning="p after control of false discoveries over the whole table."),
    "verdict": Column(
        unit="name",
        meaning="synergy: each needs the other; redundancy: either does without the other; exclusive: each speaks for "
        "the concept until the other comes; none; too few images.",
    ),
    "effect_a": Column(unit="logits", meaning="What code_a adds where neither stands, other codes left as they are."),
    "effect_b": Column(unit="logits", meaning="Likewise of code_b."),
    "joint": Column(unit="logits", meaning="What both add together."),
    "interaction": Column(
        unit="logits",
        meaning="Shapley interaction index: mean synergy over which others of the concept's tokens stand.",
    ),
    "extractors": Column(unit="extractors", meaning="Asked; numbers are those of the study's own."),
}


def pair_table(found: Sequence[PairValues], concepts: Sequence[str], strictness: Strictness) -> Table:
    """Every pair tested; the share of false discoveries is controlled over all of them."""
    p = p_values([synergy(one.values) for one in found], strictness.seed)
    q = corrected(p)
    spread = _intervals([_pair_numbers(one) for one in found], strictness.resampling)
    rows: list[dict[str, Any]] = []
    for one, chance, share, ends in zip(found, p, q, spread, strict=True):
        value = ends[0] if ends else None
        rows.append(
            {
                "concept": concepts[one.concept], "code_a": one.codes[0], "code_b": one.codes[1], "form": one.form,
                "images": one.values.shape[1],
                "synergy": value and value.value, "low": value and value.low, "high": value and value.high,
                "p": chance, "q": share, "verdict": pair_verdict(share, ends or [], strictness.alpha),
                "effect_a": ends and ends[1].value, "effect_b": ends and ends[2].value,
                "joint": ends and ends[3].value, "interaction": ends and ends[6].value,
                "extractors": len(one.values),
            }
        )  # fmt: skip
    return Table("interactions", PAIR_COLUMNS, rows)


def _pair_numbers(one: PairValues) -> Float[Tensor, "7 n"]:
    """By the study's extractor: synergy, each effect, the joint one, what that lacks of each, interaction index."""
    neither, first, second, both = one.values[0].unbind(1)
    return torch.stack(
        [
            synergy(one.values[0]), first - neither, second - neither, both - neither, both - first, both - second,
            one.interaction,
        ]
    )  # fmt: skip


def pair_verdict(q: float | None, ends: Sequence[Interval], alpha: float) -> str:
    """What a pair is, in a word.

    Args:
        q: None where there are too few images.
        ends: Intervals in the order of synergy, effect of each, joint effect, joint minus the first's and minus the
            second's.
        alpha: Share of false discoveries allowed.
    """
    if q is None:
        return TOO_FEW
    if q > alpha:
        return NONE
    if ends[0].value > 0:
        return SYNERGY
    speaks = all(one.low is not None and one.low > 0 for one in ends[1:3])
    undoes = all(one.high is not None and one.high < 0 for one in ends[4:6])
    return EXCLUSIVE if speaks and undoes else REDUNDANCY


GROUP_COLUMNS = {
    "concept": Column(unit="name", meaning="The concept whose logit changes."),
    "codes": Column(unit="code ids", meaning="Its tokens taken together, best first."),
    "images": Column(unit="images", meaning="Its test images with at least two of them, and as many other codes."),
    "shapley": Column(unit="logits", meaning="Mean Shapley value of each code over the images that hold it."),
    "joint": Column(unit="logits", meaning="What all of them add where none stands.", better="higher"),
    "joint_low": Column(unit="logits", meaning="Lower end of its 95 % bootstrap interval over images."),
    "joint_high": Column(unit="logits", meaning="Upper end of its 95 % bootstrap interval over images."),
    "singles": Column(unit="logits", meaning="Sum of what each adds where none stands."),
    "excess": Column(unit="logits", meaning="What all do beyond the sum of each: joint minus singles."),
    "excess_low": Column(unit="logits", meaning="Lower end of its 95 % bootstrap interval over images."),
    "excess_high": Column(unit="logits", meaning="Upper end of its 95 % bootstrap interval over images."),
    "control_joint": Column(unit="logits", meaning="joint of as many random codes of the same images."),
    "control_excess": Column(unit="logits", meaning="excess of those."),
    "cells": Column(unit="positions", meaning="Mean number of positions that hold one of the codes."),
    "control_cells": Column(unit="positions", meaning="Mean number that hold one of the random codes."),
    "p_joint": Column(unit="probability, 0 to 1", meaning="Sign-flip test of joint against control_joint, as p."),
    "q_joint": Column(unit="probability, 0 to 1", meaning="p_joint after control of false discoveries over concepts."),
    "p": Column(
        unit="probability, 0 to 1",
        meaning="Sign-flip test of excess against control_excess over images; the largest of all the study's "
        "extractors, 1 where their signs differ.",
    ),
    "q": Column(unit="probability, 0 to 1", meaning="p after control of false discoveries over concepts."),
    "verdict": Column(
        unit="name", meaning="synergy or redundancy, more than among random codes; none; too few images."
    ),
    "extractors": Column(unit="extractors", meaning="Asked; numbers are those of the study's own."),
}  # fmt: skip


def group_table(found: Sequence[GroupValues], concepts: Sequence[str], strictness: Strictness) -> Table:
    """The whole set of each concept's codes tested against random codes of the same images."""
    beyond = [_excess(one.values) for one in found]
    p = p_values([ours - control for ours, control in beyond], strictness.seed)
    p_joint = p_values([one.values[..., 0] - one.values[..., 2] for one in found], strictness.seed)
    q, q_joint = corrected(p), corrected(p_joint)
    numbers = [
        torch.stack([*one.values[0].unbind(1)[:3], ours[0], control[0]])
        for one, (ours, control) in zip(found, beyond, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    for place, (one, ends) in enumerate(zip(found, _intervals(numbers, strictness.resampling), strict=True)):
        joint, singles, control, excess, chance = ends or NOTHING
        share = q[place]
        verdict = TOO_FEW if share is None else NONE
        if share is not None and share <= strictness.alpha and excess and chance:
            verdict = SYNERGY if excess.value > chance.value else REDUNDANCY
        rows.append(
            {
                "concept": concepts[one.concept], "codes": list(one.codes), "images": one.values.shape[1],
                "shapley": list(one.shapley),
                "joint": joint and joint.value, "joint_low": joint and joint.low, "joint_high": joint and joint.high,
                "singles": singles and singles.value,
                "excess": excess and excess.value, "excess_low": excess and excess.low,
                "excess_high": excess and excess.high,
                "control_joint": control and control.value, "control_excess": chance and chance.value,
                "cells": one.cells, "control_cells": one.control_cells,
                "p_joint": p_joint[place], "q_joint": q_joint[place], "p": p[place], "q": share, "verdict": verdict,
                "extractors": len(one.values),
            }
        )  # fmt: skip
    return Table("interaction_groups", GROUP_COLUMNS, rows)


def _excess(values: Float[Tensor, "e n 4"]) -> tuple[Float[Tensor, "e n"], Float[Tensor, "e n"]]:
    """Joint minus singles of the codes and of the random ones; 0 where it is rounding."""
    joint, singles, control, chance = values.unbind(-1)
    least = ROUNDING * values.abs().amax(-1)
    both = (joint - singles, control - chance)
    ours, theirs = (torch.where(one.abs() > least, one, 0) for one in both)
    return ours, theirs
