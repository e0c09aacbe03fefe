"""The evidence of a study: every explanation against its controls, judged by classifiers that never saw it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqcortex.errors import ConfigError
from vqcortex.evaluation import ARMS
from vqcortex.evaluation.arms import score_arms
from vqcortex.evaluation.choose import arms_for, fills_for
from vqcortex.evaluation.codebook_level import measure_codebook_level
from vqcortex.evaluation.concept_level import OURS, frequency_lists, measure_concept_level, random_lists, same_length
from vqcortex.evaluation.drop import measure_drop, steps_for
from vqcortex.evaluation.fills import Fill
from vqcortex.evaluation.intervals import Resampling
from vqcortex.evaluation.judge import Judge
from vqcortex.evaluation.tables import evidence_table, verdict_table
from vqcortex.evaluation.values import Evidence
from vqcortex.judges import CalibratedJudge, load_judges
from vqcortex.pipelines.concepts import concept_lists
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, code_counts, load_all, scored_shards
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.search import load_found
from vqcortex.pipelines.settings import EvaluateSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.results import Column, Table, save_table
from vqcortex.seeds import number_for
from vqcortex.tokens.store import TokenBatch

SEARCHED = "token_selection"


def evaluate(settings: EvaluateSettings, *, progress: Progress = QUIET) -> Path:
    """Judge a study at image, concept and codebook level, on test images that made no concept token.

    Returns:
        Folder with the tables image_level, concept_level, codebook_level, their verdicts (image_verdicts, ...), and
        scratch, each as Parquet and JSON with units, directions, intervals and numbers of images.
    Raises:
        ModelError: No judges lie with the model, or they know other concepts.
        ConfigError: An unknown fill, or a concept that no judge knows.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    judges = load_judges(settings.judges or loaded.model.name, settings.device)
    renamed = [OrderedJudge(judge, loaded.concepts) for judge in judges]
    fills = make_fills(settings, loaded)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "score", "concepts", "search")}
    inputs["judges"] = str(number_for(0, *(f"{one.name}{one.temperature}{one.concepts}" for one in judges)))
    key = stage_key("evaluate", settings, EvaluateSettings, inputs)

    def work(folder: Path) -> None:
        parts = ("image", "concept", "codebook")
        acts = {
            "image": lambda: _image_level(study, loaded, renamed, fills, settings),
            "concept": lambda: _concept_level(study, loaded, renamed, fills, settings),
            "codebook": lambda: _codebook_level(study, loaded, renamed, settings),
        }
        default = {"image": _method(study), "concept": OURS, "codebook": SEARCHED}
        resampling = Resampling(resamples=settings.interval_resamples, seed=settings.seed)
        for part in progress.track(parts, "evaluate: levels", len(parts)):
            _save(acts[part](), part, default[part], loaded.concepts, resampling, folder)
        save_table(_scratch(study, loaded, renamed), folder)

    run_stage(study, key, work)
    return study.path("evaluate")


def _method(study: Study) -> str:
    return str(study.record("score")["key"]["settings"]["method"])


def _save(
    evidence: Evidence, level: str, default: str, concepts: tuple[str, ...], resampling: Resampling, folder: Path
) -> None:
    save_table(evidence_table(evidence, concepts, name=f"{level}_level", resampling=resampling), folder)
    save_table(verdict_table(evidence, default, concepts, name=f"{level}_verdicts", resampling=resampling), folder)


class OrderedJudge:
    """A judge whose answers come in the order of the study's concepts, renormalised over those."""

    def __init__(self, judge: CalibratedJudge, concepts: tuple[str, ...]) -> None:
        if missing := [name for name in concepts if name not in judge.concepts]:
            raise ConfigError(
                f"judge {judge.name!r} does not know {missing[0]!r}; it knows: {', '.join(judge.concepts)}; "
                "name judges of these concepts with --judges"
            )
        self.name = judge.name
        self._judge = judge
        self._order = torch.tensor([judge.concepts.index(name) for name in concepts])
        self._is_same = concepts == judge.concepts

    def __call__(self, pixels: Tensor) -> Tensor:
        answer = self._judge(pixels)
        return answer if self._is_same else answer[:, self._order.to(answer.device)].log_softmax(1)


def make_fills(settings: EvaluateSettings, loaded: Loaded) -> Sequence[Fill]:
    """The fills asked for; those in token space use the codes of the explained images."""
    frequency = code_counts(loaded.store, EXPLAINED).sum(0).float()
    return fills_for(settings.fills, frequency=frequency, seed=settings.seed)


