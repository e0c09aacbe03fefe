"""Edit images of a study by their tokens, say what the edit did, and keep a record that makes it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from vqcortex import __version__
from vqcortex.adapters.protocol import DECODE, check_ability
from vqcortex.config import plain, raise_all
from vqcortex.editing import CONTROLS, STRATEGIES, make_strategy
from vqcortex.editing.footprint import Place, dilated
from vqcortex.editing.measure import changed_tokens, features_of, measure_leak, measure_success, nearness
from vqcortex.editing.protocol import Means, Task
from vqcortex.editing.smallest import Smallest
from vqcortex.editing.swaps import best_window, copied, masked, parse_swaps, swapped, swaps_between, where_tokens
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, DataError, StudyError, VqCortexError
from vqcortex.evaluation.judge import ask
from vqcortex.files import write_json
from vqcortex.images.pixels import load_pixels
from vqcortex.judges import CalibratedJudge, load_judges
from vqcortex.pipelines.evaluate import court_inputs, ordered, spoken_concepts
from vqcortex.pipelines.judges import judges_place
from vqcortex.pipelines.levels import in_finest
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, load_all
from vqcortex.pipelines.means import JUDGE, choosers_of, footprint_of, live_codes, open_means, place_of
from vqcortex.pipelines.plan import choose
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.search import is_likely, read_region
from vqcortex.pipelines.settings import EditSettings
from vqcortex.pipelines.stamps import check_trust
from vqcortex.pipelines.strips import strip
from vqcortex.pipelines.study import Study, read_json, run_stage, stage_key
from vqcortex.results import Column, Table, load_table, save_table
from vqcortex.tokens.grid import check_tokens
from vqcortex.tokens.shard import joined
from vqcortex.tokens.store import TokenBatch, TokenStore

STAGE, RECORD, STRIP = "edit", "record.json", "strip.png"
FORMAT = 1
NOWHERE = -1  # a target that was not named
BEST, MASK, TOKENS = "best:", "mask:", "tokens:"
REAL = 300  # images of the target that an edit's features are compared with
FULL = 255.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """Images before and after an edit.

    Args:
        batch: The images as they were.
        target: Concept each is to show, (b,); -1: none was named.
        free: True where tokens could change, (b, h, w).
        after: The edited grids, (b, h, w).
        radius: Positions around the region that count as inside.
    """

    batch: TokenBatch
    target: Int[Tensor, " b"]
    free: Bool[Tensor, "b h w"]
    after: Int[Tensor, "b h w"]
    radius: int


def edit(settings: EditSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Edit images of a study.

    Args:
        settings: Which images, where, to what, and how; or a record to replay.
        progress: Told how far it is.
        engine: Where codes are counted.
    Returns:
        Folder with strip.png (per image: before, after, difference, changed tokens), record.json (the edited ids, the
        swaps and the settings; it replays) and the table edits, one row per image and judge.
    Raises:
        ConfigError: A region outside the grid or empty, swaps that cannot be read, a source that is its target, a
            concept that a judge does not know, or a name that nobody has.
        TokenError: A swap's code is outside the codebook.
        DataError: A mask image cannot be read, or no image has that id.
        StudyError: Tokens or extractor are not there yet, or the record is of another model.
        TrustError: Trust is required, and it is low or unknown.
    """
    settings.check()
    if settings.replay is None:
        raise_all(_lacking(settings))
    record = None if settings.replay is None else read_record(settings.replay)
    settings = settings if record is None else _as_recorded(settings, record)
    study = Study(settings.out)
    check_trust(study, settings.require_trust)
    loaded = load_all(study, settings.device)
    check_ability(loaded.model.name, loaded.model.abilities, DECODE, "an edit needs pictures")
    judges = load_judges(judges_place(study, settings.judges, loaded.model), settings.device)
    _check_names(settings, loaded)
    stage = stage_of(settings.label)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "train")}
    inputs |= study.fingerprints("concepts", "traverse") | court_inputs(judges, settings, loaded.concepts)
    key = stage_key(stage, settings, EditSettings, inputs)
    if record is None and study.is_whole(stage, key):
        return study.path(stage)
    # Chosen before the folder is touched: a mistake must not cost the edit that lies there.
    made = _made_again(record, loaded) if record is not None else _made(settings, study, loaded, judges, engine)

    def work(folder: Path) -> None:
        with progress.bar("edit: measured", 1) as advance:
            _write(folder, settings, made, loaded, judges)
            advance()

    run_stage(study, key, work)
    return study.path(stage)


