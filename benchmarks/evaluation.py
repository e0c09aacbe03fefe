"""Masking and judging: many maskings at once, and a loop that masks, decodes and judges one image at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from common import Comparison, in_turns
from torch import Tensor

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Generator
from vqcortex.evaluation import ARMS
from vqcortex.evaluation.arms import hide_top, score_arms
from vqcortex.evaluation.choose import arms_for, fills_for
from vqcortex.evaluation.curves import Curves, measure_curves
from vqcortex.evaluation.fills import Fill, code_frequency
from vqcortex.judges import CalibratedJudge, load_judges


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the problem.

    Args:
        images: That every arm is measured on.
        looped: Of them, those that the loop is timed on; its time is scaled up to all.
        counts: Numbers of positions hidden.
        batch: Pictures per step of ours.
    """

    model: str = "zoo:fashion"
    images: int = 1_000
    looped: int = 5
    counts: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30)
    batch: int = 64


FULL = Sizes()
SMALL = Sizes(model="toy", images=6, looped=2, counts=(1, 5))


@final
@dataclass(frozen=True, slots=True)
class Case:
    """Generated images, with the scores of every control arm."""

    model: Generator
    judges: tuple[CalibratedJudge, ...]
    tokens: Tensor
    concept: Tensor
    names: list[str]
    scores: Mapping[str, Tensor]
    fills: tuple[Fill, ...]
    counts: tuple[int, ...]


def case_of(sizes: Sizes) -> Case:
    """Draw the images and score them."""
    model, judges = load_model(sizes.model), load_judges(sizes.model)
    assert isinstance(model, Generator)
    names = [str(image) for image in range(sizes.images)]
    concept = torch.arange(sizes.images) % len(model.concepts)
    tokens = model.generate(concept, names, 0)
    counts = torch.stack(
        [torch.bincount(tokens[concept == one].flatten(), minlength=model.k) for one in range(len(model.concepts))]
    )
    scores = score_arms(arms_for(sorted(ARMS), counts=counts), model, tokens, concept, names)
    fills = fills_for(("mean_code", "grey"), frequency=code_frequency(tokens, model.k))
    return Case(model, judges, tokens, concept, names, scores, fills, sizes.counts)


def batched(case: Case, fill: Fill, sizes: Sizes) -> Curves:
    """Ours."""
    return measure_curves(
        case.model,
        case.judges,
        case.tokens,
        case.concept,
        case.names,
        case.scores,
        case.counts,
        [fill],
        kept=False,
        batch=sizes.batch,
    )


@torch.no_grad()
def loop(case: Case, fill: Fill, images: int) -> dict[tuple[int, str, int], list[float]]:
    """The loop: every judge's probability by (image, arm, n), for the first images."""
    found = {}
    for image in range(images):
        one = slice(image, image + 1)
        for arm, scores in case.scores.items():
            for n in case.counts:
                pixels = fill(case.model, case.tokens[one], hide_top(scores[one], n), case.names[one])
                found[image, arm, n] = [
                    float(judge(pixels)[0, case.concept[image]].exp()) for judge in case.judges
                ]  # fmt: skip
    return found


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file."""
    case = case_of(sizes)
    works: dict[str, Callable[[], object]] = {}
    for fill in case.fills:
        works[f"ours {fill.name}"] = partial(batched, case, fill, sizes)
        works[f"loop {fill.name}"] = partial(loop, case, fill, sizes.looped)
        loop(case, fill, 1)
    found = in_turns(works, repeats)
    shape = f"{sizes.images:,} images x {len(sizes.counts)} numbers of positions x {len(case.scores)} arms"
    return [
        Comparison(
            work=f"masking and judging {shape}, {len(case.judges)} judges, {fill.name}",
            rival="a loop over images and maskings",
            unit="s",
            ours=found[f"ours {fill.name}"],
            theirs=found[f"loop {fill.name}"].times(sizes.images / sizes.looped),
            at_least=30,
            note=f"timed on {sizes.looped} images and scaled up",
        )
        for fill in case.fills
    ]