def images_to_judge(study: Study, loaded: Loaded, most: int) -> tuple[TokenBatch, dict[str, Tensor]]:
    """At most `most` test images, evenly over concepts, and their importance by method."""
    from vqcortex.tokens.shard import joined

    each = max(1, -(-most // len(loaded.concepts)))
    taken = [0] * len(loaded.concepts)
    batches, maps = [], []
    for batch, scored in scored_shards(study, loaded.store, (REPORTED,)):
        rows = []
        for row, concept in enumerate(batch.concept.tolist()):
            if taken[concept] < each:
                taken[concept] += 1
                rows.append(row)
        batches.append(batch.take(rows))
        maps.append({name: one[rows] for name, one in scored.importance.items()})
    importance = {name: torch.cat([one[name] for one in maps]) for name in maps[0]}
    return joined(batches), importance


def _image_level(
    study: Study, loaded: Loaded, judges: Sequence[Judge], fills: Sequence[Fill], settings: EvaluateSettings
) -> Evidence:
    batch, importance = images_to_judge(study, loaded, settings.evaluate_images)
    device = loaded.model.codebook.device
    tokens, concept = batch.tokens.to(device), batch.concept.to(device)
    arms = arms_for(list(ARMS), counts=code_counts(loaded.store, EXPLAINED), seed=settings.seed)
    controls = score_arms(arms, loaded.model, tokens, concept, batch.image_ids, batch=settings.batch)
    scores = {**importance, **controls}
    h, w = loaded.store.manifest.grid
    return measure_drop(
        loaded.model, judges, tokens, concept, batch.image_ids, {name: one.to(device) for name, one in scores.items()},
        steps_for(settings.shares, h * w), fills, batch=settings.batch,
    )  # fmt: skip


def _concept_level(
    study: Study, loaded: Loaded, judges: Sequence[Judge], fills: Sequence[Fill], settings: EvaluateSettings
) -> Evidence:
    batch, _ = images_to_judge(study, loaded, settings.evaluate_images)
    about = study.record("concepts")["key"]["settings"]
    ours = concept_lists(study, loaded.concepts, about["keep"])
    counts = code_counts(loaded.store, EXPLAINED)
    lists = {
        OURS: ours,
        "token_frequency": frequency_lists(counts, ours.shape[1]),
        "random_codes": random_lists(counts, ours.shape[1], settings.seed),
    }
    device = loaded.model.codebook.device
    return measure_concept_level(
        loaded.model, judges, batch.tokens.to(device), batch.concept.to(device), batch.image_ids,
        same_length(lists), fills, seed=settings.seed, batch=settings.batch,
    )  # fmt: skip


def _codebook_level(study: Study, loaded: Loaded, judges: Sequence[Judge], settings: EvaluateSettings) -> Evidence:
    found = load_found(study)
    device = loaded.model.codebook.device
    return measure_codebook_level(
        loaded.model, judges, found.start.to(device), found.source.to(device), found.target.to(device),
        found.image_ids, {name: grids.to(device) for name, grids in found.tokens.items()}, batch=settings.batch,
    )  # fmt: skip


SCRATCH_COLUMNS = {
    "concept": Column(unit="name", meaning="Concept searched for over a whole grid, from scratch."),
    "judge": Column(unit="name", meaning="Classifier that took no part in the search."),
    "restart": Column(unit="number, from 0", meaning="Independent restart."),
    "probability": Column(
        unit="probability, 0 to 1", better="higher",
        meaning="Judge's probability of the concept; low where the search only fools the extractor.",
    ),
}  # fmt: skip


@torch.no_grad()
def _scratch(study: Study, loaded: Loaded, judges: Sequence[Judge]) -> Table:
    found = load_found(study).scratch
    rows: list[dict[str, Any]] = []
    for concept, grids in enumerate([] if found is None else found.to(loaded.model.codebook.device)):
        pixels = loaded.model.decode(loaded.model.embed(grids))
        for judge in judges:
            chances = judge(pixels)[:, concept].exp().tolist()
            rows += [
                {"concept": loaded.concepts[concept], "judge": judge.name, "restart": restart, "probability": chance}
                for restart, chance in enumerate(chances)
            ]
    return Table("scratch", SCRATCH_COLUMNS, rows)