def _lacking(settings: EditSettings) -> Iterator[str]:
    """What was not said and cannot be guessed."""
    if not (settings.source or settings.image):
        yield "nothing to edit: name a concept with --source, or images with --image"
    if not (settings.target or settings.swaps or settings.copy_from):
        yield "nothing to do: name a concept with --target, or give --swaps or --copy-from"


def _check_names(settings: EditSettings, loaded: Loaded) -> None:
    if settings.edit_strategy not in STRATEGIES:
        STRATEGIES[settings.edit_strategy]  # raises, and knows what was meant
    for name in filter(None, (settings.source, settings.target)):
        if name not in loaded.concepts:
            choose([name], loaded.concepts, "the study")  # likewise


# -- what is edited, and where -----------------------------------------------------------------------------------------


def _made(
    settings: EditSettings, study: Study, loaded: Loaded, judges: Sequence[CalibratedJudge], engine: Engine
) -> Edited:
    """Choose images, region and tokens."""
    batch = _images(settings, loaded)
    device = loaded.model.codebook.device
    target = _targets(settings, batch, loaded)
    alive = live_codes(loaded, engine)
    radius = settings.dilate if settings.dilate >= 0 else footprint_of(loaded, alive, settings.seed).radius()
    if settings.swaps:
        after = swapped(batch.tokens, parse_swaps(settings.swaps), loaded.model.k)
        return Edited(batch=batch, target=target, free=after != batch.tokens, after=after, radius=radius)
    spoken = spoken_concepts(settings.judge_concepts, loaded.concepts)
    ordered(judges, spoken)  # every judge must know every concept
    choosers = choosers_of(settings.chosen_by, loaded, judges, spoken)
    concepts = {*batch.concept.tolist(), *target[target != NOWHERE].tolist()}
    means = open_means(
        study, loaded, concepts, alive, tuple(choosers.values()), engine, batch=settings.batch, seed=settings.seed
    )
    task = Task(
        tokens=batch.tokens.to(device), free=torch.ones_like(batch.tokens, dtype=torch.bool).to(device),
        source=batch.concept.to(device), target=target.to(device), image_ids=batch.image_ids, seed=settings.seed,
    )  # fmt: skip
    free = region_of(settings, task, means, loaded, study)
    if settings.copy_from:
        other = image_of(loaded.store, [settings.copy_from]).tokens[0]
        after = copied(batch.tokens, other, free.cpu())
    else:
        place = place_of(loaded.model)
        inside = inside_of(free, radius, place)
        task = replace(task, free=free, inside=inside)
        try:
            after = _strategy(settings)(task, means).cpu()
        except ConfigError as error:  # which knows concepts by number only
            raise error.within(source=settings.source, target=settings.target) from error
    return Edited(batch=batch, target=target, free=free.cpu(), after=after, radius=radius)


def _strategy(settings: EditSettings) -> Any:
    return make_strategy(
        settings.edit_strategy, sureness=settings.sureness, over=settings.over, candidates=settings.edit_candidates,
        budget=settings.leak_budget / FULL if settings.leak_budget >= 0 else None, draws=settings.edit_draws,
    )  # fmt: skip


def _images(settings: EditSettings, loaded: Loaded) -> TokenBatch:
    if settings.image:
        return image_of(loaded.store, settings.image)
    concept = loaded.concepts.index(settings.source)
    stream = loaded.store.batches(settings.edit_images, split=REPORTED, concept=concept, pictures=False)
    if (batch := next(stream, None)) is None:
        raise ConfigError(f"concept {settings.source!r} has no test images to edit; choose another source")
    return batch


def image_of(store: TokenStore, image_ids: Sequence[str]) -> TokenBatch:
    """The images with these ids, in this order.

    Raises:
        DataError: The store has no image of that id.
    """
    found: dict[str, TokenBatch] = {}
    for number in range(len(store.shards)):
        batch = store.read(number, pictures=False)
        rows = {name: row for row, name in enumerate(batch.image_ids)}
        found |= {name: batch.take([rows[name]]) for name in image_ids if name in rows}
    if missing := [name for name in image_ids if name not in found]:
        first = store.read(0, pictures=False).image_ids[0]
        raise DataError(f"the study has no image {missing[0]!r}; its images are called as in {first!r}")
    return joined([found[name] for name in image_ids])


