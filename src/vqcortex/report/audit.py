"""An audit as a stage: its tables and its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Adapter
from vqcortex.audit.verdict import composition_notes
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError
from vqcortex.files import write_bytes
from vqcortex.judges import CalibratedJudge, load_judges
from vqcortex.pipelines.audit import Audited, Overlay, audit_neutral, audit_tables, learn_groups, overlays
from vqcortex.pipelines.evaluate import digest, spoken_concepts
from vqcortex.pipelines.groups import NEUTRAL, Grids, Group, named_places, open_group, read_group
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.repair import (
    AFTER,
    BEFORE,
    Repaired,
    check_judge,
    repair_generator,
    repair_table,
    save_steering,
    steerable,
)
from vqcortex.pipelines.settings import AuditSettings
from vqcortex.pipelines.study import Study, command_of, run_stage, stage_key
from vqcortex.pipelines.tokens import model_at
from vqcortex.report.charts import Bar, RowChart, row_chart
from vqcortex.report.page import Figure, environment
from vqcortex.report.words import count_of, estimate, listed, percent
from vqcortex.results import Table, load_table, save_table

STAGE, PAGE, REPAIR = "audit", "audit.html", "repair.safetensors"
ROWS_SHOWN = 60
COSTLY = 0.03  # share recognised that a repair may lose without a warning


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What an audit reads, looked at and not yet read.

    Args:
        model: What encodes and draws.
        groups: The attribute groups.
        neutral: The images audited.
        judges: Who measures the cost of a repair; none without one.
        called: What they call the neutral images' concept; empty without a repair.
    """

    model: Adapter
    groups: tuple[Group, ...]
    neutral: Group
    judges: tuple[CalibratedJudge, ...]
    called: str


