"""Edits on the page: how often judges see a concept go and come, against how many of its tokens were used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from vqcortex.report.charts import LineChart, Point, Series, line_chart
from vqcortex.report.words import estimate, plain_name
from vqcortex.results import Table

ALL = "all"
KINDS = {"remove": "taken out of its images", "insert": "put into others", "swap": "swapped into others"}
STYLES = {"concept_tokens": 0, "random_codes": 2, "token_frequency": 5}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EditRow:
    """A kind of edit of one concept at the largest size: success in percent per arm, as text."""

    concept: str
    kind: str
    cells: tuple[str, ...]


def edit_charts(tables: Mapping[str, Table]) -> list[LineChart]:
    """Per kind of edit and judge, all concepts together: success against tokens used; none before it was measured."""
    rows = tables["editability"].where(concept=ALL) if "editability" in tables else []
    charts = []
    for kind, words in KINDS.items():
        for judge in dict.fromkeys(row["judge"] for row in rows):
            mine = [row for row in rows if row["kind"] == kind and row["judge"] == judge]
            series = [
                Series(name=plain_name(arm), points=_points(mine, arm), style=style) for arm, style in STYLES.items()
            ]
            if any(one.points for one in series):
                known = [one for one in series if one.points]
                charts.append(line_chart(f"{words}, judge {judge}", known, "tokens of the list", "tokens", (0.0, 1.0)))
    return charts


def _points(rows: Sequence[Mapping[str, Any]], arm: str) -> tuple[Point, ...]:
    return tuple(
        Point(x=row["tokens"], y=row["success"], low=row["low"], high=row["high"])
        for row in sorted(rows, key=lambda row: row["tokens"])
        if row["arm"] == arm and row["success"] is not None
    )


def edit_legend() -> list[tuple[int, str]]:
    """(style, name) per arm, our own first."""
    return [(style, plain_name(arm)) for arm, style in STYLES.items()]


def edit_rows(tables: Mapping[str, Table]) -> tuple[tuple[str, ...], list[EditRow]]:
    """Heads of the cells, and a row per concept and kind at the largest size."""
    rows = tables["editability"].rows if "editability" in tables else ()
    most = max((row["tokens"] for row in rows), default=0)
    judges = list(dict.fromkeys(row["judge"] for row in rows))
    heads = tuple(f"{plain_name(arm)}, {judge}" for arm in STYLES for judge in judges)
    found: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        if row["tokens"] == most:
            share, low, high = (None if one is None else one * 100 for one in (row["success"], row["low"], row["high"]))
            text = estimate(share, low, high, 0)
            found.setdefault((row["concept"], row["kind"]), {})[row["arm"], row["judge"]] = text
    lines = [
        EditRow(concept=concept, kind=KINDS[kind], cells=tuple(cells[arm, judge] for arm in STYLES for judge in judges))
        for (concept, kind), cells in found.items()
    ]
    return heads, lines
