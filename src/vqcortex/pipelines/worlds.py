"""Planted worlds as a measurement: in every world, run and extractor, does each method find what was planted?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import ENCODE, GENERATE, Adapter, Generator, allowed_cells, check_ability
from vqcortex.attribution import METHODS
from vqcortex.attribution.protocol import Method, build_method
from vqcortex.concepts.pooling import concept_tokens, count_image_tokens
from vqcortex.config import plain
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, DataError
from vqcortex.extractors import EXTRACTORS
from vqcortex.extractors.protocol import build_extractor, see_with
from vqcortex.extractors.train import TrainData, TrainSettings, train_extractor
from vqcortex.files import hash_of_bytes, write_json
from vqcortex.images import load_pixels, open_images
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import WorldsSettings
from vqcortex.pipelines.tokens import model_at
from vqcortex.pipelines.worlds_pairs import planted_pairs
from vqcortex.pipelines.worlds_tables import Rows, tables_of
from vqcortex.results import Table, save_table
from vqcortex.search.traverse import swap_sum
from vqcortex.seeds import generator_for, number_for
from vqcortex.worlds import WORLDS
from vqcortex.worlds.measure import find_codes, mark, mean_per_code, rank_list
from vqcortex.worlds.planting import build_world
from vqcortex.worlds.protocol import CONCEPTS, LEAST_IMAGES, WITH, Parameters, World

ENSEMBLE = "ensemble"
TRAVERSAL = "traversal"
RANDOM = "random"  # a control: what scores that know nothing reach, a frequent code in counts above all
TOP_CODES = 10  # best codes looked at for the recall
TOP_SHARE = 0.1  # of positions, likewise
BASE = 2000  # grids to plant in at most; a world with more images plants in each several times, in other ways
POOLED = 5  # best positions pooled per image, as by default in `vqcortex concepts`
# What changes nothing about a piece: which others there are, and how many of them.
APART = frozenset(
    {"out", "device", "batch", "worlds", "extractors", "runs", "model", "images", "images_split", "interval_resamples"}
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One world of one run, looked at by one extractor."""

    world: str
    run: int
    extractor: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.world}-{self.run:03d}-{self.extractor}.json"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all pieces are made from.

    Args:
        model: Whose codes are planted.
        base: The grids they are planted in.
        settings: How.
    """

    model: Carried[Adapter]
    base: Int[Tensor, "n h w"]
    settings: WorldsSettings


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """An extractor that learned a world.

    Args:
        world: The world.
        module: The extractor.
        answers: The concept it finds likelier, per image of the world.
        alive: Codes that some base grid holds, ascending: those among which the true ones are to be found.
    """

    world: World
    module: nn.Module
    answers: Int[Tensor, " n"]
    alive: Int[Tensor, " a"]

    @property
    def accuracy(self) -> float:
        """Share of test images whose concept it knows, against the truth before noise."""
        test = self.world.rows("test")
        return float((self.answers[test] == self.world.truth[test]).double().mean())


def measure_worlds(
    settings: WorldsSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL
) -> dict[str, Table]:
    """Plant worlds, train extractors on them, and mark every method; the tables are also written to a folder.

    Args:
        settings: Which worlds, methods and extractors, and how often.
        progress: Told how far it is.
        engine: Where pieces are made, one per world, run and extractor.
    Returns:
        Tables by name: worlds_positions, worlds_codes, worlds_pairs, worlds_null, worlds_skipped and worlds_summary.
    Raises:
        ConfigError: Settings are wrong, or a world does not fit the model's grid or codes.
        UnknownName: There is no such world, method or extractor.
        DataError: Too few images to plant in.
        ModelError: The model can neither generate nor encode.
    """
    settings = _named(settings)
    model = load_model(settings.model, settings.device)
    base = base_grids(model, settings)
    ground = Ground(
        model=Carried(model, model_at, settings.model, settings.device, model.identity), base=base, settings=settings
    )
    _check_plantable(ground)
    key = _key(settings, model, base)
    pieces = [
        Piece(world=world, run=run, extractor=extractor)
        for run in range(settings.runs)
        for world in settings.worlds
        for extractor in settings.extractors
    ]
    folder = settings.out / "pieces"
    todo = [one for one in pieces if _read(folder / one.name, key) is None]
    made = engine.map(partial(measure_piece, ground=ground), todo)
    for piece, rows in progress.track(zip(todo, made, strict=True), "worlds: pieces", len(todo)):
        write_json(folder / piece.name, {"key": key, "rows": rows})
    tables = tables_of([_whole(folder / one.name, key) for one in pieces], settings)
    for table in tables.values():
        save_table(table, settings.out)
    return tables


def base_grids(model: Adapter, settings: WorldsSettings) -> Int[Tensor, "n h w"]:
    """Grids that look like the model's: drawn by it, evenly over its concepts, or encoded; int32, on the CPU.

    Raises:
        ModelError: The model cannot do what is asked.
        DataError: There are fewer pictures than images of a world.
    """
    wanted, step = min(settings.world_images, BASE), settings.batch
    if settings.images is not None:
        check_ability(model.name, model.abilities, ENCODE, "leave out --images")
        shown = (load_pixels(one.image, model.size) for one in open_images(settings.images, settings.images_split))
        pixels = list(islice(shown, wanted))
        if len(pixels) < wanted:
            raise DataError(
                f"{settings.images!r} holds {len(pixels)} pictures but {wanted} are planted in; "
                f"give more, or --world-images {len(pixels)}"
            )
        parts = [model.encode(torch.stack(pixels[at : at + step]).to(model.device)) for at in range(0, wanted, step)]
    else:
        check_ability(model.name, model.abilities, GENERATE, "give pictures to encode with --images")
        assert isinstance(model, Generator)
        ids = _ids(wanted)
        concept = torch.arange(wanted) % len(model.concepts)
        parts = [
            model.generate(concept[at : at + step], ids[at : at + step], settings.seed) for at in range(0, wanted, step)
        ]
    return torch.cat([one.cpu().int() for one in parts])


def measure_piece(piece: Piece, *, ground: Ground) -> Rows:
    """Plant, teach, explain and mark: rows of plain values by table."""
    taught = teach(piece, ground)
    about = {"world": piece.world, "run": piece.run, "extractor": piece.extractor}
    images, seed = ground.settings.explain_images, piece_seed(piece, ground)
    pairs = planted_pairs(
        taught.world, taught.module, ground.model.value, taught.alive, images=images, seed=seed
    )  # fmt: skip
    same = {**about, "accuracy": taught.accuracy}
    rows: Rows = {
        "positions": [], "codes": [], "null": [], "skipped": [],
        "pairs": [{**same, "together": taught.world.together, **row} for row in pairs],
    }  # fmt: skip
    for name in (*ground.settings.methods, RANDOM, TRAVERSAL):
        marks = Marked(
            same={**same, "method": name}, taught=taught, k=ground.model.value.k, seed=seed
        )  # fmt: skip
        try:
            found = _traversal(marks, ground) if name == TRAVERSAL else _attribution(name, marks, ground)
        except ConfigError as error:
            found = {"skipped": [{**about, "method": name, "reason": str(error)}]}
        for table, lines in found.items():
            rows[table] += lines
    return rows


def _attribution(name: str, marks: Marked, ground: Ground) -> Rows:
    """What a method finds: causal codes in test images; a decoy that no test image holds, in validation images."""
    taught = marks.taught
    method = drawn if name == RANDOM else _method(name, taught, ground)
    images = _explained(taught.world, "test", ground.settings)
    importance = explain(method, taught, images, ground)
    rows = {
        "positions": [*marks.positions(images, importance, "causal")],
        "codes": [*marks.codes(images, importance, "causal")],
        "null": [*marks.null(images, importance)],
    }
    if _is_absent_in_test(taught.world):
        images = _explained(taught.world, "validation", ground.settings)
        importance = explain(method, taught, images, ground)
        rows["positions"] += marks.positions(images, importance, "decoy")
        rows["codes"] += marks.codes(images, importance, "decoy")
    return rows


def _traversal(marks: Marked, ground: Ground) -> Rows:
    world = marks.taught.world
    effect = traversed(marks.taught, _explained(world, "test", ground.settings), ground)
    truths = ("causal", "decoy") if _is_absent_in_test(world) else ("causal",) if len(world.causal_codes) else ()
    return {"codes": [marks.code_row("effect", effect, truth, "test") for truth in truths]}


def piece_seed(piece: Piece, ground: Ground) -> int:
    """What the draws of a piece depend on: the extractor's part is in its name."""
    return number_for(ground.settings.seed, "worlds", piece.world, piece.run)


