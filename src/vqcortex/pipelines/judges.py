"""Judges of a study: those that lie with its model, or else two that are trained on the study's own pictures.

Trained judges see what the model decodes from training tokens, never the tokens, the codebook or the extractor, and
never a test image: those are what they are measured on here, and what they judge in `evaluate`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqcortex.adapters.family import Spec
from vqcortex.adapters.protocol import DECODE, Adapter
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, DataError, ModelError, StudyError
from vqcortex.files import hash_of_file, replacing, write_json
from vqcortex.judges import CalibratedJudge, has_judges, load_judges
from vqcortex.judges.quality import WEAK
from vqcortex.judges.resize import squared
from vqcortex.judges.train import (
    JUDGES,
    JudgeTraining,
    Pictures,
    fresh_judge,
    sight,
    train_judge,
    write_judge,
)
from vqcortex.pipelines.loaded import open_tokens
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import JudgedSettings, JudgesSettings
from vqcortex.pipelines.study import LOG, RECORD, Study, read_json, run_stage, stage_key
from vqcortex.pipelines.tokens import model_at
from vqcortex.results import Column, Table, load_table
from vqcortex.tokens.shard import SPLITS
from vqcortex.tokens.store import TokenStore, open_store

STAGE, TABLE = "judges", "judges"
OWN = "decoded training images of this study"
# Decoded together: a decoder's last bit may depend on its company, and training would carry that bit on.
TOGETHER = 32


def make_judges(
    settings: JudgesSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL
) -> tuple[CalibratedJudge, ...]:
    """Train judges on a study's pictures, unless some are named or lie with its model: then nothing is done.

    Args:
        settings: How, and which judges to take instead.
        progress: Told how far it is.
        engine: Where shards are decoded; training is done in this process.
    Returns:
        The judges that `evaluate` will ask, with the accuracy that was measured.
    Raises:
        StudyError: The study has no tokens yet.
        ModelError: The model cannot decode, so there are no pictures.
        DataError: A split or a concept has no pictures.
    """
    settings.check()
    study = Study(settings.out)
    store, model = open_tokens(study, settings.device)
    check_pictures(model)
    if (given := given_judges(settings.judges, model.name)) is not None:
        return load_judges(given, settings.device)
    key = stage_key(STAGE, settings, JudgesSettings, {"tokens": study.fingerprint("tokens")})
    run_stage(study, key, lambda folder: _make(folder, settings, store, model, progress, engine))
    return load_judges(str(study.path(STAGE)), settings.device)


def prepare_judges(
    settings: JudgesSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL
) -> tuple[CalibratedJudge, ...]:
    """As `make_judges`, but none where the model has no pictures: its stages up to the search need no judge."""
    settings.check()
    if DECODE not in open_tokens(Study(settings.out), settings.device)[1].abilities:
        return ()
    return make_judges(settings, progress=progress, engine=engine)


def judges_place(study: Study, named: str, model: Adapter) -> str:
    """Where the judges of a study lie, as `load_judges` wants it: those named, the model's, or those trained for it.

    Args:
        study: The study.
        named: From the settings; empty: none.
        model: Of the study.
    Raises:
        ModelError: There are none yet, or no pictures to judge.
        StudyError: Those trained for the study saw other tokens.
    """
    check_pictures(model)
    if (given := given_judges(named, model.name)) is not None:
        return given
    if not (study.path(STAGE) / RECORD).is_file():
        raise ModelError(
            f"no judges lie with {model.name!r} and none were trained for study {str(study.folder)!r}; "
            f"run 'vqcortex judges --out {study.folder}' first, or name a folder with --judges"
        )
    if study.record(STAGE)["key"]["inputs"]["tokens"] != study.fingerprint("tokens"):
        raise StudyError(
            f"the judges of study {str(study.folder)!r} were trained on other tokens than it holds now; "
            f"run 'vqcortex judges --out {study.folder}' again"
        )
    return str(study.path(STAGE).absolute())


def given_judges(named: str, model_name: str) -> str | None:
    """Where judges lie that are not the study's own: those named, or those beside its model; None: there are none."""
    if named or has_judges(model_name):
        return named or model_name
    spec = Spec.read(model_name)
    place = Path(spec.place).expanduser()
    if not spec.place or not place.exists():
        return None
    beside = str((place / spec.subfolder if place.is_dir() else place.parent).absolute())
    return beside if has_judges(beside) else None


def check_pictures(model: Adapter) -> None:
    """Return quietly if a model has pictures to judge.

    Raises:
        ModelError: It cannot decode.
    """
    if DECODE not in model.abilities:
        raise ModelError(
            f"model {model.name!r} cannot decode (it can: {', '.join(sorted(model.abilities)) or 'nothing'}), so it "
            "has no pictures to judge; tokens, train, score, concepts, traverse and search work without, "
            "judges, evaluate and report need a model with a decoder"
        )


# -- training ----------------------------------------------------------------------------------------------------------


