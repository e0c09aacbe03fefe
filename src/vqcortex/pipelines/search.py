"""Search the codebook: in a region of existing images, and over a whole grid from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import groupby
from operator import add
from pathlib import Path
from typing import Any, TypeGuard, final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vqcortex.adapters.protocol import GENERATE, Adapter, Likely
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError
from vqcortex.files import write_json
from vqcortex.pipelines.levels import finest_codes, in_finest, shares_codes
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, carry, code_counts, load_all
from vqcortex.pipelines.plan import choose
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import SearchSettings
from vqcortex.pipelines.stamps import check_trust
from vqcortex.pipelines.study import Study, read_json, run_stage, stage_key
from vqcortex.results import Column, Table, Trace, save_table
from vqcortex.search import SEARCHES, make_search
from vqcortex.search.likelihood import GeneratorLikelihood
from vqcortex.search.objective import Together
from vqcortex.search.protocol import Restarted, Search, Swapping
from vqcortex.search.stability import search_stability
from vqcortex.search.statistics import TokenStatistics, count_tokens
from vqcortex.tokens.region import Region
from vqcortex.tokens.store import TokenStore
from vqcortex.weights import save_weights

SCRATCH = "scratch"
SCRATCHED = ("token_selection", "greedy")  # what searches whole grids, where it is among the strategies
PASSES = 2  # a gradient step costs: one forward, one backward


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search stage left behind.

    Args:
        image_ids: Of the start images, (b).
        source: Concept they show, (b,).
        target: Concept searched for, (b,).
        start: Their grids, (b, h, w).
        free: True where tokens could change, (h, w).
        tokens: By strategy, the final grids, (b, r, h, w).
        scratch: By strategy, free search of whole grids, per concept and restart, (c, r, h, w); empty when left out.
        extractors: Names of the extractors that were searched.
    """

    image_ids: tuple[str, ...]
    source: Tensor
    target: Tensor
    start: Tensor
    free: Tensor
    tokens: dict[str, Tensor]
    scratch: dict[str, Tensor]
    extractors: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Some images that one strategy searches.

    Args:
        search: The strategy.
        start: Their grids, (b, h, w).
        free: True where tokens may change, (h, w).
        target: Concept searched for, (b,).
        image_ids: b names.
    """

    search: Search
    start: Tensor
    free: Tensor
    target: Tensor
    image_ids: tuple[str, ...]

    def parts(self, size: int) -> Iterator[Task]:
        """Tasks of at most `size` images each, in order."""
        for first in range(0, len(self.image_ids), size):
            rows = slice(first, first + size)
            yield replace(self, start=self.start[rows], target=self.target[rows], image_ids=self.image_ids[rows])


def search(settings: SearchSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Search for the codes that turn a study's images into another concept, with every strategy.

    Args:
        settings: What to search, and how long.
        progress: Told how far it is.
        engine: Where images are searched, as many at once as their restarts fill `batch`.
    Returns:
        Folder with found.safetensors (start, source, target, free, and per strategy the final grids), found.json
        (image ids, strategies and extractors) and the table search_stability.
    Raises:
        ConfigError: An unknown concept, a region outside the grid, a source concept without test images, an extractor
            that the study lacks, or a generator that cannot say how likely a grid is.
        UnknownName: An unknown strategy.
        StudyError: The extractor is not trained yet.
        TrustError: Trust is required, and it is low or unknown.
    """
    settings.check()
    study = Study(settings.out)
    check_trust(study, settings.require_trust)
    loaded = load_all(study, settings.device)
    pairs = read_pairs(settings.pairs, loaded.concepts)
    levels = loaded.model.levels
    free = in_finest(read_region(settings.region, levels[-1].grid), levels)
    asked = _asked(study, settings, loaded, engine)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "train")}
    key = stage_key("search", settings, SearchSettings, inputs)
    carried = carry(study, settings.device, loaded)
    run_stage(study, key, lambda folder: _search(folder, settings, carried, asked, pairs, free, progress, engine))
    return study.path("search")


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """What a search asks besides tokens: small, or carried.

    Args:
        extractors: Names of members of the study.
        regulariser: "tokens" or "generator".
        weight: Of it; 0: it is not asked.
        statistics: Of the training images' tokens; None where they are not asked.
    """

    extractors: tuple[str, ...]
    regulariser: str
    weight: float
    statistics: Carried[TokenStatistics] | None

    def extractor(self, loaded: Loaded) -> nn.Module:
        """The one extractor, or all of them as one."""
        modules = [loaded.members[name].module for name in self.extractors]
        return modules[0] if len(modules) == 1 else Together(modules)

    def heard(self, search: Search, loaded: Loaded) -> Search:
        """The strategy with the regulariser, where it can hear one."""
        if not self.weight or not isinstance(search, Swapping):
            return search
        device = loaded.model.codebook.device
        plausible = (
            GeneratorLikelihood(loaded.model)
            if self.statistics is None and is_likely(loaded.model)
            else self._statistics().to(device)
        )
        changed: Any = search
        regular: Search = replace(changed, regulariser=plausible, weight=self.weight)
        return regular

    def _statistics(self) -> TokenStatistics:
        assert self.statistics is not None
        return self.statistics.value


