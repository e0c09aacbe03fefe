"""Codebook search by greedy swaps against the published 5,000 steps: the same extractor, images, regions and judges.

Tokens are drawn and the extractor is trained here, so that the figure needs nothing but the embedded model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from common import Comparison, Spread, seconds_of, spread_of
from torch import Tensor

from vqcortex.judges import CalibratedJudge, load_judges
from vqcortex.pipelines.judges import judges_place
from vqcortex.pipelines.loaded import EXPLAINED, Loaded, code_counts, load_all
from vqcortex.pipelines.search import read_pairs, read_region, start_images
from vqcortex.pipelines.settings import TokensSettings, TrainSettings
from vqcortex.pipelines.study import Study
from vqcortex.pipelines.tokens import make_tokens
from vqcortex.pipelines.train import train
from vqcortex.search.greedy import Greedy
from vqcortex.search.protocol import Start
from vqcortex.search.reference import PublishedSearch


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the problem.

    Args:
        images: Start images per pair of concepts.
        steps: Of the published search.
        budget: Passes of the greedy search at most.
    """

    model: str = "zoo:fashion"
    region: str = "2:5,2:5"
    per_concept: int = 300
    epochs: int = 10
    minibatch: int = 128
    images: int = 1
    steps: int = 5000
    rate: float = 0.01
    budget: int = 6000
    candidates: int = 64


FULL = Sizes()
SMALL = Sizes(model="toy", region="1:3,1:3", per_concept=20, epochs=2, minibatch=32, steps=3, budget=40, candidates=4)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One search problem: b grids, where they may change, and what they are to become."""

    what: str
    start: Tensor
    free: Tensor
    target: Tensor
    names: tuple[str, ...]
    begins: Start


def study_of(sizes: Sizes, folder: Path) -> tuple[Loaded, list[CalibratedJudge]]:
    """A study with tokens and an extractor, and the judges of its model."""
    make_tokens(TokensSettings(out=folder, model=sizes.model, per_concept=sizes.per_concept))
    train(TrainSettings(out=folder, companions=(), epochs=sizes.epochs, minibatch=sizes.minibatch, step_every=4))
    study = Study(folder)
    loaded = load_all(study, "cpu")
    return loaded, list(load_judges(judges_place(study, "", loaded.model), "cpu"))


def cases_of(sizes: Sizes, loaded: Loaded) -> list[Case]:
    """A window in images of another concept, and whole grids from nothing."""
    concepts, grid = loaded.concepts, loaded.model.grid
    start, _, target, names = start_images(loaded, read_pairs((), concepts), sizes.images)
    free = read_region(sizes.region, grid)
    everywhere = torch.ones(grid, dtype=torch.bool)
    nothing = torch.zeros(len(concepts), *grid, dtype=torch.int64)
    return [
        Case(what=f"window of {int(free.sum())} of {free.numel()} positions", start=start, free=free, target=target,
             names=names, begins="image"),
        Case(what="whole grid from scratch", start=nothing, free=everywhere, target=torch.arange(len(concepts)),
             names=concepts, begins="mean"),
    ]  # fmt: skip


def searches(sizes: Sizes, loaded: Loaded, case: Case) -> dict[str, Callable[[], Tensor]]:
    """Both searches, ready to run; each returns its grids (b, h, w)."""
    alive = code_counts(loaded.store, EXPLAINED).sum(0) > 0
    mine = Greedy(
        budget=sizes.budget, candidates=sizes.candidates, together=12, batch=250, start=case.begins, alive=alive
    )
    # Its better side: the likeliest codes and not a last draw of them.
    theirs = PublishedSearch(steps=sizes.steps, rate=sizes.rate, checkpoint_every=sizes.steps, decodes_draw=False)
    given = (loaded.trained.module, loaded.model.codebook, case.start, case.free, case.target, case.names)
    return {
        "ours": lambda: mine(*given).tokens[:, 0],
        "published": lambda: theirs(*given).trace.tokens[:, 0],
    }


@torch.no_grad()
def logits_at(loaded: Loaded, case: Case, grids: Tensor) -> Tensor:
    """The extractor's logit of each target, (b,)."""
    return loaded.trained.module(loaded.model.embed(grids)).gather(1, case.target[:, None])[:, 0]


@torch.no_grad()
def doubts(loaded: Loaded, judges: Sequence[CalibratedJudge], case: Case, grids: Tensor) -> dict[str, float]:
    """One minus each judge's mean probability of the target."""
    pixels = loaded.model.decode(loaded.model.embed(grids))
    places = {one.name: torch.tensor([one.concepts.index(loaded.concepts[t]) for t in case.target.tolist()])
              for one in judges}  # fmt: skip
    return {
        one.name: 1 - float(one(pixels).exp().gather(1, places[one.name][:, None]).double().mean()) for one in judges
    }


def compared(loaded: Loaded, judges: Sequence[CalibratedJudge], sizes: Sizes, case: Case) -> list[Comparison]:
    """Time, the extractor's target score and each judge's doubt, of one problem."""
    works, grids, seconds = searches(sizes, loaded, case), {}, {}
    for name, work in works.items():
        seconds[name] = seconds_of(lambda name=name, work=work: grids.update({name: work()})) / len(case.names)
    scores = {name: logits_at(loaded, case, one) for name, one in grids.items()}
    rival = f"the published {sizes.steps:,} steps"
    note = (
        f"{case.what}: mean logit of the target {float(scores['ours'].mean()):.2f}, theirs "
        f"{float(scores['published'].mean()):.2f}, over {len(case.names)} searches; ours takes all at once"
    )
    ceiling = float(torch.stack(list(scores.values())).max())
    doubt = {name: doubts(loaded, judges, case, one) for name, one in grids.items()}

    def row(work: str, unit: str, ours: float, theirs: float, at_least: float) -> Comparison:
        first, second = (_once(one) for one in (ours, theirs))
        return Comparison(
            work=f"{work}, {case.what}", rival=rival, unit=unit, ours=first, theirs=second, at_least=at_least, note=note
        )

    short = {name: ceiling - float(one.mean()) for name, one in scores.items()}
    return [
        row("one search", "s", seconds["ours"], seconds["published"], 20),
        row("target's logit short of the highest", "logits", short["ours"], short["published"], 1),
        *(
            row(f"doubt of judge {name}", "1 - probability", doubt["ours"][name], doubt["published"][name], 1)
            for name in doubt["ours"]
        ),
    ]


def _once(value: float) -> Spread:
    return spread_of([value])


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file; the published search takes so long that it runs once."""
    with tempfile.TemporaryDirectory() as folder:
        loaded, judges = study_of(sizes, Path(folder) / "study")
        return [one for case in cases_of(sizes, loaded) for one in compared(loaded, judges, sizes, case)]
