"""Attribution methods compared on a study's own images: what the comparison page shows, so that it needs no model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, cast, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, DataError, VqCortexError
from vqcortex.evaluation import ARMS
from vqcortex.evaluation.comparison import (
    NOTE,
    Cost,
    Figures,
    agreement_table,
    best_of,
    check_methods,
    comparison_rows,
    comparison_table,
    cost_table,
    join_figures,
    pairs_table,
    recommendation_table,
    stability_table,
)
from vqcortex.evaluation.drop import steps_for
from vqcortex.evaluation.intervals import Resampling
from vqcortex.files import hash_of_bytes, replacing, write_json
from vqcortex.pipelines.contest import (
    EXTRACTORS,
    ORACLES,
    SEEDS,
    Contest,
    Tensors,
    ask_oracles,
    at_model,
    figures_of,
    judge_images,
    oracle_figures,
    steady_figures,
    steady_images,
)
from vqcortex.pipelines.evaluate import Court, Images, first_images
from vqcortex.pipelines.loaded import PUBLISHED, REPORTED, Loaded
from vqcortex.pipelines.methods import (
    CHEAPEST,
    ENSEMBLE,
    MethodPlan,
    members_asked,
    plan_methods,
    read_name,
    score_methods,
)
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import CompareSettings, ScoreSettings
from vqcortex.pipelines.study import LOG, Study, read_json
from vqcortex.results import Table, load_table
from vqcortex.seeds import number_for
from vqcortex.tokens.shard import joined
from vqcortex.tokens.store import TokenBatch, TokenStore

STAGE = "compare"
SECONDS = "seconds.json"
TIMED = 16  # images by which seconds are measured
ALONE = (
    PUBLISHED, "gradient_x_embedding", "noisy_gradient_x_embedding", "integrated_gradients", "occlusion", "banzhaf",
)  # fmt: skip
TOGETHER = (ScoreSettings.method, f"{ENSEMBLE}:occlusion")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonExhibit:
    """Everything the comparison page shows.

    Args:
        model: Name of the model.
        split: Which images were measured.
        images: How many.
        concepts: Number of concepts.
        methods: Compared, in the order they were asked for.
        controls: Arms that look at no extractor.
        fills: Names.
        judges: Names.
        counts: Numbers of positions hidden.
        deciding: Those that decide.
        positions: h*w.
        tables: By name: comparison, comparison_pairs, comparison_cost, agreement, stability, recommendation.
    """

    model: str
    split: str
    images: int
    concepts: int
    methods: tuple[str, ...]
    controls: tuple[str, ...]
    fills: tuple[str, ...]
    judges: tuple[str, ...]
    counts: tuple[int, ...]
    deciding: tuple[int, ...]
    positions: int
    tables: Mapping[str, Table]


def default_methods(loaded: Loaded) -> tuple[str, ...]:
    """What is compared unless told: methods of the study's extractor, and of its companions where it has any."""
    if not loaded.companions:
        return ALONE
    cheap = [CHEAPEST] if read_name(CHEAPEST).extractor in loaded.members else []
    return (*ALONE, *TOGETHER, *cheap)


def plan_contest(loaded: Loaded, court: Court, settings: CompareSettings, engine: Engine = SERIAL) -> Contest:
    """Build everything that is asked for, and try every method on one image before any work is given out.

    Args:
        loaded: The study.
        court: Its judges and fills.
        settings: What to compare.
        engine: Where codes are counted.

    Raises:
        UnknownName: There is no such method, or the study has no such extractor.
        ConfigError: Fewer than two concepts, a method named twice or called like a control, or one that its extractor
            cannot be explained with.
        ModelError: A method needs gradients that its extractor does not have.
    """
    if len(loaded.concepts) < 2:
        raise ConfigError(
            f"this study has {len(loaded.concepts)} concept ({', '.join(loaded.concepts)}), so that no judge can "
            "prefer another; compare needs at least 2"
        )
    names = settings.compare_methods or default_methods(loaded)
    check_methods(names, list(ARMS))
    asking = ScoreSettings(out=settings.out, seed=settings.seed, draws=settings.draws, noise=settings.noise)
    plan = plan_methods(names, asking, loaded, engine)
    image = loaded.store.read(0, pictures=False).take([0])
    for name in names:
        if (error := refusal(plan, name, loaded, image)) is not None:
            raise error.within(method=name)
    members = loaded.members if settings.stability_images else {}
    every = {f"{one.method}@{member}" for one in plan.asked.values() for member in members}
    apart = replace(plan, asked={name: read_name(name) for name in sorted(every)})
    able = {name: asked for name, asked in apart.asked.items() if refusal(apart, name, loaded, image) is None}
    h, w = loaded.model.grid
    return Contest(
        court=court,
        plan=plan,
        reseeded=reseeded(plan, number_for(settings.seed, "stability")),
        apart=replace(apart, asked=able),
        counts=steps_for(settings.compare_shares, h * w),
        deciding=steps_for(settings.decide_shares, h * w),
        seed=settings.seed,
        batch=settings.batch,
    )