def teach(piece: Piece, ground: Ground) -> Taught:
    """Plant a world and train an extractor on it.

    Args:
        piece: Which.
        ground: The grids to plant in.
    """
    settings, model = ground.settings, ground.model.value
    seed = piece_seed(piece, ground)
    world = plant(piece.world, settings.world_images, seed, ground)
    train, chosen = world.rows("train"), world.rows("validation")
    codebook = model.codebook.detach()
    overrides = {one: value for one in ("width", "depth") if (value := getattr(settings, one))}
    module = build_extractor(piece.extractor, codebook.shape[1], model.grid, len(CONCEPTS), seed, **overrides)
    module = see_with(module.to(model.device), model.decode)
    train_extractor(
        module,
        TrainData(
            tokens=world.tokens[train], labels=world.concept[train],
            validation_tokens=world.tokens[chosen], validation_labels=world.concept[chosen],
        ),
        TrainSettings(
            epochs=settings.epochs, rate=settings.rate, minibatch=settings.minibatch, device=settings.device,
            step_every=-(-2 * settings.epochs // 3), seed=seed % 2**31,
        ),
        codebook,
    )  # fmt: skip
    answers, alive = _answers(module, model, world, settings.batch), frequency_of(ground).nonzero()[:, 0]
    return Taught(world=world, module=module, answers=answers, alive=alive)


def plant(name: str, images: int, seed: int, ground: Ground) -> World:
    """A world of so many images, planted in the base grids one after the other, again from the first where they end."""
    model, frequency = ground.model.value, frequency_of(ground)
    plantable = distinct_codes(model.codebook.detach().cpu(), frequency)
    return build_world(
        name, ground.base[torch.arange(images) % len(ground.base)], _ids(images), frequency=frequency,
        allowed=allowed_cells(model.levels, model.k), plantable=plantable,
        parameters=parameters_of(ground.settings, seed),
    )  # fmt: skip


def frequency_of(ground: Ground) -> Int[Tensor, " k"]:
    """How often the base grids hold each code."""
    return ground.base.flatten().long().bincount(minlength=ground.model.value.k)


def distinct_codes(codebook: Float[Tensor, "k d"], frequency: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """The half of the live codes that lie farthest from their nearest live neighbour.

    What is planted must be what an extractor can tell apart: of two codes that are all but equal, a network that reads
    codes cannot say which one makes the concept, and no explanation of it could.
    """
    live = frequency.nonzero()[:, 0]
    away = torch.cdist(codebook[live].double(), codebook[live].double())
    nearest = away.fill_diagonal_(torch.inf).amin(1)
    found = torch.zeros(len(codebook), dtype=torch.bool)
    found[live[nearest >= nearest.median()]] = True
    return found


def parameters_of(settings: WorldsSettings, seed: int) -> Parameters:
    """What the settings say about planting."""
    names = {one.name for one in fields(Parameters)} - {"seed"}
    return Parameters(seed=seed, **{name: getattr(settings, name) for name in names})


def explain(
    method: Callable[..., Tensor], taught: Taught, rows: Int[Tensor, " r"], ground: Ground
) -> Float[Tensor, "r h w"]:
    """Importance for the concept "with" in these images, whatever their own, on the CPU.

    Raises:
        ConfigError: The method does not fit the extractor.
    """
    model, parts = ground.model.value, []
    for at in torch.split(rows, ground.settings.batch):
        embedded = model.embed(taught.world.tokens[at].to(model.device))
        concept = torch.full((len(at),), WITH, device=model.device)
        parts.append(method(taught.module, embedded, concept, [taught.world.image_ids[row] for row in at.tolist()]))
    return torch.cat(parts).detach().cpu()


def drawn(extractor: nn.Module, embedded: Tensor, concept: Tensor, image_ids: Sequence[str]) -> Float[Tensor, "b h w"]:
    """The control: even draws that belong to an image, called like a method."""
    grid = embedded.shape[2:]
    return torch.stack([torch.rand(grid, generator=generator_for(0, name, "random control")) for name in image_ids])


def traversed(taught: Taught, rows: Int[Tensor, " r"], ground: Ground) -> Float[Tensor, " k"]:
    """Effect of a code on the concept "with": mean over positions and over the images without it, first order."""
    model, world = ground.model.value, taught.world
    total, without = None, rows[world.truth[rows] != WITH]
    for at in torch.split(without, ground.settings.batch):
        tokens = world.tokens[at].to(model.device)
        one = swap_sum(taught.module, model.embed(tokens), tokens, model.codebook, WITH)
        total = one if total is None else total + one
    assert total is not None
    return (total.effects(model.codebook).mean((1, 2)) / total.images).detach().cpu()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """Rows about one method: what is the same in all of them, and what they are about.

    Args:
        same: Columns of every row.
        taught: The world and who learned it.
        k: Codes in the codebook.
        seed: Of the tests.
    """

    same: dict[str, Any]
    taught: Taught
    k: int
    seed: int

    def positions(self, rows: Tensor, importance: Tensor, truth: str) -> Iterator[dict[str, Any]]:
        """One row: marks of positions, mean over the images of the concept in which there is something to find.

        Only images that the extractor recognises count: what it does not see, no explanation of it can show.
        """
        world = self.taught.world
        mask = (world.causal if truth == "causal" else world.decoy)[rows].flatten(1)
        here = mask.any(1) & (world.truth[rows] == WITH) & (self.taught.answers[rows] == WITH)
        if here.any():
            top = max(1, round(TOP_SHARE * mask.shape[1]))
            marks = mark(importance.flatten(1)[here], mask[here], top)
            yield self.same | {
                "split": world.split[int(rows[0])], "truth": truth, "images": int(here.sum()),
                "auroc": float(marks.auroc.mean()), "precision": float(marks.precision.mean()),
                "recall": float(marks.recall.mean()),
            }  # fmt: skip

    def codes(self, rows: Tensor, importance: Tensor, truth: str) -> Iterator[dict[str, Any]]:
        """One row per way to pool importance into one score per code."""
        world = self.taught.world
        if not len(self._true_codes(truth)):
            return
        tokens, is_with = world.tokens[rows], world.truth[rows] == WITH
        found = set(find_codes(tokens, importance, world.truth[rows], self.k, seed=self.seed).codes.tolist())
        mean = mean_per_code(tokens[is_with], importance[is_with], self.k)
        scores = {"mean": mean, "sum": mean * tokens[is_with].flatten().bincount(minlength=self.k).clamp(min=1)}
        scores |= _pooled(tokens, importance, world.truth[rows], self.k)
        for pool, values in scores.items():
            row = self.code_row(pool, values, truth, world.split[int(rows[0])])
            tests = {"found": len(found), "found_true": len(found & set(row["codes"])) if found else 0}
            yield row | (tests if pool == "mean" else {})

    def code_row(self, pool: str, scores: Tensor, truth: str, split: str) -> dict[str, Any]:
        """Marks of codes among all live ones."""
        alive, true = self.taught.alive, self._true_codes(truth)
        values, is_true = scores[alive].double()[None], torch.isin(alive, true)[None]
        marks = mark(values, is_true, TOP_CODES)
        others = self.taught.world.decoy_codes if truth == "causal" else self.taught.world.causal_codes
        ranks, decoys = (rank_list(values[0], torch.searchsorted(alive, one).tolist()) for one in (true, others))
        return self.same | {
            "pool": pool, "split": split, "truth": truth, "codes": true.tolist(), "ranks": ranks,
            "auroc": float(marks.auroc[0]), "precision": float(marks.precision[0]), "recall": float(marks.recall[0]),
            "worst_rank": int(marks.worst[0]), "other_ranks": decoys,
            "above_others": min(scores[true].tolist()) > max(scores[others].tolist()) if len(others) else None,
            "found": None, "found_true": None,
        }  # fmt: skip

    def null(self, rows: Tensor, importance: Tensor) -> Iterator[dict[str, Any]]:
        """One row: codes found where there are none."""
        world = self.taught.world
        if not len(world.causal_codes):
            found = find_codes(world.tokens[rows], importance, world.truth[rows], self.k, seed=self.seed)
            yield self.same | {
                "tested": len(found.tested), "least_p": float(found.p.min()), "found": len(found.codes),
            }  # fmt: skip

    def _true_codes(self, truth: str) -> Tensor:
        world = self.taught.world
        return world.causal_codes if truth == "causal" else world.decoy_codes


def _pooled(tokens: Tensor, importance: Tensor, truth: Tensor, k: int) -> dict[str, Tensor]:
    """Count and lift of the codes at the best positions of the images of the concept, as in `vqcortex concepts`."""
    n = min(POOLED, tokens[0].numel())
    pool = count_image_tokens(tokens, importance, truth, k=k, concepts=len(CONCEPTS), positions=(n,))
    found = concept_tokens(pool, WITH, n, None)
    scores = {}
    for name in ("counts", "lift"):
        scores[name] = torch.full((k,), -torch.inf, dtype=torch.float64)
        scores[name][found.codes] = getattr(found, name).double()
    return scores


def _named(settings: WorldsSettings) -> WorldsSettings:
    """The settings with every name spelt out, each known, none twice."""
    settings.check()
    parameters_of(settings, settings.seed)
    named = replace(
        settings,
        worlds=tuple(dict.fromkeys(settings.worlds or tuple(WORLDS))),
        methods=tuple(dict.fromkeys(settings.methods or tuple(METHODS))),
        extractors=tuple(dict.fromkeys(settings.extractors)),
    )
    for registry, names in ((WORLDS, named.worlds), (METHODS, named.methods), (EXTRACTORS, named.extractors)):
        for name in names:
            registry[name]
    return named


def _check_plantable(ground: Ground) -> None:
    """Raise now what every piece would raise: that a world does not fit is found out here in a moment."""
    for world in ground.settings.worlds:
        plant(world, LEAST_IMAGES, ground.settings.seed, ground)


def _method(name: str, taught: Taught, ground: Ground) -> Method:
    if name == ENSEMBLE:
        raise ConfigError("an ensemble asks several extractors, and a piece has one; its method stands here by itself")
    frequency = taught.world.tokens[taught.world.rows("train")].flatten().bincount(minlength=ground.model.value.k)
    codebook = ground.model.value.codebook.detach()
    return build_method(
        name, codebook=codebook, frequency=frequency.to(codebook.device), draws=ground.settings.draws,
        seed=ground.settings.seed,
    )  # fmt: skip


def _explained(world: World, split: str, settings: WorldsSettings) -> Int[Tensor, " r"]:
    return world.rows(split)[: settings.explain_images]


def _is_absent_in_test(world: World) -> bool:
    decoy = WORLDS[world.name].decoy
    return decoy is not None and decoy.in_test == 0


@torch.no_grad()
def _answers(module: nn.Module, model: Adapter, world: World, batch: int) -> Int[Tensor, " n"]:
    parts = [module(model.embed(one.to(model.device))).argmax(1).cpu() for one in torch.split(world.tokens, batch)]
    return torch.cat(parts)


def _ids(count: int) -> list[str]:
    return [f"world-{number:06d}" for number in range(count)]


def _key(settings: WorldsSettings, model: Adapter, base: Tensor) -> str:
    """What a piece depends on beside its own name."""
    about = {name: value for name, value in plain(settings).items() if name not in APART}
    return hash_of_bytes(json.dumps([about, model.identity]).encode() + base.contiguous().numpy().tobytes())


def _read(path: Path, key: str) -> Rows | None:
    """Rows of a piece that was made before with the same settings; None: it must be made."""
    try:
        value = json.loads(path.read_text())
        return value["rows"] if value["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _whole(path: Path, key: str) -> Rows:
    rows = _read(path, key)
    assert rows is not None, f"{path} was written a moment ago"
    return rows