def _targets(settings: EditSettings, batch: TokenBatch, loaded: Loaded) -> Int[Tensor, " b"]:
    if settings.target:
        target = loaded.concepts.index(settings.target)
    elif settings.copy_from:
        target = int(image_of(loaded.store, [settings.copy_from]).concept[0])
    else:
        target = NOWHERE
    if not (settings.swaps or settings.copy_from) and (same := (batch.concept == target).nonzero()).numel():
        name = batch.image_ids[int(same[0, 0])]
        raise ConfigError(f"image {name!r} shows {settings.target!r} already; choose another target")
    return torch.full((len(batch),), target)


def region_of(settings: EditSettings, task: Task, means: Means, loaded: Loaded, study: Study) -> Bool[Tensor, "b h w"]:
    """Where the tokens of each image may change, of the laid-out grid.

    Raises:
        ConfigError: A region outside the grid, a mask of another shape, or an empty region.
        DataError: A mask image cannot be read.
    """
    levels, place, text = loaded.model.levels, place_of(loaded.model), settings.edit_region
    finest = in_finest(torch.ones(place.grid, dtype=torch.bool), levels).to(task.free.device)
    if text.startswith(TOKENS):
        return finest & _where_concept(text.removeprefix(TOKENS), task, means, loaded, study)
    if text.startswith(BEST):
        return _best(text.removeprefix(BEST), settings, task, means, place)
    if text.startswith(MASK):
        free = masked(_mask(Path(text.removeprefix(MASK))), place.grid, place.size)
    else:
        free = read_region(text, place.grid)
    return in_finest(free, levels).expand_as(task.free).to(task.free.device)


def _where_concept(name: str, task: Task, means: Means, loaded: Loaded, study: Study) -> Bool[Tensor, "b h w"]:
    if name not in loaded.concepts:
        choose([name], loaded.concepts, "the study")  # raises, and knows what was meant
    concept = loaded.concepts.index(name)
    codes = means.listed.get(concept)
    if codes is None:
        codes = open_means(study, loaded, [concept], means.alive).listed.get(concept)
    if codes is None:
        raise ConfigError(f"the study has no tokens of {name!r} yet; run 'vqcortex concepts --out {study.folder}'")
    free = where_tokens(task.tokens, codes[codes >= 0])
    if (without := (~free.flatten(1).any(1)).nonzero()).numel():
        image = task.image_ids[int(without[0, 0])]
        raise ConfigError(f"image {image!r} holds no token of {name!r}, so its region is empty; choose another region")
    return free


def _best(side: str, settings: EditSettings, task: Task, means: Means, place: Place) -> Bool[Tensor, "b h w"]:
    """The square where the choosers expect most of single swaps."""
    if not side.isdecimal():
        raise ConfigError(f"region {BEST + side!r} cannot be read; write the side of a square, as in 'best:3'")
    if (task.target == NOWHERE).any():
        raise ConfigError(f"region {BEST + side!r} needs a target to expect something of; name one with --target")
    smallest = Smallest(sureness=settings.sureness, over=settings.over)
    gain = torch.cat([smallest.estimates(one, one.tokens, means).amax(1) for one in task.parts(settings.batch)])
    flat, count = gain.flatten(1), place.grid[0] * place.grid[1]
    window = best_window(flat[:, place.first : place.first + count].unflatten(1, place.grid), int(side))
    free = torch.zeros_like(flat, dtype=torch.bool)
    free[:, place.first : place.first + count] = window.flatten(1)
    return free.view_as(task.free)


def _mask(path: Path) -> Float[Tensor, "H W"]:
    try:
        with Image.open(path) as image:
            return load_pixels(image, (image.height, image.width), 1)[0]
    except OSError as error:
        raise DataError(f"mask {str(path)!r} cannot be read as an image ({error}); give a PNG") from error


def inside_of(free: Bool[Tensor, "b h w"], radius: int, place: Place) -> Bool[Tensor, "b H W"]:
    """Pixels of a region and its footprint."""
    count = place.grid[0] * place.grid[1]
    finest = free.flatten(1)[:, place.first : place.first + count].unflatten(1, place.grid)
    return place.pixels(dilated(finest, radius))


# -- records -----------------------------------------------------------------------------------------------------------


