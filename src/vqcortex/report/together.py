"""From the tables of codes together to one small matrix and one sentence per concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from vqcortex.report.words import count_of, estimate, is_number, number, signed
from vqcortex.results import Table

Row = Mapping[str, Any]
MARKS = {"synergy": "▲", "redundancy": "▼", "exclusive": "✕", "none": "", "too few images": ""}
WAYS = {"removal": "taken out of", "insertion": "put into"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairCell:
    """What a pair of codes does together.

    Args:
        text: Its synergy, with the mark of its verdict.
        title: Everything known of it.
        weight: Strength of its colour, 0 to 1.
        is_cool: Whether the synergy is below 0.
        is_sure: Whether it was found to differ from 0.
    """

    text: str
    title: str
    weight: float
    is_cool: bool
    is_sure: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairMatrix:
    """A concept's codes against one another: taken out above the diagonal, put in below it.

    Args:
        codes: In order.
        rows: One cell per code; None: on the diagonal, or not measured.
        about: What the codes do as a whole, in a sentence; empty where it was not measured.
    """

    codes: tuple[int, ...]
    rows: tuple[tuple[PairCell | None, ...], ...]
    about: str


def pair_matrices(tables: Mapping[str, Table]) -> dict[str, PairMatrix]:
    """The matrix of every concept that has one, by name; nothing where the pairs were not measured."""
    found: dict[str, list[Row]] = {}
    for row in tables["interactions"].rows if "interactions" in tables else ():
        found.setdefault(row["concept"], []).append(row)
    groups = tables["interaction_groups"].rows if "interaction_groups" in tables else ()
    abouts = {row["concept"]: group_sentence(row) for row in groups}
    return {name: pair_matrix(rows, abouts.get(name, "")) for name, rows in found.items()}


def pair_matrix(rows: list[Row], about: str) -> PairMatrix:
    """One concept's pairs as a matrix; colours are measured by the largest synergy in it."""
    codes = tuple(dict.fromkeys(code for row in rows for code in (row["code_a"], row["code_b"])))
    most = max((abs(row["synergy"]) for row in rows if is_number(row["synergy"])), default=0.0) or 1.0
    cells = {}
    for row in rows:
        place = (row["code_a"], row["code_b"])
        cells[place if row["form"] == "removal" else place[::-1]] = pair_cell(row, most)
    return PairMatrix(codes=codes, rows=tuple(tuple(cells.get((a, b)) for b in codes) for a in codes), about=about)


def pair_cell(row: Row, most: float) -> PairCell:
    """One pair in one form."""
    value, mark = row["synergy"], MARKS.get(row["verdict"], "")
    known = is_number(value) and row["verdict"] != "too few images"
    return PairCell(
        text=f"{signed(value, 2)} {mark}".strip() if known else "–",
        title=_pair_title(row),
        weight=round(abs(value) / most, 3) if known else 0.0,
        is_cool=known and value < 0,
        is_sure=bool(mark),
    )


def _pair_title(row: Row) -> str:
    which = f"codes {row['code_a']} and {row['code_b']} {WAYS.get(row['form'], row['form'])} "
    which += f"{count_of(row['images'], 'image')}: {row['verdict']}"
    if not is_number(row["synergy"]):
        return which
    sure = f", q = {number(row['q'], 4)}" if is_number(row["q"]) else ""
    return (
        f"{which}; synergy {estimate(row['synergy'], row['low'], row['high'], 2)}{sure}; alone "
        f"{signed(row['effect_a'], 2)} and {signed(row['effect_b'], 2)}, together {signed(row['joint'], 2)} logits"
    )


def group_sentence(row: Row) -> str:
    """What all codes of a concept do, beside as many random codes of the same images."""
    if not is_number(row["joint"]):
        return ""
    beyond = f"{estimate(row['excess'], row['excess_low'], row['excess_high'], 2)} ({row['verdict']})"
    return (
        f"All together add {signed(row['joint'], 2)} to the logit over {count_of(row['images'], 'image')}, as many "
        f"random codes of the same images {signed(row['control_joint'], 2)}; beyond the sum of each alone: {beyond}."
    )