def audit(settings: AuditSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Audit a generator, or any images, and write tables and one self-contained page about it.

    Args:
        settings: Which groups, which neutral images, and what is tried against bias.
        progress: Told how far it is.
        engine: Where images are drawn and encoded; the extractor is trained in this process.
    Returns:
        The page; beside it lie the tables audit_groups, audit_lists, audit_tokens, audit_verdict, and audit_repair with
        repair.safetensors (for `pipelines.repair.load_steering`) where a repair was asked for.
    Raises:
        ConfigError: Settings are wrong, fewer than two groups, an unknown concept, or a judge that does not know it.
        DataError: A group is empty or too small, or confounded with its images' concepts, or the extractor cannot tell
            the groups apart.
        StoreError: A store was written with another model.
        ModelError: The model can neither draw nor encode what is asked, takes no bias, or there are no judges.
    """
    settings.check()
    inputs = open_inputs(settings)
    study = Study(settings.out)
    read = {"model": inputs.model.identity}
    for one in (*inputs.groups, inputs.neutral):
        read[f"group {one.name}"] = one.digest(progress)
    if inputs.judges:
        read["judges"] = digest(inputs.judges)
    key = stage_key(STAGE, settings, AuditSettings, read)
    command = f"{command_of(STAGE, key['settings'])} --out STUDY"
    run_stage(study, key, lambda folder: _work(folder, inputs, settings, command, progress, engine))
    return study.path(STAGE) / PAGE


def open_inputs(settings: AuditSettings) -> Inputs:
    """Everything an audit reads, checked before anything is computed; errors as in `audit`."""
    model = load_model(settings.model, settings.device)
    places = named_places(settings.groups)
    split = settings.images_split
    groups = [open_group(name, place, model, settings.group_images, split) for name, place in places.items()]
    neutral = open_group(NEUTRAL, settings.neutral, model, settings.neutral_images, split)
    judges: tuple[CalibratedJudge, ...] = ()
    called = ""
    if settings.repair != "none":
        if len(neutral.concepts) != 1:
            raise ConfigError(
                f"neutral={settings.neutral!r} draws {len(neutral.concepts)} concepts but a repair is of one: "
                "name one with --neutral concept:NAME"
            )
        judges = load_judges(settings.judges or settings.model, settings.device)
        called = spoken_concepts(settings.judge_concepts, model.concepts)[model.concepts.index(neutral.concepts[0])]
        for judge in judges:
            check_judge(judge, called)
        steerable(model)
    return Inputs(model=model, groups=tuple(groups), neutral=neutral, judges=judges, called=called)


def _work(
    folder: Path, inputs: Inputs, settings: AuditSettings, command: str, progress: Progress, engine: Engine
) -> None:
    model = inputs.model

    def read(group: Group, one: Adapter = model) -> Grids:
        carried = Carried(one, model_at, settings.model, settings.device, one.identity)
        # A steered model is at hand here and nowhere else.
        where = engine if one is model else SERIAL
        return read_group(group, carried, seed=settings.seed, batch=settings.batch, progress=progress, engine=where)

    def draw(steered: Adapter, what: str) -> Grids:
        source = inputs.neutral
        return read(Group(name=what, place=source.place, source=source.source, is_named=True), steered)

    groups = {one.name: read(one) for one in inputs.groups}
    with progress.bar("audit: extractor, neutral images", 2) as advance:
        learned = learn_groups(groups, model, settings)
        advance()
        found = audit_neutral(learned, read(inputs.neutral), settings)
        concepts = {one.name: one.concepts for one in inputs.groups}
        found = replace(found, notes=(*found.notes, *composition_notes(concepts, inputs.neutral.concepts)))
        advance()
    tables = audit_tables(found, settings)
    repaired = None
    if settings.repair != "none" and found.word == "biased":
        repaired = repair_generator(found, model, draw, settings)
        concept = inputs.neutral.concepts[0]
        tables.append(repair_table(repaired, model, inputs.judges, concept, settings, inputs.called))
        save_steering(repaired, model, folder / REPAIR)
    for table in tables:
        save_table(table, folder)
    exhibit = AuditExhibit(
        model=model.name,
        found=found,
        overlays=overlays(found, model, settings.audit_alpha),
        tables={one.name: one for one in tables},
        asked=settings.repair,
        repaired=repaired,
    )
    write_bytes(folder / PAGE, render_audit(exhibit, command=command).encode())


def told(settings: AuditSettings) -> Iterator[str]:
    """What the command line says at the end: the verdict, and what to know first."""
    for row in load_table(settings.out / STAGE / "audit_verdict.json").rows:
        if row["kind"] != "group":
            yield row["text"] if row["kind"] == "verdict" else f"note: {row['text']}"
    repair = settings.out / STAGE / "audit_repair.json"
    if repair.exists():
        yield repair_line(load_table(repair), settings.repair)


def repair_line(table: Table, mode: str) -> str:
    """What a repair reached and what it cost, in one sentence."""
    after = table.where(when=AFTER)
    first, costs = after[0], []
    for row in after:
        (before,) = table.where(when=BEFORE, judge=row["judge"])
        costs.append(f"{row['judge']} recognises {row['recognised']:.0%} (before: {before['recognised']:.0%})")
    return (
        f"Repaired by {mode}, strength {first['strength']:.2f}: {first['rate']:.0%} [{first['low']:.0%}, "
        f"{first['high']:.0%}] of newly drawn images are {first['group']!r}, {first['verdict']}; {'; '.join(costs)}"
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AuditExhibit:
    """Everything the audit page shows.

    Args:
        model: Its name.
        found: What the audit found.
        overlays: Pictures with the positions of the codes that decide; empty where nothing was decoded.
        tables: By name.
        asked: The repair asked for.
        repaired: What it did; None: nothing was asked for, or nothing to mend.
    """

    model: str
    found: Audited
    overlays: tuple[Overlay, ...]
    tables: dict[str, Table]
    asked: str
    repaired: Repaired | None


def render_audit(exhibit: AuditExhibit, *, command: str) -> str:
    """The audit as one self-contained HTML page; equal exhibits give equal pages.

    Args:
        exhibit: Figures, pictures and tables.
        command: The command line that makes the page again.
    """
    return (
        environment()
        .get_template("audit.html.j2")
        .render(
            title=f"What {exhibit.model} draws where nothing was asked for",
            answer=exhibit.found.answer,
            figures=key_figures(exhibit),
            notes=exhibit.found.notes,
            verdicts=exhibit.found.verdicts,
            rates=rate_chart(exhibit.found),
            effects=effect_charts(exhibit.found),
            overlays=exhibit.overlays,
            repaired=exhibit.repaired,
            repair=repair_words(exhibit),
            tables=exhibit.tables,
            command=command,
            ROWS_SHOWN=ROWS_SHOWN,
        )
    )


def key_figures(exhibit: AuditExhibit) -> list[Figure]:
    """The header's figures."""
    found = exhibit.found
    confusion = found.learned.confusion
    right = float(confusion.diagonal().sum() / confusion.sum())
    shown = {
        "Verdict": found.word,
        "Neutral images": f"{len(found.neutral):,}",
        "Groups": listed(list(found.learned.names)),
        "Attribute images": f"{sum(map(len, found.learned.groups.values())):,}",
        "Extractor right": percent(right, 1),
        "Codes compared": f"{len(found.carriers.codes):,}",
    }
    return [Figure(name=name, value=value) for name, value in shown.items()]


def rate_chart(found: Audited) -> RowChart:
    """Each group's rate among the neutral images, and what would be even."""
    bars = []
    for number, name in enumerate(found.learned.names):
        rate, low, high = (float(one[number]) for one in (found.rates.rate, found.rates.low, found.rates.high))
        even = float(found.learned.reference[number])
        bars += [
            Bar(label=name, value=rate, low=low, high=high, style=0, note=f"even: {percent(even)}"),
        ]
    return row_chart("Share of the neutral images", [("", bars)], (0.0, 1.0))


def effect_charts(found: Audited) -> list[RowChart]:
    """The codes that carry each group, by Cliff's delta."""
    charts = []
    for number, name in enumerate(found.learned.names):
        effect = found.carriers.effects[number]
        bars = [
            Bar(
                label=f"code {int(found.carriers.codes[at])}", value=float(effect.delta[at]),
                low=float(effect.low[at]), high=float(effect.high[at]), style=0, note="",
            )
            for at in found.carriers.of(number, 0.05)[:10]
        ]  # fmt: skip
        if bars:
            charts.append(row_chart(f"Codes of {name}: Cliff's delta", [("", bars)], (0.0, 1.0)))
    return charts


def repair_words(exhibit: AuditExhibit) -> str:
    """What the repair came to, in a sentence or two; why there is none, where there is none."""
    repaired = exhibit.repaired
    if repaired is None:
        if exhibit.asked == "none":
            return "No repair was asked for; --repair reweight pushes codes back to even rates while the model draws."
        return "No bias was found, so nothing was repaired."
    group = repaired.before.surplus
    name = repaired.before.learned.names[group]
    parts = [
        f"{when} {estimate(float(one.rates.rate[group]), float(one.rates.low[group]), float(one.rates.high[group]))}"
        for when, one in (("before", repaired.before), ("after", repaired.after))
    ]
    tried = count_of(len(repaired.tries) - 1, "strength") + " tried, " if repaired.mode != "suppress" else ""
    return (
        f"Share of {name!r} among neutral images: {', '.join(parts)}; {tried}strength {repaired.strength:.2f} of "
        f"{repaired.mode}. {_costs(exhibit.tables['audit_repair'].rows)}"
    )


def _costs(rows: Sequence[Any]) -> str:
    parts, lost = [], 0.0
    for judge in dict.fromkeys(row["judge"] for row in rows):
        before, after = (
            next(row["recognised"] for row in rows if (row["judge"], row["when"]) == (judge, when))
            for when in (BEFORE, AFTER)
        )
        lost = max(lost, before - after)
        parts.append(f"{judge} recognises {percent(before, 1)} before and {percent(after, 1)} after")
    said = f"Judge {'; judge '.join(parts)}."
    if lost <= COSTLY:
        return said
    return (
        f"{said} That is a high price: much of what is drawn now is neither group, and its rate a guess. A generator "
        "that hardly ever draws a group cannot be talked into it; train it on even images instead."
    )