def reseeded(plan: MethodPlan, seed: int) -> MethodPlan:
    """The plan with another seed in every method that draws."""
    drawing = {name for name, one in plan.methods.items() if "seed" in {field.name for field in fields(cast(Any, one))}}
    methods = {
        name: replace(cast(Any, one), seed=seed) if name in drawing else one for name, one in plan.methods.items()
    }
    return replace(plan, methods=methods)


def refusal(plan: MethodPlan, name: str, loaded: Loaded, image: TokenBatch) -> VqCortexError | None:
    """Why an image cannot be explained with a method; None: it can."""
    try:
        score_methods(only(plan, name), loaded, image.tokens, image.concept, image.image_ids)
    except VqCortexError as error:
        return error
    return None


def only(plan: MethodPlan, name: str) -> MethodPlan:
    """The plan of one of its methods."""
    return replace(plan, asked={name: plan.asked[name]})


def images_to_compare(store: TokenStore, split: str, most: int, engine: Engine = SERIAL) -> Images:
    """At most `most` images of a split, evenly over concepts.

    Raises:
        DataError: There are fewer than two.
    """
    each = max(1, -(-most // len(store.manifest.concepts)))
    taken = [0] * len(store.manifest.concepts)
    work = partial(_images_of_shard, store=store, split=split, each=each)
    found = [first_images(one, each, taken) for one in engine.map(work, range(len(store.shards)))]
    images = Images(joined([one.batch for one in found]), {})
    if len(images.batch) < 2:
        raise DataError(
            f"the {split} split of this study holds {len(images.batch)} image(s), and a comparison needs at least 2; "
            "make more tokens with a larger --per-concept"
        )
    return images


def _images_of_shard(number: int, *, store: TokenStore, split: str, each: int) -> Images:
    batch = store.read(number, pictures=False)
    mine = batch.take([row for row, one in enumerate(batch.split) if one == split])
    return first_images(Images(mine, {}), each, [0] * len(store.manifest.concepts))


def fewer(images: Images, most: int, concepts: int) -> Images:
    """About `most` of the images, evenly over concepts."""
    return first_images(images, -(-most // concepts), [0] * concepts)


def without(images: Images, others: Images) -> Images:
    """The images that are not among the others."""
    out = set(others.batch.image_ids)
    return images.take([row for row, name in enumerate(images.batch.image_ids) if name not in out])


def gather_comparison(
    folder: Path,
    loaded: Loaded,
    contest: Contest,
    settings: CompareSettings,
    notes: Sequence[str] = (),
    *,
    progress: Progress = QUIET,
    engine: Engine = SERIAL,
) -> ComparisonExhibit:
    """Measure methods, controls and oracles, and say which method to use.

    Args:
        folder: Of the stage; what a killed run measured is found in its log folder, and so are the seconds.
        loaded: The study.
        contest: What is compared.
        settings: On how many images.
        notes: What a reader must know of the judges.
        progress: Told how far it is.
        engine: Where images are measured; intervals and tests are made in this process.
    """
    resampling = Resampling(resamples=settings.interval_resamples, seed=settings.seed)
    images = images_to_compare(loaded.store, settings.compare_split, settings.compare_images, engine)
    concepts = len(loaded.concepts)

    def mapped(name: str, work: Callable[..., Tensors], some: Images) -> list[tuple[Images, Tensors]]:
        parts = some.parts(settings.batch)
        made = kept_pieces(folder / LOG / name, partial(work, contest=contest), parts, progress, engine)
        return list(zip(parts, made, strict=True))

    first = fewer(images, settings.insertion_images, concepts)
    both = mapped("judged, kept and removed", partial(judge_images, kept=True), first)
    judged = both + mapped("judged, removed", partial(judge_images, kept=False), without(images, first))
    figures = join_figures([figures_of(part, made, contest, kept=False) for part, made in judged])
    constant = constant_shares([made for _, made in judged], contest)
    rows = comparison_rows(figures, constant, resampling)
    if both:
        keeping = join_figures([figures_of(part, made, contest, kept=True) for part, made in both])
        rows += comparison_rows(keeping, constant, resampling)
    stability: dict[tuple[str, str], Tensor] = {}
    if settings.stability_images:
        steady = mapped("steadied", steady_images, fewer(images, settings.stability_images, concepts))
        alone = join_figures([steady_figures(part, made, contest) for part, made in steady])
        rows += comparison_rows(alone, constant, resampling)
        stability = stabilities([made for _, made in steady], contest)
    oracles = None
    if kinds := oracle_kinds(settings, contest):
        some = fewer(images, settings.oracle_images, concepts)
        asked = {kind: mapped(f"oracle, {kind}", partial(ask_oracles, kind=kind), some) for kind in kinds}
        oracles = side_by_side(
            [join_figures([oracle_figures(*one, contest, kind) for one in made]) for kind, made in asked.items()]
        )
        rows += comparison_rows(oracles, dict.fromkeys(oracles.arms, 0.0), resampling)  # an order is never constant
    costs = cost_table(figures, {name: cost_of(name, contest.plan, loaded) for name in contest.methods}, resampling)
    others = dict.fromkeys((*ARMS, *({PUBLISHED} & set(contest.methods)), best_of(costs)["method"]))
    pairs = pairs_table(figures, contest.methods, list(others), oracles, resampling)
    tables = (
        comparison_table(rows),
        pairs,
        costs,
        agreement_table(agreements([made for _, made in judged], contest), resampling),
        stability_table(stability, resampling),
        recommendation_table(
            costs, pairs, list(ARMS), settings.keep_share / 100, [*notes, *notes_of(contest, settings, constant)]
        ),
    )
    shutil.rmtree(folder / LOG)
    write_json(folder / LOG / SECONDS, seconds_of(loaded, contest, images))
    return ComparisonExhibit(
        model=loaded.model.name, split=settings.compare_split, images=len(images.batch), concepts=concepts,
        methods=contest.methods, controls=tuple(ARMS), fills=figures.fills, judges=figures.judges,
        counts=contest.counts, deciding=contest.deciding, positions=loaded.model.grid[0] * loaded.model.grid[1],
        tables={one.name: one for one in tables},
    )  # fmt: skip


def kept_pieces(
    folder: Path, work: Callable[[Images], Tensors], parts: Sequence[Images], progress: Progress, engine: Engine
) -> list[Tensors]:
    """What work makes of every part; what a killed run made of a part is read instead of made again."""
    names = [hash_of_bytes("\n".join(part.batch.image_ids).encode())[:16] for part in parts]
    paths = [folder / f"{number:05d}-{name}.safetensors" for number, name in enumerate(names)]
    todo = [number for number, path in enumerate(paths) if not path.is_file()]
    made = engine.map(work, [parts[number] for number in todo])
    seen = progress.track(made, f"compare: {folder.name}", len(todo)) if todo else []
    for number, tensors in zip(todo, seen, strict=True):
        with replacing(paths[number]) as temporary:
            save_file({name: one.contiguous() for name, one in tensors.items()}, temporary)
    return [load_file(path) for path in paths]


def constant_shares(made: Sequence[Tensors], contest: Contest) -> dict[str, float]:
    """By arm, the share of images to which it gives one score everywhere."""
    share = torch.cat([one["constant"] for one in made], 1).double().mean(1).tolist()
    return dict(zip(contest.arms, share, strict=True))


def agreements(made: Sequence[Tensors], contest: Contest) -> dict[tuple[str, str], Tensor]:
    """Rank correlations per image by pair of arms."""
    return dict(zip(combinations(contest.arms, 2), torch.cat([one["agreement"] for one in made], 1), strict=True))


def stabilities(made: Sequence[Tensors], contest: Contest) -> dict[tuple[str, str], Tensor]:
    """Rank correlations per image by method and by what was changed."""
    keys = [(name, over) for name in contest.methods for over in (SEEDS, EXTRACTORS)]
    return {key: torch.cat([one["/".join(key)] for one in made]) for key in keys}


def oracle_kinds(settings: CompareSettings, contest: Contest) -> tuple[str, ...]:
    """Which oracles are asked: none without images, or without a judge left to score them."""
    if not settings.oracle_images or len(contest.court.judges.value) < 2:
        return ()
    return tuple(ORACLES) if settings.oracle_fill == "both" else (settings.oracle_fill,)


def side_by_side(parts: Sequence[Figures]) -> Figures:
    """One set of figures with the arms of all parts, which share everything else."""
    values = {key: torch.cat([part.values[key] for part in parts]) for key in parts[0].values}
    return replace(parts[0], arms=tuple(arm for part in parts for arm in part.arms), values=values)


def cost_of(name: str, plan: MethodPlan, loaded: Loaded) -> Cost:
    """What a method costs per image, over all extractors it asks."""
    asked = plan.asked[name]
    members = len(members_asked(asked, loaded))
    forward, backward = plan.methods[asked.method].passes(loaded.model.grid)
    return Cost(extractors=members, forward=forward * members, backward=backward * members)


def notes_of(contest: Contest, settings: CompareSettings, constant: Mapping[str, float]) -> list[str]:
    """What a reader of the figures must know, one sentence each."""
    judges = [judge.name for judge in contest.court.judges.value]
    notes = [
        f"{arm} gives one score everywhere to {share * 100:.1f} % of the images; there, reading order decides."
        for arm, share in constant.items()
        if share
    ]
    if settings.oracle_images and len(judges) < 2:
        notes.append(f"There is one judge only ({judges[0]}), so no other could score its oracle, which was left out.")
    if settings.compare_split == REPORTED:
        notes.append(
            "Measured on test images: a method chosen here has seen them. Choose with --compare-split validation and "
            "report on test."
        )
    return notes


def seconds_of(loaded: Loaded, contest: Contest, images: Images) -> dict[str, float]:
    """Seconds per image that each method takes by itself, in this process, now: of this machine, and no result."""
    some = images.take(range(min(TIMED, len(images.batch))))
    tokens, concept, image_ids = at_model(some, loaded)
    found = {}
    for name in contest.methods:
        start = time.perf_counter()
        float(
            score_methods(only(contest.plan, name), loaded, tokens, concept, image_ids)[name].sum()
        )  # waits for a GPU
        found[name] = (time.perf_counter() - start) / len(image_ids)
    return found


def told(settings: CompareSettings) -> list[str]:
    """Closing lines of the command: what is recommended, as a small table, and what a reader must know."""
    folder = Study(settings.out).path(STAGE)
    rows = load_table(folder / "recommendation.json").rows
    seconds = read_json(folder / LOG / SECONDS) if (folder / LOG / SECONDS).is_file() else {}
    chosen = [row for row in rows if row["role"] != NOTE]
    heads = ("", "method", "mean drop", "kept", "passes", "ms/image here")
    cells = [heads, *(_told_row(row, seconds) for row in chosen)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines += [f"{row['role']}: {row['reason']}" for row in chosen]
    return lines + [f"note: {row['reason']}" for row in rows if row["role"] == NOTE]


def _told_row(row: Mapping[str, Any], seconds: Mapping[str, float]) -> tuple[str, ...]:
    kept = "" if row["kept"] is None else f"{row['kept'] * 100:.0f} %"
    took = f"{seconds[row['method']] * 1000:.1f}" if row["method"] in seconds else ""
    return row["role"], row["method"], f"{row['mean_drop']:.3f}", kept, f"{row['compute']:,}", took