def _make(
    folder: Path, settings: JudgesSettings, store: TokenStore, model: Adapter, progress: Progress, engine: Engine
) -> None:
    side, patch = sight(model.size, settings.judge_side)
    pictures = _pictures(_decoded(folder / LOG, settings, store, model, side, progress, engine), store)
    training = JudgeTraining(
        epochs=settings.judge_epochs, rate=settings.judge_rate, minibatch=settings.judge_minibatch,
        patience=settings.judge_patience, seed=settings.seed, device=settings.device,
    )  # fmt: skip
    concepts = store.manifest.concepts
    sizes = {
        "side": side, "patch": patch, "channels": 3 if pictures["train"].has_colour else 1, "concepts": len(concepts),
    }  # fmt: skip
    entries = [_trained(name, folder, pictures, training, sizes, progress) for name in JUDGES]
    made = {
        "way": "trained for a study", "trained_on": "decoded training images", "model": model.name,
        "identity": model.identity, "seed": settings.seed,
        "images": {split: len(pictures[split]) for split in SPLITS},
    }  # fmt: skip
    write_json(folder / "judges.json", {"concepts": list(concepts), "judges": entries, "made": made})
    shutil.rmtree(folder / LOG)


def _trained(
    name: str,
    folder: Path,
    pictures: Mapping[str, Pictures],
    training: JudgeTraining,
    sizes: Mapping[str, int],
    progress: Progress,
) -> dict[str, Any]:
    """A judge's entry of judges.json; one that a killed run finished is not trained again."""
    done = folder / LOG / f"{name}.json"
    if done.is_file():
        entry = read_json(done)
        weights = folder / entry["file"]
        if weights.is_file() and hash_of_file(weights) == entry["sha256"]:
            return entry
    network = fresh_judge(name, seed=training.seed, **sizes)
    with progress.bar(f"judges: epochs of {name}", training.epochs) as advance:
        state = train_judge(
            name, network, pictures["train"], pictures["validation"], training, folder / LOG / f"{name}.pt", advance
        )
    entry = write_judge(folder, name, network, state, pictures["validation"], pictures["test"])
    write_json(done, entry)
    return entry


def _decoded(
    folder: Path,
    settings: JudgesSettings,
    store: TokenStore,
    model: Adapter,
    side: int,
    progress: Progress,
    engine: Engine,
) -> list[NDArray[np.uint8]]:
    """What every shard's tokens decode to, in files of the folder: whole shards of a killed run are kept."""
    paths = [folder / f"pictures-{number:05d}.npy" for number in range(len(store.shards))]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    carried = Carried(model, model_at, model.name, settings.device, model.identity)
    work = partial(_decode_shard, carried=carried, store=store, side=side, together=min(TOGETHER, settings.batch))
    made = progress.track(engine.map(work, missing), "judges: shards decoded", len(missing))
    for number, block in zip(missing, made, strict=True):
        with replacing(paths[number]) as temporary, open(temporary, "wb") as file:
            np.save(file, block)
    return [np.load(path, mmap_mode="r") for path in paths]


@torch.no_grad()
def _decode_shard(
    number: int, *, carried: Carried[Adapter], store: TokenStore, side: int, together: int
) -> NDArray[np.uint8]:
    """The pictures of one shard as judges see them, (n, 3, side, side)."""
    model = carried.value
    parts = store.read(number, pictures=False).tokens.split(together)
    decoded = (model.decode(model.embed(part.to(model.device))).float() for part in parts)
    return np.concatenate([(squared(one, side) * 255).round().byte().cpu().numpy() for one in decoded])


def _pictures(blocks: Sequence[NDArray[np.uint8]], store: TokenStore) -> dict[str, Pictures]:
    """The pictures of every split."""
    places: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number in range(len(blocks)):
        batch = store.read(number, pictures=False)
        for row, (split, concept) in enumerate(zip(batch.split, batch.concept.tolist(), strict=True)):
            places[split].append((number, row))
            labels[split].append(concept)
    for split in SPLITS:
        if not labels[split]:
            raise DataError(
                f"the store at {str(store.folder)!r} has no {split} images for judges; "
                "make tokens again with a larger --per-concept, or name judges with --judges"
            )
    for number, name in enumerate(store.manifest.concepts):
        if number not in labels["train"]:
            raise ConfigError(
                f"concept {name!r} has no training images for judges; add images of it, or leave it out with --concepts"
            )
    return {split: Pictures(blocks, torch.tensor(places[split]), torch.tensor(labels[split])) for split in SPLITS}


# -- what readers are told ---------------------------------------------------------------------------------------------