def read_record(path: Path) -> dict[str, Any]:
    """The record of an edit.

    Raises:
        StudyError: It is none, or of another format.
    """
    record = read_json(path, "give the record.json of an edit")
    wanted = {"settings", "images", "identity", "model", "radius"}
    if record.get("format") != FORMAT or not wanted <= set(record):
        raise StudyError(f"{str(path)!r} is no record of an edit that this version reads; give a record.json of one")
    return record


@contextmanager
def _unchanged() -> Iterator[None]:
    """Say of a record that was written by hand or damaged that it was."""
    try:
        yield
    except VqCortexError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise StudyError(f"the record was changed and makes no edit ({said[:200]}); make it again") from error


def _as_recorded(settings: EditSettings, record: Mapping[str, Any]) -> EditSettings:
    """The settings of the record, in this study and on this device."""
    same = {name: getattr(settings, name) for name in ("out", "device", "batch", "require_trust", "replay")}
    with _unchanged():
        kept = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record["settings"].items()
            if value is not None
        }
        if "judge_concepts" in kept:
            kept["judge_concepts"] = Path(str(kept["judge_concepts"]))
        recorded = EditSettings(**{**kept, **same})
        recorded.check()
    return recorded


def _made_again(record: Mapping[str, Any], loaded: Loaded) -> Edited:
    """What a record holds, checked against the study."""
    if record["identity"] != loaded.model.identity:
        raise StudyError(
            f"the record is of model {record['model']!r} ({record['identity'][:12]}), not of {loaded.model.name!r} "
            f"({loaded.model.identity[:12]}); replay it in a study of its own model"
        )
    with _unchanged():
        names = [str(one["image_id"]) for one in record["images"]]
        radius = int(record["radius"])
        if not names or radius < 0:
            raise ValueError(f"{len(names)} images, radius {radius}")
    batch = image_of(loaded.store, names)  # outside: what is wrong with the store is not the record's fault
    with _unchanged():
        before, after, free = (
            torch.tensor([one[name] for one in record["images"]], dtype=batch.tokens.dtype).view_as(batch.tokens)
            for name in ("before", "after", "free")
        )
        target = torch.tensor(
            [NOWHERE if one["target"] is None else loaded.concepts.index(one["target"]) for one in record["images"]]
        )
    if not torch.equal(before, batch.tokens):
        raise StudyError("the record's images have other tokens in this study; replay it where it was made")
    check_tokens(after, loaded.model.k)
    return Edited(batch=batch, target=target, free=free.bool(), after=after, radius=radius)


def _record(settings: EditSettings, made: Edited, loaded: Loaded) -> dict[str, Any]:
    without = ("out", "device", "batch", "require_trust", "replay")
    images = [
        {
            "image_id": name, "source": loaded.concepts[source],
            "target": None if target == NOWHERE else loaded.concepts[target],
            "swaps": swaps_between(before, after), "before": before.tolist(), "after": after.tolist(),
            "free": free.int().tolist(),
        }
        for name, source, target, before, after, free in zip(
            made.batch.image_ids, made.batch.concept.tolist(), made.target.tolist(), made.batch.tokens, made.after,
            made.free, strict=True,
        )
    ]  # fmt: skip
    return {
        "format": FORMAT, "vqcortex": __version__, "model": loaded.model.name, "identity": loaded.model.identity,
        "settings": {name: value for name, value in plain(settings).items() if name not in without},
        "radius": made.radius, "images": images,
    }  # fmt: skip


# -- what it did -------------------------------------------------------------------------------------------------------

