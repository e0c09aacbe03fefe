"""Attribution methods compared, as a stage of a study: its tables and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.evaluation.comparison import DECISIVE, DROP, MEAN, NONE, NOTE
from vqcortex.files import write_bytes
from vqcortex.pipelines.compare import STAGE, ComparisonExhibit, gather_comparison, plan_contest
from vqcortex.pipelines.evaluate import court_inputs, open_court
from vqcortex.pipelines.judges import judge_notes, judge_tables
from vqcortex.pipelines.loaded import PUBLISHED, load_all
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import CompareSettings
from vqcortex.pipelines.study import Study, command_of, run_stage, stage_key
from vqcortex.report.charts import (
    Bar,
    FrontChart,
    LineChart,
    Point,
    RowChart,
    Series,
    front_chart,
    line_chart,
    row_chart,
)
from vqcortex.report.page import Figure, environment
from vqcortex.report.words import count_of, estimate, listed, number, percent, plain_name
from vqcortex.results import Table, save_table

PAGE = "compare.html"
ROWS_SHOWN = 200
CONTROL = 2  # style of what looks at no extractor
REFERENCES = ("random", "oracle", "oracle_each_fill")  # levels drawn beside the methods


def compare(settings: CompareSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Compare attribution methods on a study's own images, and write tables and one self-contained page about it.

    Args:
        settings: Which methods, on which images.
        progress: Told how far it is.
        engine: Where images are measured; intervals and tests are made in this process.
    Returns:
        The page; beside it lie the tables comparison, comparison_pairs, comparison_cost, agreement, stability,
        recommendation, and judges where it is known how good they are.
    Raises:
        StudyError: Tokens or extractor are not there yet.
        ConfigError: Settings are wrong, or a concept that no judge knows.
        DataError: Fewer than two images.
        ModelError: There are no judges, the model cannot decode, or a method needs gradients that there are not.
        UnknownName: No such method, extractor or fill.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    court, place, judges = open_court(study, loaded, settings, settings.compare_fills, engine)
    contest = plan_contest(loaded, court, settings, engine)
    inputs = {"tokens": study.fingerprint("tokens"), "train": study.fingerprint("train")}
    key = stage_key(STAGE, settings, CompareSettings, inputs | court_inputs(judges, settings, loaded.concepts))
    quality = judge_tables(study, place, judges)
    told = judge_notes({one.name: one for one in quality})
    command = f"{command_of(STAGE, key['settings'])} --out STUDY"

    def work(folder: Path) -> None:
        exhibit = gather_comparison(folder, loaded, contest, settings, told, progress=progress, engine=engine)
        for table in (*exhibit.tables.values(), *quality):
            save_table(table, folder)
        write_bytes(folder / PAGE, render_compare(exhibit, command=command).encode())

    run_stage(study, key, work)
    return study.path(STAGE) / PAGE


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Correlations of every arm with every other one, by the names of both; None: not known."""

    names: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]


def render_compare(exhibit: ComparisonExhibit, *, command: str) -> str:
    """The comparison as one self-contained HTML page; equal exhibits give equal pages.

    Args:
        exhibit: Figures and tables.
        command: The command line that makes the page again.
    """
    tables = exhibit.tables
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            title=f"Which attribution method to trust on {exhibit.model}",
            answer=answer(exhibit),
            figures=key_figures(exhibit),
            reasons=[row for row in tables["recommendation"].rows if row["role"] != NOTE],
            notes=notes(exhibit),
            front=front(exhibit),
            fills=fill_charts(exhibit),
            lines=drop_charts(exhibit),
            legend=[(style, plain_name(arm)) for arm, style in drawn(exhibit).items()],
            pairs=whole(tables["comparison_pairs"], metric=DECISIVE, fill=MEAN),
            others=metric_table(exhibit),
            agreement=agreement(exhibit),
            tables=tables,
            command=command,
            ROWS_SHOWN=ROWS_SHOWN,
        )
    )