COLUMNS = {
    "judge": Column(unit="name", meaning="Classifier of pictures that took no part in the explanation."),
    "trained_on": Column(unit="name", meaning="What it learned from."),
    "accuracy": Column(
        unit="share, 0 to 1", better="higher", meaning="Test images whose concept it finds most probable."
    ),
    "low": Column(unit="share, 0 to 1", meaning="Lower end of the 95 % interval of the accuracy (Wilson)."),
    "high": Column(unit="share, 0 to 1", meaning="Upper end of the 95 % interval of the accuracy (Wilson)."),
    "images": Column(unit="images", meaning="Test images it was measured on, untouched."),
    "chance": Column(unit="share, 0 to 1", meaning="What always naming the commonest concept would score."),
    "least": Column(unit="share, 0 to 1", meaning="What the lower end must reach for its word to count."),
    "ece": Column(
        unit="probability, 0 to 1", better="lower",
        meaning="Expected calibration error on the test images, after temperature scaling.",
    ),
    "verdict": Column(unit="name", meaning="good enough, or judge too weak: then its figures say next to nothing."),
}  # fmt: skip
WEAK_VERDICT, GOOD_VERDICT = "judge too weak", "good enough"


def judge_tables(study: Study, place: str, judges: Sequence[CalibratedJudge]) -> list[Table]:
    """The table of those judges whose files say how good they are; none where no file does.

    Args:
        study: The study they judge.
        place: Where they lie, from `judges_place`.
        judges: Opened there.
    """
    trained_on = OWN if Path(place) == study.path(STAGE).absolute() else f"elsewhere: {place}"
    rows = [
        {
            "judge": one.name, "trained_on": trained_on, "accuracy": one.quality.accuracy, "low": one.quality.low,
            "high": one.quality.high, "images": one.quality.images, "chance": one.quality.chance,
            "least": one.quality.least, "ece": one.quality.ece,
            "verdict": WEAK_VERDICT if one.quality.is_weak else GOOD_VERDICT,
        }
        for one in judges
        if one.quality is not None
    ]  # fmt: skip
    return [Table(TABLE, COLUMNS, rows)] if rows else []


def is_judged_by_own(study: Study) -> bool:
    """Whether a study's evidence rests on judges that were trained for it."""
    return any(row["trained_on"] == OWN for row in _rows(study))


def judge_facts(tables: Mapping[str, Table]) -> dict[str, str]:
    """What a page says of judges whose quality is known, name to text; empty where none is."""
    rows = tables[TABLE].rows if TABLE in tables else ()
    facts = {"trained on": str(rows[0]["trained_on"])} if rows else {}
    return facts | {str(row["judge"]): _quality_of(row) for row in rows}


def judge_notes(tables: Mapping[str, Table]) -> list[str]:
    """Sentences that a reader of figures by trained judges must see."""
    rows = tables[TABLE].rows if TABLE in tables else ()
    notes = [_weakness_of(row) for row in rows if row["verdict"] == WEAK_VERDICT]
    own = [row for row in rows if row["trained_on"] == OWN]
    if own:
        each = "; ".join(f"{row['judge']} is {_quality_of(row)}" for row in own)
        notes.append(
            f"No judges lie with this model, so {len(own)} were trained for this study, on its decoded training "
            f"images: {each}. They never saw a test image, a token or the extractor, but they learned from the images "
            "that trained the extractor: what is peculiar to those, both may have learned."
        )
    return notes


def told(settings: JudgesSettings) -> list[str]:
    """Closing lines of the command that trains judges."""
    study = Study(settings.out)
    given = given_judges(settings.judges, open_store(study.path("tokens"), verify=False).manifest.model)
    place = given or str(study.path(STAGE).absolute())
    rows = [row for table in judge_tables(study, place, load_judges(place)) for row in table.rows]
    lines = [f"judge {row['judge']}: {_quality_of(row)}" for row in rows]
    if given is not None:
        lines.append(f"nothing was trained: judges lie with {given!r}")
    return lines + [f"warning: {_weakness_of(row)}" for row in rows if row["verdict"] == WEAK_VERDICT]


def warned(settings: JudgedSettings) -> list[str]:
    """Closing lines of the commands whose figures rest on judges."""
    return [f"warning: {_weakness_of(row)}" for row in _rows(Study(settings.out)) if row["verdict"] == WEAK_VERDICT]


def _rows(study: Study) -> Iterator[Mapping[str, Any]]:
    path = study.path("evaluate") / f"{TABLE}.json"
    return iter(load_table(path).rows if path.is_file() else ())


def _quality_of(row: Mapping[str, Any]) -> str:
    return (
        f"right on {_percent(row['accuracy'])} of {row['images']:,} test images (95 % interval {_percent(row['low'])} "
        f"to {_percent(row['high'])}, chance {_percent(row['chance'])}), calibration error {row['ece']:.3f}"
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _weakness_of(row: Mapping[str, Any]) -> str:
    return (
        f"judge too weak: {row['judge'].removesuffix(WEAK)} is {_quality_of(row)}; its interval would have to begin at "
        f"{_percent(row['least'])} or above, so its figures are shown but say next to nothing: give it more images "
        "(--per-concept), or name other judges with --judges"
    )