PROBABILITY = "probability, 0 to 1"
COLUMNS = {
    "image_id": Column(unit="name", meaning="The image."),
    "source": Column(unit="name", meaning="Concept it shows."),
    "target": Column(unit="name", meaning="Concept it is to show; empty where none was named."),
    "strategy": Column(unit="name", meaning="How the tokens were chosen."),
    "region_tokens": Column(unit="tokens", meaning="Positions that could change."),
    "changed_tokens": Column(unit="tokens", meaning="Tokens that changed.", better="lower"),
    "swaps": Column(unit="swaps", meaning="They, as row,column=code."),
    "judge": Column(unit="name", meaning="Classifier of pictures."),
    "role": Column(unit="name", meaning="chose: it helped to choose the tokens; held out: it took no part."),
    "source_before": Column(unit=PROBABILITY, meaning="Judge's probability of the source before the edit."),
    "source_after": Column(unit=PROBABILITY, meaning="The same after it.", better="lower"),
    "target_before": Column(unit=PROBABILITY, meaning="Judge's probability of the target before the edit."),
    "target_after": Column(unit=PROBABILITY, meaning="The same after it.", better="higher"),
    "accepted": Column(unit="yes or no", meaning="The judge finds the target likelier than the source after the edit."),
    "named": Column(unit="yes or no", meaning="The judge finds the target likelier than anything else after the edit."),
    "nearness_before": Column(
        unit="ratio", meaning="Distance in the judge's features to the target's nearest real image, over what is usual "
        "among those; before the edit.",
    ),
    "nearness_after": Column(unit="ratio", better="lower", meaning="The same after it; 1 is as near as they are."),
    "outside": Column(unit="share, 0 to 1", meaning="Share of the picture outside the region and its footprint."),
    "leak": Column(
        unit="255ths", better="lower",
        meaning="Mean absolute change of a pixel there; empty where nothing lies outside.",
    ),
    "leak_of_changed": Column(
        unit="255ths", better="lower",
        meaning="The same outside the footprint of the tokens that changed, wherever the region lies.",
    ),
    "leak_ssim": Column(unit="SSIM, -1 to 1", better="higher", meaning="Mean structural similarity there."),
    "leak_visible": Column(
        unit="share, 0 to 1", better="lower", meaning="Share of the pixels there that change by more than 8/255.",
    ),
    "likelihood_before": Column(
        unit="nats", meaning="The generator's log-likelihood of the grid as its source; empty without one that tells.",
    ),
    "likelihood_after": Column(
        unit="nats", better="higher", meaning="Of the edited grid, as the target (or as the source without one).",
    ),
}  # fmt: skip


@torch.no_grad()
def _write(
    folder: Path, settings: EditSettings, made: Edited, loaded: Loaded, judges: Sequence[CalibratedJudge]
) -> None:
    before, after = (_shown(loaded, one) for one in (made.batch.tokens, made.after))
    save_table(Table("edits", COLUMNS, _rows(settings, made, loaded, judges, before, after)), folder)
    place = place_of(loaded.model)
    changed = (made.after != made.batch.tokens).flatten(1)[:, place.first :].unflatten(1, place.grid)
    strip(before, after, changed).save(folder / STRIP)
    write_json(folder / RECORD, _record(settings, made, loaded))