def _asked(study: Study, settings: SearchSettings, loaded: Loaded, engine: Engine) -> Asked:
    for name in settings.strategies:
        SEARCHES[name]  # raises, and knows what was meant
    names = settings.search_extractors or (loaded.trained.extractor,)
    if missing := [name for name in names if name not in loaded.members]:
        raise ConfigError(
            f"the study has no extractor {missing[0]!r}; it has: {', '.join(loaded.members)}; "
            f"train it with --companions {missing[0]}"
        )
    by_tokens = settings.regulariser == "tokens"
    if settings.regulariser_weight and not by_tokens and not is_likely(loaded.model):
        raise ConfigError(
            f"model {loaded.model.name!r} cannot say how likely it draws a grid; use --regulariser tokens"
        )
    statistics = carry_statistics(study, loaded, engine) if settings.regulariser_weight and by_tokens else None
    return Asked(names, settings.regulariser, settings.regulariser_weight, statistics)


def is_likely(model: Adapter) -> TypeGuard[Likely]:
    """Whether a model says how likely it draws a grid."""
    return isinstance(model, Likely) and GENERATE in model.abilities


def carry_statistics(study: Study, loaded: Loaded, engine: Engine = SERIAL) -> Carried[TokenStatistics]:
    """How codes occur in a study's training images."""
    work = partial(_counted_shard, store=loaded.store, grids=tuple(level.grid for level in loaded.model.levels))
    counted = reduce(add, engine.map(work, range(len(loaded.store.shards))))
    return Carried(counted, statistics_at, study.folder.absolute(), study.fingerprint("tokens"))


def statistics_at(folder: Path, tokens: str) -> TokenStatistics:
    """What `carry_statistics` carries, counted where work is done.

    Args:
        folder: Of the study.
        tokens: Fingerprint of that stage; it tells two states of one study apart.
    """
    study = Study(folder)
    return carry_statistics(study, load_all(study, "cpu", verify=False)).value


def _counted_shard(number: int, *, store: TokenStore, grids: tuple[tuple[int, int], ...]) -> TokenStatistics:
    batch = store.read(number, pictures=False)
    rows = [row for row, split in enumerate(batch.split) if split == "train"]
    return count_tokens(batch.tokens[rows], store.manifest.k, grids)


def read_pairs(texts: Sequence[str], concepts: tuple[str, ...]) -> list[tuple[int, int]]:
    """Turn "SOURCE>TARGET" texts into pairs of concept numbers; none: each concept to the next."""
    if not texts:
        return [(one, (one + 1) % len(concepts)) for one in range(len(concepts))]
    pairs = []
    for text in texts:
        source, target = (part.strip() for part in text.split(">"))
        for name in (source, target):
            if name not in concepts:
                choose([name], concepts, "the study")  # raises, and knows what was meant
        if source == target:
            raise ConfigError(f"pair {text!r} searches for what is there already; give two different concepts")
        pairs.append((concepts.index(source), concepts.index(target)))
    return pairs


def read_region(text: str, grid: tuple[int, int]) -> Tensor:
    """True where tokens may change, (h, w).

    "centre" is the published 4x4 window of a 16x16 grid, scaled; at least 2x2. With several levels the grid is that of
    the finest one.
    """
    if text == "centre":
        side = max(min(2, *grid), round(min(grid) / 4))
        return Region.centre(grid, side).mask(grid)
    return Region.ensure(text, grid).mask(grid)


