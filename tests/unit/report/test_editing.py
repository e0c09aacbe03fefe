from __future__ import annotations

import torch

from vqcortex.evaluation.editability import ARMS, OURS, RANDOM, Trials, editability_table
from vqcortex.report.editing import edit_charts, edit_legend, edit_rows


def tables():
    def won(count):
        return (torch.arange(20) < count).expand(2, -1)

    trials = [
        Trials(
            concept=0, kind=kind, tokens=tokens, judges=("a", "b"),
            success={OURS: won(tokens), "token_frequency": won(2), RANDOM: won(1)}, cells=dict.fromkeys(ARMS, 1.0),
        )
        for kind in ("remove", "swap")
        for tokens in (5, 15)
    ]  # fmt: skip
    return {"editability": editability_table(trials, ["shoe"])}


def test_there_is_a_chart_per_kind_that_was_measured_and_judge():
    charts = edit_charts(tables())
    assert [chart.title for chart in charts] == [
        "taken out of its images, judge a", "taken out of its images, judge b",
        "swapped into others, judge a", "swapped into others, judge b",
    ]  # fmt: skip
    ours = charts[0].lines[-1]
    assert ours.name == "concept tokens"
    assert len(ours.dots) == 2
    assert edit_charts({}) == []


def test_rows_hold_the_largest_size_in_percent():
    heads, rows = edit_rows(tables())
    assert heads[:2] == ("concept tokens, a", "concept tokens, b")
    assert [(row.concept, row.kind) for row in rows][-1] == ("shoe", "swapped into others")
    assert rows[-1].cells[0].startswith("75 [")
    assert edit_rows({}) == ((), [])
    assert edit_legend()[0] == (0, "concept tokens")