def _shown(loaded: Loaded, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
    device = loaded.model.codebook.device
    return torch.cat([loaded.model.decode(loaded.model.embed(part.to(device))) for part in tokens.split(250)])


def _rows(
    settings: EditSettings,
    made: Edited,
    loaded: Loaded,
    judges: Sequence[CalibratedJudge],
    before: Tensor,
    after: Tensor,
) -> list[dict[str, Any]]:
    place, changed = place_of(loaded.model), made.after != made.batch.tokens
    leak, beyond = (
        measure_leak(before, after, inside_of(region, made.radius, place).to(before.device))
        for region in (made.free, changed)
    )
    has_target = made.target != NOWHERE
    as_what = torch.where(has_target, made.target, made.batch.concept)
    likely = [
        log_likelihood(loaded, tokens, concept)
        for tokens, concept in ((made.batch.tokens, made.batch.concept), (made.after, as_what))
    ]
    sizes = changed_tokens(made.batch.tokens, made.after)
    how = "swaps" if settings.swaps else "copy" if settings.copy_from else settings.edit_strategy
    shared = [
        {
            "image_id": name, "source": loaded.concepts[int(made.batch.concept[row])],
            "target": loaded.concepts[int(made.target[row])] if has_target[row] else None, "strategy": how,
            "region_tokens": int(made.free[row].sum()), "changed_tokens": int(sizes[row]),
            "swaps": swaps_between(made.batch.tokens[row], made.after[row]),
            "outside": float(leak.outside[row]), "leak": _known(leak.mean_absolute[row] * FULL),
            "leak_of_changed": _known(beyond.mean_absolute[row] * FULL),
            "leak_ssim": _known(leak.ssim[row]), "leak_visible": _known(leak.visible[row]),
            "likelihood_before": None if likely[0] is None else float(likely[0][row]),
            "likelihood_after": None if likely[1] is None else float(likely[1][row]),
        }
        for row, name in enumerate(made.batch.image_ids)
    ]  # fmt: skip
    real = {one: _real(loaded, one) for one in made.target[has_target].unique().tolist()}
    rows = []
    spoken = ordered(judges, spoken_concepts(settings.judge_concepts, loaded.concepts))
    for judge, speaks in zip(judges, spoken, strict=True):
        chose = JUDGE + judge.name in settings.chosen_by and how == settings.edit_strategy and how not in CONTROLS
        said = _judged(judge, speaks, made, real, before, after)
        rows += [
            {**about, "judge": judge.name, "role": "chose" if chose else "held out", **one}
            for about, one in zip(shared, said, strict=True)
        ]
    return rows


def _judged(
    judge: CalibratedJudge, speaks: Any, made: Edited, real: Mapping[int, Tensor], before: Tensor, after: Tensor
) -> list[dict[str, Any]]:
    """What a judge says of every image."""
    has_target, source = made.target != NOWHERE, made.batch.concept
    said = measure_success(ask(speaks, before), ask(speaks, after), source, made.target.clamp(min=0))
    near = torch.full((2, len(source)), float("nan"), dtype=torch.float64)
    for concept, pixels in real.items():
        rows = made.target == concept
        features = features_of(judge.network, pixels)
        near[:, rows] = torch.stack(
            [nearness(features_of(judge.network, one[rows]), features) for one in (before, after)]
        )
    return [
        {
            "source_before": float(said.source_before[row]), "source_after": float(said.source_after[row]),
            "target_before": float(said.target_before[row]) if has_target[row] else None,
            "target_after": float(said.target_after[row]) if has_target[row] else None,
            "accepted": bool(said.accepted[row]) if has_target[row] else None,
            "named": bool(said.named[row]) if has_target[row] else None,
            "nearness_before": _known(near[0, row]), "nearness_after": _known(near[1, row]),
        }
        for row in range(len(source))
    ]  # fmt: skip


def _known(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


def _real(loaded: Loaded, concept: int) -> Float[Tensor, "n 3 H W"]:
    """Decoded images that show a concept, none of which is ever edited by default."""
    for split in EXPLAINED:
        stream = loaded.store.batches(REAL, split=split, concept=concept, pictures=False)
        if (batch := next(stream, None)) is not None:
            return _shown(loaded, batch.tokens)
    return torch.zeros(0, 3, *loaded.model.size, device=loaded.model.codebook.device)


def log_likelihood(loaded: Loaded, tokens: Int[Tensor, "b h w"], concept: Int[Tensor, " b"]) -> Tensor | None:
    """How likely the model's generator draws grids when asked for a concept, in nats; None: it does not say."""
    model = loaded.model
    if not is_likely(model):
        return None
    parts = []
    for some, one in zip(tokens.split(64), concept.split(64), strict=True):
        at = some.to(model.codebook.device)
        names = torch.tensor([model.concepts.index(loaded.concepts[each]) for each in one.tolist()])
        every = model.log_probabilities(at, names.to(at.device))
        parts.append(every.gather(1, at[:, None]).sum((1, 2, 3)).double().cpu())
    return torch.cat(parts)


def edit_stages(study: Study) -> list[str]:
    """Stages of a study that are finished edits, by name."""
    found = [path.parent.name for path in study.folder.glob(f"{STAGE}*/stage.json")]
    return sorted(name for name in found if name == STAGE or name.startswith(f"{STAGE}-"))


def told(settings: EditSettings) -> list[str]:
    """Closing lines: per judge how many edits it accepts, and their size and leak."""
    return told_of(settings.out / stage_of(settings.label))


def stage_of(label: str) -> str:
    """The stage of an edit with this label."""
    return f"{STAGE}-{label}" if label else STAGE


def told_of(folder: Path) -> list[str]:
    """The same of the folder of an edit."""
    rows = load_table(folder / "edits.json").rows
    lines = []
    for judge in dict.fromkeys(row["judge"] for row in rows):
        mine = [row for row in rows if row["judge"] == judge and row["accepted"] is not None]
        if mine:
            count = sum(row["accepted"] for row in mine)
            lines.append(f"judge {judge} ({mine[0]['role']}) finds the target likelier in {count} of {len(mine)}")
    sizes = [row["changed_tokens"] for row in rows]
    leaks = [row["leak_of_changed"] for row in rows if row["leak_of_changed"] is not None]
    leak = f"{sum(leaks) / len(leaks):.2f}/255" if leaks else "none possible, nothing lies outside"
    lines.append(f"tokens changed: {sum(sizes) / len(sizes):.1f} per image; leak beyond their footprint: {leak}")
    return lines
