"""Random weights know nothing, so their maps must have nothing in common with those of what was learned."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vqcortex.evaluation.rank_agreement import rank_correlation
from vqcortex.evaluation.sanity.protocol import (
    Limits,
    Outcome,
    Step,
    Subject,
    mean_over,
    measured_independence,
    skipped,
)
from vqcortex.evaluation.sanity.randomise import layer_groups, randomised

NAME = "randomised_weights"


def measure_randomised_weights(subject: Subject, limits: Limits) -> Outcome:
    """Draw all weights anew, several times, and compare maps; the curve does it step by step, and step for step alone.

    Adebayo et al. take one layer at a time; ours may share a step, so that deep networks cost no more. Their figure is
    one draw's; ours is the mean over draws of the absolute mean correlation, so that one lucky draw decides nothing.
    """
    if (reason := skipped(NAME, subject, limits.independent)) is not None:
        return Outcome(reason)
    groups, original = layer_groups(subject.module, limits.steps), subject.original
    everything = [name for group in groups for name in group]
    fresh = [subject.maps(randomised(subject.module, everything, limits.seed + one)) for one in range(limits.draws)]
    curve = []
    for step, group in enumerate(groups, 1):
        above = tuple(name for one in groups[:step] for name in one)
        maps = fresh[0] if step == len(groups) else subject.maps(randomised(subject.module, above, limits.seed))
        alone = maps if step == 1 else subject.maps(randomised(subject.module, group, limits.seed))
        curve += [_step("cascading", step, group, original, maps), _step("independent", step, group, original, alone)]
    return Outcome(measured_independence(NAME, original, fresh, limits), tuple(curve))


def _step(
    kind: Literal["cascading", "independent"], step: int, layers: tuple[str, ...], original: Tensor, maps: Tensor
) -> Step:
    found = rank_correlation(original, maps)
    signed, magnitude = mean_over(found), mean_over(rank_correlation(original.abs(), maps.abs()))
    return Step(
        kind=kind, step=step, layers=layers,
        signed=None if signed is None else signed.value,
        low=None if signed is None else signed.low,
        high=None if signed is None else signed.high,
        magnitude=None if magnitude is None else magnitude.value,
        images=len(original), flat=int(found.is_flat.sum()),
    )  # fmt: skip