def answer(exhibit: ComparisonExhibit) -> str:
    """The page in two or three sentences."""
    roles = {row["role"]: row for row in exhibit.tables["recommendation"].rows}
    best = roles["default"]
    against = exhibit.tables["comparison_pairs"].where(
        method=best["method"], metric=DECISIVE, fill=MEAN, other="random"
    )[0]
    times = "" if against["ratio"] is None else f", {number(against['ratio'], 1)} times random's"
    among = count_of(len(exhibit.methods), "method")
    hidden = f"{listed([str(n) for n in exhibit.deciding])} of {exhibit.positions} positions"
    said = (
        f"{begun(best['method'])} is the most faithful of {among}: without its first {hidden} the judges' probability "
        f"of the concept falls by {number(best['mean_drop'])}{times}."
    )
    fast = roles.get("fast")
    if fast is None:
        return said
    if fast["method"] == best["method"]:
        return f"{said} No cheaper one keeps enough of that."
    return (
        f"{said} {begun(fast['method'])} keeps {percent(fast['kept'])} of that for "
        f"{fast['compute']:,} instead of {best['compute']:,} forward passes per image."
    )


def begun(name: str) -> str:
    """A name as words that begin a sentence."""
    words = plain_name(name)
    return words[:1].upper() + words[1:]


def key_figures(exhibit: ComparisonExhibit) -> list[Figure]:
    """The header's figures."""
    found = {
        "Images": f"{exhibit.images:,} {exhibit.split}",
        "Concepts": f"{exhibit.concepts:,}",
        "Methods": str(len(exhibit.methods)),
        "Controls": str(len(exhibit.controls)),
        "Fills": str(len(exhibit.fills)),
        "Judges": listed(list(exhibit.judges)),
    }
    return [Figure(name=name, value=value) for name, value in found.items()]


def notes(exhibit: ComparisonExhibit) -> list[str]:
    """What a reader of the figures must know."""
    return [str(row["reason"]) for row in exhibit.tables["recommendation"].rows if row["role"] == NOTE]


def front(exhibit: ComparisonExhibit) -> FrontChart:
    """Faithfulness against compute."""
    points = [
        (
            plain_name(row["method"]),
            Point(x=max(row["compute"], 1), y=row["mean_drop"], low=row["low"], high=row["high"]),
            bool(row["pareto"]),
        )
        for row in exhibit.tables["comparison_cost"].rows
    ]
    levels = [
        (plain_name(row["arm"]), row["value"]) for row in deciding_rows(exhibit, MEAN) if row["arm"] in REFERENCES
    ]
    return front_chart("Mean drop of the judges' probability", points, levels, "forward passes per image")


def fill_charts(exhibit: ComparisonExhibit) -> list[RowChart]:
    """Every arm's mean drop, over all fills and under each, on the same axis."""
    fills = (MEAN, *exhibit.fills)
    rows = {fill: deciding_rows(exhibit, fill) for fill in fills}
    ends = [row[end] for some in rows.values() for row in some for end in ("value", "low", "high")]
    limits = (min(0.0, *(one for one in ends if one is not None)), max(one for one in ends if one is not None))
    return [
        row_chart(
            "Over all fills" if fill == MEAN else begun(fill),
            [("", [bar_of(row, exhibit) for row in ordered(rows[fill], rows[MEAN])])],
            limits,
        )
        for fill in fills
    ]


def deciding_rows(exhibit: ComparisonExhibit, fill: str) -> list[Mapping[str, Any]]:
    """The figures that decide, one row per arm; of oracles their mean only."""
    found = exhibit.tables["comparison"].where(metric=DECISIVE, fill=fill, judge=MEAN)
    return [row for row in found if not row["arm"].startswith(("oracle:", "oracle_each_fill:"))]


def ordered(
    rows: Sequence[Mapping[str, Any]], by: Sequence[Mapping[str, Any]] | None = None
) -> list[Mapping[str, Any]]:
    """Rows, the arm first whose value is the largest, in `by` where that is given."""
    value = {row["arm"]: row["value"] for row in by or rows}
    return sorted(rows, key=lambda row: (-value[row["arm"]], row["arm"]))


