"""The evidence of a study: every explanation against its controls, judged by classifiers that never saw it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, ModelError
from vqcortex.evaluation import ARMS
from vqcortex.evaluation.arms import score_arms
from vqcortex.evaluation.choose import arms_for, fills_for
from vqcortex.evaluation.codebook_level import measure_codebook_level
from vqcortex.evaluation.concept_level import OURS, frequency_lists, measure_concept_level, random_lists, same_length
from vqcortex.evaluation.drop import measure_drop, steps_for
from vqcortex.evaluation.fills import Fill
from vqcortex.evaluation.intervals import Resampling
from vqcortex.evaluation.tables import evidence_table, verdict_table
from vqcortex.evaluation.values import Evidence, join_evidence
from vqcortex.extractors.train import hash_of_tensors
from vqcortex.files import hash_of_bytes
from vqcortex.judges import CalibratedJudge, load_judges
from vqcortex.pipelines.beliefs import belief_tables
from vqcortex.pipelines.concepts import concept_lists
from vqcortex.pipelines.judges import judge_tables, judges_place
from vqcortex.pipelines.levels import frequency_by_position
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, carry, code_counts, load_all, scored_shard
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.search import Found, carry_statistics, load_found
from vqcortex.pipelines.settings import EvaluateSettings, JudgedSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.results import Column, Table, save_table
from vqcortex.tokens.shard import joined
from vqcortex.tokens.store import TokenBatch, TokenStore, open_store

SEARCHED = "token_selection"


@final
@dataclass(frozen=True, slots=True)
class Court:
    """Who judges, and what.

    Args:
        loaded: The study.
        judges: Classifiers in the order of its concepts.
        fills: What hidden positions become.
        counts: How often each concept's explained images hold each code, (c, k).
    """

    loaded: Carried[Loaded]
    judges: Carried[tuple[OrderedJudge, ...]]
    fills: tuple[Fill, ...]
    counts: Carried[Tensor]


@final
@dataclass(frozen=True, slots=True)
class Images:
    """Images to judge, and their importance by method, (b, h, w) each."""

    batch: TokenBatch
    importance: dict[str, Tensor]

    def take(self, rows: Sequence[int]) -> Images:
        """Those at these places, in this order."""
        at = list(rows)
        return Images(self.batch.take(at), {name: maps[at] for name, maps in self.importance.items()})

    def parts(self, size: int) -> list[Images]:
        """At most `size` images each, in order."""
        images = range(len(self.batch))
        return [self.take(images[first : first + size]) for first in images[::size]]


def evaluate(settings: EvaluateSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Judge a study at image, concept and codebook level, on test images that made no concept token.

    Args:
        settings: What to measure, and on how many images.
        progress: Told how far it is.
        engine: Where batches of images are judged; intervals are drawn in this process.
    Returns:
        Folder with the tables image_level, concept_level, codebook_level, their verdicts (image_verdicts, ...),
        scratch, search_beliefs, search_witnesses, and judges where it is known how good they are, each as Parquet and
        JSON with units, directions, intervals and numbers of images.
    Raises:
        ModelError: There are no judges, or the model cannot decode and so has no pictures to judge.
        ConfigError: An unknown fill, or a concept that no judge knows.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    court, place, judges = open_court(study, loaded, settings, settings.fills, engine)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "score", "concepts", "search")}
    key = stage_key("evaluate", settings, EvaluateSettings, inputs | court_inputs(judges, settings, loaded.concepts))

    def work(folder: Path) -> None:
        images = images_to_judge(study, loaded, settings.evaluate_images, engine)
        parts = images.parts(settings.batch)
        lists = concept_lists_of(study, loaded, court.counts.value, settings.seed)
        found = load_found(study)
        levels: tuple[tuple[str, str, Callable[[Any], Evidence], list[Any]], ...] = (
            ("image", _method(study), partial(_image_level, court=court, settings=settings), parts),
            ("concept", OURS, partial(_concept_level, court=court, settings=settings, lists=lists), parts),
            (
                "codebook",
                _searched(found),
                partial(_codebook_level, court=court),
                _searched_parts(found, settings.batch),
            ),
        )
        resampling = Resampling(resamples=settings.interval_resamples, seed=settings.seed)
        for level, default, judged, pieces in levels:
            made = progress.track(engine.map(judged, pieces), f"evaluate: batches, {level} level", len(pieces))
            _save(join_evidence(list(made)), level, default, loaded.concepts, resampling, folder)
        statistics = carry_statistics(study, loaded, engine)
        believed = belief_tables(found, court.loaded, court.judges, statistics, settings.batch, resampling, engine)
        for table in (_scratch(found, court, engine), *believed, *judge_tables(study, place, judges)):
            save_table(table, folder)

    run_stage(study, key, work)
    return study.path("evaluate")


def open_court(
    study: Study, loaded: Loaded, settings: JudgedSettings, fills: Sequence[str], engine: Engine = SERIAL
) -> tuple[Court, str, tuple[CalibratedJudge, ...]]:
    """Who judges a study: the court, where its judges lie, and they as they lie there.

    Args:
        study: The study.
        loaded: What was loaded of it.
        settings: Which judges, and what they call the concepts.
        fills: Names of what hidden positions become.
        engine: Where codes are counted.

    Raises:
        ModelError: There are no judges, or the model cannot decode and so has no pictures to judge.
        ConfigError: A concept that no judge knows.
        UnknownName: An unknown fill.
    """
    place = judges_place(study, settings.judges, loaded.model)
    judges = load_judges(place, settings.device)
    spoken = spoken_concepts(settings.judge_concepts, loaded.concepts)
    counts = code_counts(loaded.store, EXPLAINED, engine)
    frequency = frequency_by_position(counts.sum(0).float(), loaded.model.levels)
    court = Court(
        carry(study, settings.device, loaded),
        Carried(ordered(judges, spoken), judges_at, place, settings.device, spoken, digest(judges)),
        tuple(fills_for(fills, frequency=frequency, seed=settings.seed)),
        Carried(counts, counts_at, study.folder.absolute(), study.fingerprint("tokens")),
    )
    return court, place, judges


def court_inputs(
    judges: Sequence[CalibratedJudge], settings: JudgedSettings, concepts: tuple[str, ...]
) -> dict[str, str]:
    """What a stage reads of its judges, by content."""
    return {"judges": digest(judges), **names_inputs(settings, concepts)}


def names_inputs(settings: JudgedSettings, concepts: tuple[str, ...]) -> dict[str, str]:
    """What the judges call the concepts, by content; empty where they call them as the study does."""
    if settings.judge_concepts is None:
        return {}
    spoken = spoken_concepts(settings.judge_concepts, concepts)
    return {"judge_concepts": hash_of_bytes(json.dumps(spoken).encode())}


def spoken_concepts(file: Path | None, concepts: tuple[str, ...]) -> tuple[str, ...]:
    """What the judges call a study's concepts, in the study's order.

    Args:
        file: A JSON object from names of the study to names of the judges; what it leaves out keeps its name. None:
            all do.
        concepts: Of the study.

    Raises:
        ConfigError: The file holds something else, names a concept that the study does not have, or calls two alike.
    """
    if file is None:
        return concepts
    try:
        called = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"judge-concepts={str(file)!r} cannot be read ({error}); give a JSON file") from error
    if not isinstance(called, dict) or not all(isinstance(name, str) for name in called.values()):
        raise ConfigError(
            f"judge-concepts={str(file)!r} must hold one object of texts, as in {{{json.dumps(concepts[0])}: "
            '"the name the judges know"}'
        )
    if unknown := [name for name in called if name not in concepts]:
        raise ConfigError(
            f"judge-concepts={str(file)!r} names {unknown[0]!r}, which is no concept of this study; "
            f"it has: {', '.join(concepts)}"
        )
    spoken = tuple(called.get(name, name) for name in concepts)
    if twice := [name for name in spoken if spoken.count(name) > 1]:
        alike = [concept for concept, name in zip(concepts, spoken, strict=True) if name == twice[0]]
        raise ConfigError(
            f"judge-concepts={str(file)!r} calls {' and '.join(map(repr, alike))} {twice[0]!r} alike, so that no judge "
            "can tell them apart; give each concept a name of its own"
        )
    return spoken


def _method(study: Study) -> str:
    return str(study.record("score")["key"]["settings"]["method"])


def _searched(found: Found) -> str:
    """The strategy whose verdicts are told: token selection, or the first where it was left out."""
    return SEARCHED if SEARCHED in found.tokens else next(iter(found.tokens))


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
                "name judges of these concepts with --judges, or say what they call it with --judge-concepts"
            )
        self.name = judge.name
        self._judge = judge
        self._order = torch.tensor([judge.concepts.index(name) for name in concepts])
        self._is_same = concepts == judge.concepts

    def __call__(self, pixels: Tensor) -> Tensor:
        answer = self._judge(pixels)
        return answer if self._is_same else answer[:, self._order.to(answer.device)].log_softmax(1)


def ordered(judges: Sequence[CalibratedJudge], concepts: tuple[str, ...]) -> tuple[OrderedJudge, ...]:
    """The judges, speaking in the order of these concepts."""
    return tuple(OrderedJudge(judge, concepts) for judge in judges)


def digest(judges: Sequence[CalibratedJudge]) -> str:
    """SHA-256 over everything that decides what judges say."""
    about = [[one.name, one.temperature, list(one.concepts), type(one.network).__qualname__] for one in judges]
    weights = hash_of_tensors(*(value for one in judges for value in one.network.state_dict().values()))
    return hash_of_bytes(f"{json.dumps(about)} {weights}".encode())


def judges_at(place: str, device: str, concepts: tuple[str, ...], wanted: str) -> tuple[OrderedJudge, ...]:
    """The judges of a study where work is done.

    Raises:
        ModelError: Other judges lie at that place there.
    """
    judges = load_judges(place, device)
    if digest(judges) != wanted:
        raise ModelError(
            f"the judges at {place!r} are not the ones that work was given out for; install the same ones everywhere"
        )
    return ordered(judges, concepts)


def counts_at(folder: Path, tokens: str) -> Tensor:
    """How often each concept's explained images hold each code, counted where work is done.

    Args:
        folder: Of the study.
        tokens: Fingerprint of that stage; it tells two states of one study apart.
    """
    return code_counts(open_store(folder / "tokens", verify=False), EXPLAINED)


def images_to_judge(study: Study, loaded: Loaded, most: int, engine: Engine = SERIAL) -> Images:
    """At most `most` test images, evenly over concepts, and their importance by method."""
    study.record("score")
    each = max(1, -(-most // len(loaded.concepts)))
    work = partial(_first_of_shard, scores=study.path("score").absolute(), store=loaded.store, each=each)
    taken = [0] * len(loaded.concepts)
    found = [first_images(images, each, taken) for images in engine.map(work, range(len(loaded.store.shards)))]
    maps = [one.importance for one in found]
    return Images(
        joined([one.batch for one in found]), {name: torch.cat([one[name] for one in maps]) for name in maps[0]}
    )


def _first_of_shard(number: int, *, scores: Path, store: TokenStore, each: int) -> Images:
    """The first test images of every concept in a shard, at most `each`."""
    batch, scored = scored_shard(number, scores, store, (REPORTED,))
    return first_images(Images(batch, scored.importance), each, [0] * len(store.manifest.concepts))


def first_images(images: Images, each: int, taken: list[int]) -> Images:
    """The images of concepts of which fewer than `each` are taken; counts those it takes."""
    rows = []
    for row, concept in enumerate(images.batch.concept.tolist()):
        if taken[concept] < each:
            taken[concept] += 1
            rows.append(row)
    return images.take(rows)


def _image_level(part: Images, *, court: Court, settings: EvaluateSettings) -> Evidence:
    model = court.loaded.value.model
    device = model.codebook.device
    tokens, concept, image_ids = part.batch.tokens.to(device), part.batch.concept.to(device), part.batch.image_ids
    arms = arms_for(list(ARMS), counts=court.counts.value, seed=settings.seed)
    scores = {**part.importance, **score_arms(arms, model, tokens, concept, image_ids, batch=settings.batch)}
    h, w = model.grid
    return measure_drop(
        model, court.judges.value, tokens, concept, image_ids, {name: one.to(device) for name, one in scores.items()},
        steps_for(settings.shares, h * w), court.fills, batch=settings.batch,
    )  # fmt: skip


def concept_lists_of(study: Study, loaded: Loaded, counts: Tensor, seed: int) -> dict[str, Tensor]:
    """Codes per arm of the concept level and concept, (c, m) each, as many in every arm."""
    ours = concept_lists(study, loaded.concepts, study.record("concepts")["key"]["settings"]["keep"])
    return same_length(
        {
            OURS: ours,
            "token_frequency": frequency_lists(counts, ours.shape[1]),
            "random_codes": random_lists(counts, ours.shape[1], seed),
        }
    )


def _concept_level(part: Images, *, court: Court, settings: EvaluateSettings, lists: dict[str, Tensor]) -> Evidence:
    model = court.loaded.value.model
    device = model.codebook.device
    return measure_concept_level(
        model, court.judges.value, part.batch.tokens.to(device), part.batch.concept.to(device), part.batch.image_ids,
        lists, court.fills, seed=settings.seed, batch=settings.batch,
    )  # fmt: skip


def _searched_parts(found: Found, size: int) -> list[Found]:
    """What was searched from at most `size` images each, in order."""
    slices = [slice(first, first + size) for first in range(0, len(found.image_ids), size)]
    return [
        replace(
            found, image_ids=found.image_ids[rows], source=found.source[rows], target=found.target[rows],
            start=found.start[rows], tokens={name: one[rows] for name, one in found.tokens.items()}, scratch={},
        )
        for rows in slices
    ]  # fmt: skip


def _codebook_level(part: Found, *, court: Court) -> Evidence:
    model = court.loaded.value.model
    device = model.codebook.device
    return measure_codebook_level(
        model, court.judges.value, part.start.to(device), part.source.to(device), part.target.to(device),
        part.image_ids, {name: grids.to(device) for name, grids in part.tokens.items()}, batch=len(part.image_ids),
    )  # fmt: skip


SCRATCH_COLUMNS = {
    "strategy": Column(unit="name", meaning="How it was searched."),
    "concept": Column(unit="name", meaning="Concept searched for over a whole grid, from scratch."),
    "judge": Column(unit="name", meaning="Classifier that took no part in the search."),
    "restart": Column(unit="number, from 0", meaning="Independent restart."),
    "probability": Column(
        unit="probability, 0 to 1", better="higher",
        meaning="Judge's probability of the concept; low where the search only fools the extractor.",
    ),
}  # fmt: skip


def _scratch(found: Found, court: Court, engine: Engine) -> Table:
    grids = [(name, concept, one) for name, every in found.scratch.items() for concept, one in enumerate(every)]
    rows = [row for rows in engine.map(partial(_scratch_rows, court=court), grids) for row in rows]
    return Table("scratch", SCRATCH_COLUMNS, rows)


@torch.no_grad()
def _scratch_rows(searched: tuple[str, int, Tensor], *, court: Court) -> list[dict[str, Any]]:
    """What the judges say to the grids (r, h, w) that a strategy found for a concept."""
    strategy, concept, grids = searched
    loaded = court.loaded.value
    pixels = loaded.model.decode(loaded.model.embed(grids.to(loaded.model.codebook.device)))
    return [
        {"strategy": strategy, "concept": loaded.concepts[concept], "judge": judge.name, "restart": restart,
         "probability": chance}
        for judge in court.judges.value
        for restart, chance in enumerate(judge(pixels)[:, concept].exp().tolist())
    ]  # fmt: skip
