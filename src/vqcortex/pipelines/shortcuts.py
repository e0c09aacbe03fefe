"""Shortcuts of a study: concept tokens that its extractor leans on and its judges do not, ranked with evidence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import DECODE, Adapter
from vqcortex.attribution.insertion import typical_places
from vqcortex.audit.shortcuts import Ask, Enrichment, change_without, gaps, measure_enrichment, outside_object
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.evaluation.fills import MeanCode
from vqcortex.evaluation.intervals import Interval, Resampling, interval
from vqcortex.evaluation.judge import Judge
from vqcortex.exhibit import Pictures
from vqcortex.pipelines.concepts import concept_lists
from vqcortex.pipelines.evaluate import Court
from vqcortex.pipelines.interactions import Question, questions
from vqcortex.pipelines.loaded import EXPLAINED, Loaded
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import ShortcutsSettings
from vqcortex.pipelines.stamps import stamp_of
from vqcortex.pipelines.study import Study
from vqcortex.results import Column, Table, load_table, stamped
from vqcortex.significance import false_discovery, sign_flip_p
from vqcortex.tokens.store import TokenStore

STAGE = "shortcuts"
LEAST = 5  # images from which a counterfactual is told
SHOWN, DRAWN = 4, 6  # images per suspect, and suspects, on the page
GAP = 0.05  # probability by which the extractor must move more than the judges
TOLD = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One code of one concept, tried.

    Args:
        concept: Its number.
        code: The code.
        place: Where it usually stands, (row, column), from 0.
        outside: Share of its positions that lie outside the object; None where no background is plain.
        removed: Change of the probability, by extractor and judges, in images of the concept without it, (n, 2).
        inserted: The same in images of other concepts with it, (m, 2).
        shown: Some images of the concept that hold it, (p, h, w).
    """

    concept: int
    code: int
    place: tuple[int, int]
    outside: float | None
    removed: Float[Tensor, "n 2"]
    inserted: Float[Tensor, "m 2"]
    shown: Int[Tensor, "p h w"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """One of the strongest suspects, drawn.

    Args:
        row: Its row of the table.
        pictures: Images of the concept that hold the code, (p, H, W, 3).
        without: The same with the mean code in its place.
        spots: The (row, column) where it stands, per picture.
    """

    row: Mapping[str, Any]
    pictures: Pictures
    without: Pictures
    spots: list[list[tuple[int, int]]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShortcutsExhibit:
    """Everything the page about shortcuts shows.

    Args:
        model: Its name.
        grid: Rows and columns of an image's positions, (h, w).
        judges: Names of those who judged.
        table: All codes examined, the strongest suspects first.
        suspects: The first of them, drawn.
    """

    model: str
    grid: tuple[int, int]
    judges: tuple[str, ...]
    table: Table
    suspects: tuple[Suspect, ...]


def gather_shortcuts(
    study: Study,
    loaded: Loaded,
    court: Court,
    settings: ShortcutsSettings,
    *,
    progress: Progress = QUIET,
    engine: Engine = SERIAL,
) -> ShortcutsExhibit:
    """Examine each concept's tokens: over-represented, outside the object, missed by the extractor and not by judges?

    Args:
        study: With its concepts pooled.
        loaded: What was loaded of it.
        court: Who judges it.
        settings: How many codes and images.
        progress: Told how far it is.
        engine: Where concepts are examined; tests and intervals are made in this process.
    """
    keep = study.record("concepts")["key"]["settings"]["keep"]
    codes = concept_lists(study, loaded.concepts, keep)[:, : settings.suspects]
    enrichment = measure_enrichment(*images_with_codes(loaded.store, EXPLAINED, engine))
    asked = questions(loaded.store, codes, settings.shortcut_images, settings.batch, engine, least=1)
    examine = partial(_examine, court=court, settings=settings)
    made = list(progress.track(engine.map(examine, asked), "shortcuts: concepts", len(codes)))
    examined = [one for some in made for one in some]
    table = stamped(shortcuts_table(examined, enrichment, loaded.concepts, settings), stamp_of(study))
    return ShortcutsExhibit(
        model=loaded.model.name,
        grid=loaded.model.grid,
        judges=tuple(judge.name for judge in court.judges.value),
        table=table,
        suspects=tuple(_suspects(table, examined, loaded, court)),
    )


def _suspects(table: Table, examined: Sequence[Examined], loaded: Loaded, court: Court) -> Iterator[Suspect]:
    known = {(loaded.concepts[one.concept], one.code): one for one in examined}
    for row in table.rows[:DRAWN]:
        one = known[row["concept"], row["code"]]
        if len(one.shown):
            at = one.shown == one.code
            yield Suspect(
                row=row,
                pictures=_pictures(one.shown, None, loaded.model, court),
                without=_pictures(one.shown, at, loaded.model, court),
                spots=[[(y, x) for y, x in cells.nonzero().tolist()] for cells in at],
            )


@torch.no_grad()
def _pictures(tokens: Tensor, hidden: Tensor | None, model: Adapter, court: Court) -> Pictures:
    embedded = model.embed(tokens.long().to(model.device))
    if hidden is not None:
        embedded = torch.where(hidden[:, None].to(embedded.device), _mean_of(court, model).to(embedded), embedded)
    pixels = model.decode(embedded).nan_to_num(0.0).clamp(0, 1)
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _mean_of(court: Court, model: Adapter) -> Float[Tensor, "1 d h w"]:
    fill = court.fills[0]
    assert isinstance(fill, MeanCode)
    return fill.codes(model, [""])


def images_with_codes(store: TokenStore, splits: tuple[str, ...], engine: Engine = SERIAL) -> tuple[Tensor, Tensor]:
    """Images of each concept that hold each code, (c, k), and images of each concept, (c,), over the given splits."""
    holding = torch.zeros(len(store.manifest.concepts), store.manifest.k, dtype=torch.int64)
    images = torch.zeros(len(holding), dtype=torch.int64)
    for cells, times, each in engine.map(
        partial(_codes_of_images, store=store, splits=splits), range(len(store.shards))
    ):
        holding.view(-1)[cells] += times
        images += each
    return holding, images


def _codes_of_images(number: int, *, store: TokenStore, splits: Collection[str]) -> tuple[Tensor, Tensor, Tensor]:
    batch = store.read(number, pictures=False)
    rows = torch.tensor([split in splits for split in batch.split])
    concept, tokens, k = batch.concept[rows], batch.tokens[rows].flatten(1).long(), store.manifest.k
    image = torch.arange(len(tokens))[:, None].expand_as(tokens)
    once = (image * k + tokens).unique()
    cells, times = (concept[once // k] * k + once % k).unique(return_counts=True)
    return cells, times, concept.bincount(minlength=len(store.manifest.concepts))


def _examine(asked: Question, *, court: Court, settings: ShortcutsSettings) -> list[Examined]:
    loaded, judges = court.loaded.value, court.judges.value

    def ask(embedded: Tensor) -> Tensor:
        return torch.cat(
            [_asked(one, asked.concept, loaded.model, loaded.trained, judges) for one in embedded.split(settings.batch)]
        )

    return examine_question(asked, loaded.model, ask, _mean_of(court, loaded.model), settings.shortcut_images)


@torch.no_grad()
def _asked(
    embedded: Tensor, concept: int, model: Adapter, trained: Any, judges: Sequence[Judge]
) -> Float[Tensor, "b 2"]:
    said = (trained.module(embedded) / trained.temperature).softmax(1)[:, concept]
    pixels = model.decode(embedded)
    seen = torch.stack([judge(pixels)[:, concept].exp() for judge in judges]).mean(0)
    return torch.stack([said, seen], 1).cpu().double()


def examine_question(
    asked: Question, model: Adapter, ask: Ask, mean: Float[Tensor, "1 d h w"], most: int
) -> list[Examined]:
    """What each code of a concept does, taken out of its images and put into others.

    Args:
        asked: The concept, its codes and the images.
        model: Whose codes they are.
        ask: Who is asked about the concept: the extractor and the judges.
        mean: What stands where a code was taken out.
        most: Images of other concepts at most.
    """
    usual = (asked.counts.sum((1, 2)) / asked.holding.clamp(min=1)).round().clamp(min=1).long()
    own, device = asked.images.tokens, model.device
    outside, plain = _outside(own, model)
    found = []
    for number, code in enumerate(asked.codes):
        at = own == code
        held = at.flatten(1).any(1)
        place = typical_places(asked.counts[[number]], [int(usual[number])])[0]
        lacking = (asked.others.tokens != code).flatten(1).all(1).nonzero()[:most, 0]
        removed = inserted = torch.zeros(0, 2, dtype=torch.float64)
        if held.any():
            removed = change_without(ask, model.embed(own[held].to(device)), at[held].to(device), mean.to(device))
        if len(lacking) and place.any():
            others = model.embed(asked.others.tokens[lacking].to(device))
            put = model.codebook[code][None, :, None, None]
            inserted = change_without(ask, others, place.to(device).expand(len(others), -1, -1), put)
        told = plain & held
        share = float((at & outside)[told].sum() / at[told].sum()) if bool(told.any()) else None
        row, column = divmod(int(asked.counts[number].flatten().argmax()), own.shape[2])
        found.append(
            Examined(
                concept=asked.concept, code=code, place=(row, column), outside=share,
                removed=removed, inserted=inserted, shown=own[held][:SHOWN],
            )
        )  # fmt: skip
    return found


@torch.no_grad()
def _outside(tokens: Tensor, model: Adapter) -> tuple[Tensor, Tensor]:
    """Positions outside the object, and images of which that can be said; none of a model with several levels."""
    if len(model.levels) > 1 or DECODE not in model.abilities:
        return torch.zeros(tokens.shape, dtype=torch.bool), torch.zeros(len(tokens), dtype=torch.bool)
    return outside_object(model.decode(model.embed(tokens.to(model.device))), model.grid)


COLUMNS = {
    "concept": Column(unit="name", meaning="The concept."),
    "rank": Column(unit="rank, from 1", meaning="Place among all suspects, the strongest first."),
    "code": Column(unit="code id", meaning="The code."),
    "verdict": Column(
        unit="name",
        meaning="shortcut: over-represented, and the extractor moves more than the judges; no sign; or too few images.",
    ),
    "suspicion": Column(
        unit="probability, 0 to 2", meaning="Significant gaps of removal and insertion, added up; what ranks."
    ),
    "row": Column(unit="row, from 0", meaning="Where the code stands most often."),
    "column": Column(unit="column, from 0", meaning="Where the code stands most often."),
    "outside": Column(
        unit="share, 0 to 1", meaning="Its positions outside the object; none where no background is plain."
    ),
    "share": Column(unit="share, 0 to 1", meaning="Images of the concept that hold it."),
    "elsewhere": Column(unit="share, 0 to 1", meaning="Images of the other concepts that hold it."),
    "lift": Column(unit="ratio", meaning="The one over the other."),
    "enrichment_q": Column(unit="p-value", meaning="Of no over-representation, corrected for every concept and code."),
    "removed_extractor": Column(unit="probability", meaning="Change by the extractor if it is taken out."),
    "removed_judges": Column(unit="probability", meaning="Mean change by the judges."),
    "removed_gap": Column(unit="probability", meaning="How much more the extractor falls than the judges."),
    "removed_low": Column(unit="probability", meaning="Lower end of the gap's 95 % interval."),
    "removed_high": Column(unit="probability", meaning="Upper end of it."),
    "removed_q": Column(unit="p-value", meaning="Of no gap, by sign flips, corrected for all codes and both tests."),
    "removed_images": Column(unit="images", meaning="Test images of the concept that hold it."),
    "inserted_extractor": Column(unit="probability", meaning="Change by the extractor if it is put into others."),
    "inserted_judges": Column(unit="probability", meaning="Mean change by the judges."),
    "inserted_gap": Column(unit="probability", meaning="How much more the extractor rises than the judges."),
    "inserted_low": Column(unit="probability", meaning="Lower end of the gap's 95 % interval."),
    "inserted_high": Column(unit="probability", meaning="Upper end of it."),
    "inserted_q": Column(unit="p-value", meaning="As removed_q."),
    "inserted_images": Column(unit="images", meaning="Test images of other concepts without it."),
    "evidence": Column(unit="sentence", meaning="All of it in words."),
}


def shortcuts_table(
    examined: Sequence[Examined], enrichment: Enrichment, concepts: Sequence[str], settings: ShortcutsSettings
) -> Table:
    """All codes examined, the strongest suspects first.

    Args:
        examined: What was tried.
        enrichment: Of all codes.
        concepts: Names.
        settings: For the share of false discoveries and the seed.
    """
    tests = {("removed", -1): [one.removed for one in examined], ("inserted", 1): [one.inserted for one in examined]}
    p = [
        float(sign_flip_p(gaps(changed, sign)[None], seed=settings.seed)[0]) if len(changed) >= LEAST else 1.0
        for (_, sign), some in tests.items()
        for changed in some
    ]
    q = iter(false_discovery(p))
    rows: list[dict[str, Any]] = [_facts(one, enrichment, concepts) for one in examined]
    resampling = Resampling(seed=settings.seed)
    for (name, sign), some in tests.items():
        for row, changed in zip(rows, some, strict=True):
            row |= _test(name, changed, sign, next(q), resampling)
    for row in rows:
        row |= _verdict(row, settings.shortcut_alpha)
    rows.sort(key=lambda row: (row["verdict"] != "shortcut", -row["suspicion"], row["concept"], row["code"]))
    ordered = [{name: ({**row, "rank": rank})[name] for name in COLUMNS} for rank, row in enumerate(rows, start=1)]
    return Table(STAGE, COLUMNS, ordered)


def _facts(one: Examined, enrichment: Enrichment, concepts: Sequence[str]) -> dict[str, Any]:
    at = one.concept, one.code
    return {
        "concept": concepts[one.concept], "code": one.code, "row": one.place[0], "column": one.place[1],
        "outside": one.outside, "share": float(enrichment.share[at]), "elsewhere": float(enrichment.elsewhere[at]),
        "lift": float(enrichment.lift[at]), "enrichment_q": float(enrichment.q[at]),
    }  # fmt: skip


def _test(name: str, changed: Tensor, sign: int, q: float, resampling: Resampling) -> dict[str, Any]:
    enough = len(changed) >= LEAST
    gap = interval(gaps(changed, sign), resampling) if enough else Interval(value=0.0, low=None, high=None, images=0)
    means = changed.mean(0).tolist() if enough else [None, None]
    return {
        f"{name}_extractor": means[0], f"{name}_judges": means[1], f"{name}_gap": gap.value if enough else None,
        f"{name}_low": gap.low, f"{name}_high": gap.high, f"{name}_q": q if enough else None,
        f"{name}_images": len(changed),
    }  # fmt: skip


def _verdict(row: dict[str, Any], alpha: float) -> dict[str, Any]:
    found = [
        row[f"{name}_gap"]
        for name in ("removed", "inserted")
        if row[f"{name}_gap"] is not None and row[f"{name}_q"] <= alpha and row[f"{name}_gap"] >= GAP
    ]
    tested = [row[f"{name}_gap"] for name in ("removed", "inserted") if row[f"{name}_gap"] is not None]
    enriched = row["enrichment_q"] <= alpha and row["lift"] > 1
    word = "shortcut" if found and enriched else "no sign" if tested else "too few images"
    return {"verdict": word, "suspicion": float(sum(found)), "evidence": evidence_of(row)}


def evidence_of(row: dict[str, Any]) -> str:
    """What speaks for and against a suspect, in words."""
    said = [f"in {row['share']:.0%} of the concept's images and {row['elsewhere']:.0%} of the others"]
    if row["outside"] is not None:
        said.append(f"{row['outside']:.0%} of its positions lie outside the object")
    for name, what in (("removed", "without it"), ("inserted", "put into other images")):
        if row[f"{name}_gap"] is None:
            said.append(f"{what}: too few images ({row[f'{name}_images']})")
        else:
            changes = [round(row[f"{name}_{who}"], 2) + 0.0 for who in ("extractor", "judges")]
            said.append(f"{what} the extractor moves by {changes[0]:+.2f}, the judges by {changes[1]:+.2f}")
    return f"code {row['code']}: {'; '.join(said)}."


def told(settings: ShortcutsSettings) -> Iterator[str]:
    """Closing lines: the shortcuts found, the strongest first."""
    rows = load_table(settings.out / STAGE / f"{STAGE}.json").rows
    found = [row for row in rows if row["verdict"] == "shortcut"]
    yield f"{len(found)} of {len(rows)} codes examined are shortcuts" + (":" if found else "")
    for row in found[:TOLD]:
        yield f"  {row['concept']}, {row['evidence']}"
    if thin := sum(row["verdict"] == "too few images" for row in rows):
        yield f"  note: {thin} code(s) stand in too few test images to say anything; make more with --per-concept"