def bar_of(row: Mapping[str, Any], exhibit: ComparisonExhibit) -> Bar:
    """One arm."""
    style = 0 if row["arm"] in exhibit.methods else CONTROL if row["arm"] in exhibit.controls else 1
    note = "" if style == 0 else "control" if style == CONTROL else "asked a judge"
    return Bar(
        label=plain_name(row["arm"]).replace(" of all extractors", ", all"),
        value=row["value"],
        low=row["low"],
        high=row["high"],
        style=style,
        note=note,
    )


def drawn(exhibit: ComparisonExhibit) -> dict[str, int]:
    """Arms that are drawn as lines, and their styles: what is recommended, the published score, and two controls."""
    roles = [row["method"] for row in exhibit.tables["recommendation"].rows if row["role"] != NOTE]
    published = [PUBLISHED] if PUBLISHED in exhibit.methods else []
    best_control = next(row["arm"] for row in ordered(deciding_rows(exhibit, MEAN)) if row["arm"] in exhibit.controls)
    arms = dict.fromkeys([*roles, *published, "random", best_control])
    styles = iter((3, 1, 4, 5))
    fixed = {roles[0]: 0, "random": CONTROL}
    return {arm: fixed[arm] if arm in fixed else next(styles) for arm in arms}


def drop_charts(exhibit: ComparisonExhibit) -> list[LineChart]:
    """The drop against the number of positions hidden, under each fill, on the same axes."""
    rows = [row for row in exhibit.tables["comparison"].where(metric=DROP, judge=MEAN)]
    series = {
        fill: [
            Series(
                name=plain_name(arm),
                style=style,
                points=tuple(
                    Point(x=row["n"], y=row["value"], low=row["low"], high=row["high"])
                    for row in sorted(rows, key=lambda row: row["n"])
                    if row["arm"] == arm and row["fill"] == fill
                ),
            )
            for arm, style in drawn(exhibit).items()
        ]
        for fill in exhibit.fills
    }
    points = [point for some in series.values() for one in some for point in one.points]
    ends = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    limits = min(0.0, *ends), max(ends)
    return [line_chart(begun(fill), some, "positions hidden (n)", "n", limits) for fill, some in series.items()]


def whole(table: Table, **wanted: object) -> Table:
    """The table of those rows, without the columns that then say one thing only."""
    columns = {name: one for name, one in table.columns.items() if name not in (*wanted, "n", "unit")}
    return Table(table.name, columns, [{name: row[name] for name in columns} for row in table.where(**wanted)])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Every arm by every metric, as words."""

    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def metric_table(exhibit: ComparisonExhibit) -> Measured:
    """Means over fills and judges of the metrics beside the drop; heads say name and direction."""
    rows = [
        row
        for row in exhibit.tables["comparison"].rows
        if row["n"] is None and row["fill"] in (MEAN, NONE) and row["judge"] in (MEAN, NONE)
    ]
    metrics = {row["metric"]: row["better"] for row in rows}
    words = {(row["arm"], row["metric"]): estimate(row["value"], row["low"], row["high"]) for row in rows}
    arms = [row["arm"] for row in ordered(deciding_rows(exhibit, MEAN))]
    return Measured(
        heads=tuple((plain_name(name), better) for name, better in metrics.items()),
        rows=tuple((plain_name(arm), tuple(words.get((arm, one), "") for one in metrics)) for arm in arms),
    )


def agreement(exhibit: ComparisonExhibit) -> Matrix:
    """How alike methods and controls rank positions."""
    names = (*exhibit.methods, *exhibit.controls)
    known = {(row["one"], row["other"]): row["value"] for row in exhibit.tables["agreement"].rows}
    known |= {(other, one): value for (one, other), value in known.items()}
    return Matrix(
        names=tuple(map(plain_name, names)),
        cells=tuple(tuple(1.0 if one == two else known[one, two] for two in names) for one in names),
    )