def strategy(name: str, settings: SearchSettings, alive: Tensor, **other: Any) -> Search:
    """A registered strategy with the study's settings; `other` replaces some."""
    is_constant = settings.temperature == settings.temperature_end
    given: dict[str, Any] = {
        "restarts": settings.restarts,
        "seed": settings.seed,
        "batch": settings.batch,
        "alive": alive,
        "steps": settings.steps,
        "rate": settings.search_rate,
        "start": settings.search_start,
        "record_every": settings.steps,
        "temperature": settings.temperature,
        "temperature_end": settings.temperature_end,
        "objective": settings.search_objective,
        "budget": settings.search_budget or PASSES * settings.steps,
        "candidates": settings.search_candidates,
        "width": settings.beam_width,
        "schedule": "constant" if is_constant else "linear",
    }
    return make_search(name, **{**given, **other})


def _search(
    folder: Path,
    settings: SearchSettings,
    carried: Carried[Loaded],
    asked: Asked,
    pairs: list[tuple[int, int]],
    free: Tensor,
    progress: Progress,
    engine: Engine,
) -> None:
    loaded = carried.value
    start, source, target, image_ids = start_images(loaded, pairs, settings.search_images)
    alive = finest_codes(code_counts(loaded.store, EXPLAINED, engine).sum(0) > 0, loaded.model.levels)
    has_scratch = settings.scratch and shares_codes(loaded.model.levels, loaded.model.k)
    names = tuple(dict.fromkeys(settings.strategies))
    scratched = [name for name in names if has_scratch and name in SCRATCHED]
    tasks = [
        Task(search=strategy(name, settings, alive), start=start, free=free, target=target, image_ids=image_ids)
        for name in names
    ]
    tasks += [_scratch_task(name, settings, loaded, alive) for name in scratched]
    found = _searched(tasks, settings.batch, carried, asked, progress, engine)
    traces = found[: len(names)]
    tensors = {"start": start, "source": source, "target": target, "free": free}
    tensors |= {f"tokens:{trace.strategy}": trace.tokens for trace in traces}
    tensors |= {f"{SCRATCH}:{trace.strategy}": trace.tokens for trace in found[len(names) :]}
    save_weights(tensors, folder / "found.safetensors")
    about = {"image_ids": image_ids, "strategies": names, SCRATCH: scratched, "extractors": asked.extractors}
    write_json(folder / "found.json", {key: list(value) for key, value in about.items()})
    save_table(_stability(traces, source, loaded.concepts), folder)


