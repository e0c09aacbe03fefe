"""How far to trust a study, as its page says it: a banner, reasons by gravity, sanity checks, a badge per concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from vqcortex.report import words
from vqcortex.report.charts import LineChart, Point, Series, line_chart
from vqcortex.results import Table, Trust

MEANINGS = {
    "high": "nothing that was measured speaks against the explanations",
    "moderate": "some of what the explanations rest on is doubtful, or nobody independent could be asked",
    "low": "something that was measured speaks against the explanations",
    "unknown": "nobody has measured what the explanations rest on",
}
FINE = "fine"
MARKS = {"pass": ("better", "▲"), "fail": ("worse", "▼"), "skipped": ("undecided", "○")}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One reason: where its figure stands, and the sentence."""

    standing: str
    text: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrustView:
    """A level and why.

    Args:
        level: high, moderate, low or unknown.
        meaning: Of the level, in words.
        against: What speaks against high trust, the gravest first.
        fine: What is as it should be.
        low: Names of the concepts of low trust.
    """

    level: str
    meaning: str
    against: tuple[Said, ...]
    fine: tuple[Said, ...]
    low: tuple[str, ...]


def trust_view(trust: Trust) -> TrustView:
    """What the page says of trust in a study or in one of its concepts."""
    said = [Said(standing=one.partition(": ")[0], text=one.partition(": ")[2]) for one in trust.reasons]
    return TrustView(
        level=trust.level,
        meaning=MEANINGS[trust.level],
        against=tuple(one for one in said if one.standing != FINE),
        fine=tuple(one for one in said if one.standing == FINE),
        low=tuple(name for name, one in trust.concepts.items() if one.level == "low"),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One sanity check: its name and verdict with their mark, its number, its limit, and why."""

    name: str
    verdict: str
    kind: str
    mark: str
    number: str
    limit: str
    measures: str
    reason: str


def check_rows(tables: Mapping[str, Table]) -> list[CheckRow]:
    """The sanity checks, those that failed first; none where they were not done."""
    rows = tables["sanity"].rows if "sanity" in tables else ()
    order = list(MARKS)
    return [_row(one) for one in sorted(rows, key=lambda row: (row["verdict"] != "fail", order.index(row["verdict"])))]


def _row(row: Mapping[str, Any]) -> CheckRow:
    kind, mark = MARKS[row["verdict"]]
    return CheckRow(
        name=words.plain_name(row["check"]), verdict=row["verdict"], kind=kind, mark=mark,
        number=words.estimate(row["value"], row["low"], row["high"], 2), limit=words.number(row["limit"], 2),
        measures=row["measures"], reason=row["reason"],
    )  # fmt: skip


def cascade_chart(tables: Mapping[str, Table]) -> LineChart | None:
    """Rank correlation with the original's maps as layers are randomised; None where it was not measured."""
    rows = tables["sanity_cascade"].rows if "sanity_cascade" in tables else ()
    series = [
        _curve("these layers and all above", rows, "cascading", 0),
        _curve("these layers alone", rows, "independent", 1),
    ]
    if not any(one.points for one in series):
        return None
    title = "Rank correlation with the original maps"
    return line_chart(title, [one for one in series if one.points], "step, from the logits down", "step", (-0.5, 1.0))


def _curve(name: str, rows: Sequence[Mapping[str, Any]], kind: str, style: int) -> Series:
    points = tuple(
        Point(x=row["step"], y=row["signed"], low=row["low"], high=row["high"])
        for row in rows
        if row["kind"] == kind and words.is_number(row["signed"])
    )
    return Series(name=name, points=points, style=style)