def start_images(
    loaded: Loaded, pairs: list[tuple[int, int]], each: int
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Start grids, sources, targets and names: the first test images of every pair's source."""
    grids, sources, targets, names = [], [], [], []
    for source, target in pairs:
        batch = next(loaded.store.batches(each, split=REPORTED, concept=source, pictures=False), None)
        if batch is None:
            raise ConfigError(
                f"concept {loaded.concepts[source]!r} has no test images to start from; choose another pair"
            )
        grids.append(batch.tokens)
        sources += [source] * len(batch)
        targets += [target] * len(batch)
        # One image can start several searches; its draws must differ between them.
        names += [f"{name}>{loaded.concepts[target]}" for name in batch.image_ids]
    return torch.cat(grids), torch.tensor(sources), torch.tensor(targets), tuple(names)


def _scratch_task(name: str, settings: SearchSettings, loaded: Loaded, alive: Tensor) -> Task:
    """Whole grids searched from the mean code, one problem per concept."""
    grid = loaded.store.manifest.grid
    return Task(
        search=strategy(name, settings, alive, restarts=settings.scratch, start="mean"),
        # Every position is free: what stands there is unread.
        start=torch.zeros(len(loaded.concepts), *grid, dtype=torch.int64),
        free=torch.ones(grid, dtype=torch.bool),
        target=torch.arange(len(loaded.concepts)),
        image_ids=tuple(f"{SCRATCH}/{name}" for name in loaded.concepts),
    )


def _searched(
    tasks: Sequence[Task], batch: int, carried: Carried[Loaded], asked: Asked, progress: Progress, engine: Engine
) -> list[Trace]:
    """The trace of every task."""
    parts = [(number, part) for number, task in enumerate(tasks) for part in task.parts(_images_at_once(task, batch))]
    made = engine.map(partial(_search_part, carried=carried, asked=asked), (part for _, part in parts))
    found: list[list[Trace]] = [[] for _ in tasks]
    for (number, _), trace in progress.track(zip(parts, made, strict=True), "search: parts", len(parts)):
        found[number].append(trace)
    return list(map(_joined, found))


def _images_at_once(task: Task, batch: int) -> int:
    """Whole images whose restarts run together in one step."""
    assert isinstance(task.search, Restarted)
    return max(1, batch // task.search.restarts)


def _search_part(part: Task, *, carried: Carried[Loaded], asked: Asked) -> Trace:
    loaded = carried.value
    device = loaded.model.codebook.device
    found = asked.heard(part.search, loaded)(
        asked.extractor(loaded), loaded.model.codebook,
        part.start.to(device), part.free.to(device), part.target.to(device), part.image_ids,
    )  # fmt: skip
    assert found.probability is not None
    return replace(
        found, tokens=found.tokens.cpu(), start=found.start.cpu(), free=found.free.cpu(),
        target=found.target.cpu(), probability=found.probability.cpu(),
    )  # fmt: skip


def _joined(parts: Sequence[Trace]) -> Trace:
    """One trace of the images of all parts, which were searched alike."""
    chances = [part.probability for part in parts if part.probability is not None]
    return replace(
        parts[0],
        tokens=torch.cat([part.tokens for part in parts]),
        start=torch.cat([part.start for part in parts]),
        target=torch.cat([part.target for part in parts]),
        probability=torch.cat(chances, 1),
    )


STABILITY_COLUMNS = {
    "source": Column(unit="name", meaning="Concept of the start images."),
    "target": Column(unit="name", meaning="Concept searched for."),
    "strategy": Column(unit="name", meaning="How it was searched."),
    "images": Column(unit="images", meaning="Start images."),
    "restarts": Column(unit="restarts", meaning="Independent restarts per image."),
    "probability_before": Column(
        unit="probability, 0 to 1", meaning="Extractor's probability of the target at the start."
    ),
    "probability_after": Column(
        unit="probability, 0 to 1", meaning="Extractor's probability of the target at the end.", better="higher"
    ),
    "jaccard_codes": Column(
        unit="Jaccard, 0 to 1", better="higher",
        meaning="Mean overlap of the codes chosen by two restarts; empty with one restart.",
    ),
    "jaccard_cells": Column(
        unit="Jaccard, 0 to 1", better="higher",
        meaning="The same for codes at their positions; empty with one restart.",
    ),
}  # fmt: skip


def _stability(traces: list[Trace], source: Tensor, concepts: tuple[str, ...]) -> Table:
    rows = [row for trace in traces for row in _stability_rows(trace, source, concepts)]
    return Table("search_stability", STABILITY_COLUMNS, rows)


def _stability_rows(trace: Trace, source: Tensor, concepts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    assert trace.probability is not None
    pairs = list(zip(source.tolist(), trace.target.tolist(), strict=True))
    restarts = trace.tokens.shape[1]
    codes, cells = search_stability(trace) if restarts > 1 else (None, None)
    for (one, other), group in groupby(range(len(pairs)), key=pairs.__getitem__):
        images = list(group)
        yield {
            "source": concepts[one],
            "target": concepts[other],
            "strategy": trace.strategy,
            "images": len(images),
            "restarts": restarts,
            "probability_before": float(trace.probability[0, images].mean()),
            "probability_after": float(trace.probability[-1, images].mean()),
            "jaccard_codes": None if codes is None else float(codes[images].mean()),
            "jaccard_cells": None if cells is None else float(cells[images].mean()),
        }


def load_found(study: Study) -> Found:
    """Read what the search stage of a study found."""
    study.record("search")
    tensors = load_file(study.path("search") / "found.safetensors")
    about = read_json(study.path("search") / "found.json")
    return Found(
        image_ids=tuple(about["image_ids"]),
        source=tensors["source"],
        target=tensors["target"],
        start=tensors["start"],
        free=tensors["free"],
        tokens={name: tensors[f"tokens:{name}"] for name in about["strategies"]},
        scratch={name: tensors[f"{SCRATCH}:{name}"] for name in about[SCRATCH]},
        extractors=tuple(about["extractors"]),
    )
