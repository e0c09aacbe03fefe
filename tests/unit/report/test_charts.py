from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqcortex.report.charts import (
    Axis,
    Bar,
    Box,
    Point,
    Series,
    band_around,
    front_chart,
    line_chart,
    map_cells,
    measured_axis,
    power_axis,
    rank_chart,
    ranks,
    reach,
    round_axis,
    row_chart,
    scatter_chart,
    share_bar,
    share_label,
    tags_beside,
    tick_values,
)

PLAIN = Axis(low=0, high=1, start=0, end=100)


def test_ticks_are_round_and_cover_the_values():
    assert tick_values(0, 0.37) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert tick_values(-0.13, 0.4) == [-0.2, 0.0, 0.2, 0.4]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_always_cover_and_are_never_many(low: float, span: float):
    values = tick_values(low, low + span)
    step = values[1] - values[0]
    assert values[0] <= low + step * 1e-6
    assert values[-1] >= low + span - step * 1e-6
    assert 2 <= len(values) <= 7


def test_a_single_value_still_gets_an_axis():
    axis = round_axis(3, 3, 0, 100)
    assert axis.low < 3 < axis.high


def test_an_axis_maps_its_ends_to_its_ends():
    axis = round_axis(0, 1, 100, 0)
    assert (axis.at(0), axis.at(1), axis.at(0.25)) == (100, 0, 75)


def test_values_just_beyond_a_tick_need_no_further_one():
    axis = round_axis(-0.005, 0.42, 0, 100)
    assert [tick.label for tick in axis.ticks] == ["0", "0.2", "0.4"]
    assert (axis.low, axis.high) == (-0.005, 0.42)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_nothing_falls_off_an_axis(low: float, span: float):
    axis = round_axis(low, low + span, 0, 100)
    assert axis.low <= low + span * 1e-5
    assert axis.high >= low + span * (1 - 1e-5)
    assert all(-0.1 <= tick.place <= 100.1 for tick in axis.ticks)
    assert len(axis.ticks) >= 2


def test_crowded_ticks_are_left_out_but_never_the_last():
    labels = [tick.label for tick in measured_axis([1, 2, 5, 10, 25], 0, 200).ticks]
    assert labels == ["2", "5", "10", "25"]


def test_a_band_goes_along_the_upper_ends_and_back_along_the_lower():
    points = [Point(x=0, y=0.5, low=0.4, high=0.6), Point(x=1, y=0.6, low=0.5, high=0.9)]
    assert band_around(points, PLAIN, PLAIN) == "M0 60L100 90L100 50L0 40z"


def test_points_without_an_interval_have_no_band():
    assert band_around([Point(x=0, y=0.5)], PLAIN, PLAIN) == ""


def test_room_is_made_for_intervals_and_for_zero():
    assert reach([Series(name="a", points=(Point(x=1, y=0.5, low=0.3, high=0.8),))]) == (0.0, 0.8)
    assert reach([]) == (0.0, 0.0)


def test_a_line_chart_leaves_out_what_is_no_number():
    series = Series(name="a", points=(Point(x=1, y=math.nan), Point(x=2, y=0.5)))
    (line,) = line_chart("t", [series], "x", "x").lines
    assert len(line.dots) == 1
    assert "nan" not in line.path


def test_the_default_is_drawn_last_on_top():
    series = [Series(name=name, points=(Point(x=1, y=1),), style=style) for style, name in enumerate("ab")]
    assert [line.name for line in line_chart("t", series, "x", "x").lines] == ["b", "a"]


def test_tooltips_carry_the_interval():
    series = Series(name="tis", points=(Point(x=5, y=0.25, low=0.2, high=0.3),))
    (line,) = line_chart("t", [series], "x", "n =").lines
    assert line.dots[0].title == "tis, n = 5: 0.250 [0.200, 0.300]"


def test_rows_stand_below_each_other_under_their_headings():
    bars = [Bar(label="a", value=0.5, low=0.4, high=0.6), Bar(label="b", value=-0.1)]
    chart = row_chart("t", [("first", bars), ("second", bars[:1])])
    heights = [chart.headings[0].y, *(row.dot.y for row in chart.rows[:2]), chart.headings[1].y, chart.rows[2].dot.y]
    assert heights == sorted(heights)
    assert heights[-1] < chart.box.height
    assert chart.rows[1].dot.x < chart.zero < chart.rows[0].dot.x
    assert chart.rows[1].dot.low is None


def test_both_axes_of_a_scatter_have_one_range():
    chart = scatter_chart("t", [(Point(x=3.0, y=0.5, low=-1, high=1), "one")], "x")
    assert (chart.x.low, chart.x.high) == (chart.y.low, chart.y.high)
    assert chart.x.low <= -1
    assert chart.x.high >= 3


def test_a_map_says_value_and_error_of_every_cell():
    cells = map_cells(np.array([[0.5, -2.0]], np.float32), np.array([[0.1, 0.0]], np.float32))
    assert [(one.row, one.column, one.weight, one.is_cool) for one in cells] == [(0, 0, 0.5, False), (0, 1, 1.0, True)]
    assert cells[0].title == "row 0, column 0: +0.50 ± 0.100"


@pytest.mark.parametrize(("value", "low", "high"), [(1.2, 0.9, 1.4), (0.5, 0.4, 0.6), (-0.1, -0.2, 0.1)])
def test_a_share_bar_never_leaves_its_track(value: float, low: float, high: float):
    bar = share_bar(value, low, high)
    assert bar.length is not None
    assert 0 <= bar.value <= 100
    assert 0 <= bar.start <= bar.start + bar.length <= 100


@pytest.mark.parametrize("end", [None, math.nan])
def test_a_share_without_an_interval_has_none(end: float | None):
    assert share_bar(0.5, 0.4, end).length is None
    assert share_bar(0.5, end, 0.6).length is None


def test_a_curve_of_shares_has_both_ends_and_a_line_of_equal_use():
    chart = rank_chart("t", [80, 15, 5], 10)
    assert [dot.title for dot in chart.dots] == [
        "rank 1: 80 tokens, 80 %",
        "rank 2: 15 tokens, 15 %",
        "rank 3: 5 tokens, 5 %",
    ]
    assert (chart.dots[0].x, chart.dots[0].y) == (chart.x.start, chart.y.at(math.log10(0.8)))
    tenth = chart.y.at(-1)
    assert chart.uniform == f"M{chart.x.start:g} {tenth:g}L{chart.x.end:g} {tenth:g}"
    assert chart.empty == (chart.x.at(math.log10(3)), chart.x.end)
    assert "5 % for rank 3 of 10; equal use would be 10 %" in chart.about


def test_where_every_code_is_used_no_rank_is_empty():
    assert rank_chart("t", [2, 1], 2).empty is None


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.integers(0, 10**6))
def test_no_curve_leaves_its_chart_and_axes_have_ticks(counts: list[int], dead: int):
    chart = rank_chart("t", sorted(counts, reverse=True), len(counts) + dead)
    box = chart.box
    numbers = [float(one) for one in re.findall(r"-?[\d.]+", chart.path + chart.uniform)]
    assert all(box.left <= x <= box.width - box.right + 0.1 for x in numbers[::2])
    assert all(box.top - 0.1 <= y <= box.height - box.bottom + 0.1 for y in numbers[1::2])
    assert len(chart.y.ticks) >= 2
    assert chart.x.ticks[0].label == "1"
    assert len(chart.y.ticks) <= 12
    labels = [tick.label for tick in (*chart.x.ticks, *chart.y.ticks)]
    assert len(set(labels)) == len(labels)


def test_curves_of_one_page_share_their_axes():
    one = rank_chart("a", [9, 1], 4, lowest=1e-5, highest=0.95, widest=1000)
    other = rank_chart("b", [900, 1], 1000, lowest=1e-5, highest=0.95, widest=1000)
    assert (one.x, one.y.low, one.y.high) == (other.x, other.y.low, other.y.high)


@given(st.integers(1, 10**6), st.integers(2, 50))
def test_ranks_go_from_one_to_the_last_and_are_few(last: int, count: int):
    found = ranks(last, count)
    assert (found[0], found[-1]) == (1, last)
    assert found == sorted(set(found))
    assert len(found) <= count + 1


def test_a_codebook_of_a_million_codes_is_a_short_path():
    assert len(rank_chart("t", [3] * 10**6, 10**6).path) < 2000


def test_ticks_between_powers_stand_where_powers_are_too_few():
    assert [tick.label for tick in power_axis(0.0123, 0.13, 0, 100).ticks] == ["2 %", "5 %", "10 %"]
    assert [tick.label for tick in power_axis(1, 30_000, 0, 100, whole=True).ticks] == [
        "1",
        "10",
        "100",
        "1,000",
        "10,000",
    ]


@pytest.mark.parametrize(
    ("share", "label"),
    [(1.0, "100 %"), (0.126, "13 %"), (0.0991, "9.9 %"), (0.05, "5 %"), (0.000123, "0.012 %"), (0.0, "0 %")],
)
def test_a_share_has_two_digits_that_count(share: float, label: str):
    assert share_label(share) == label


def test_a_front_is_a_staircase_through_the_points_on_it_and_costs_are_logarithmic():
    points = [
        ("dear", Point(x=100, y=0.3, low=0.28, high=0.32), True),
        ("cheap", Point(x=1, y=0.1), True),
        ("lost", Point(x=10, y=0.05), False),
    ]
    chart = front_chart("Drop", points, [("random", 0.02)], "passes")
    dear, cheap, lost = chart.dots
    assert (lost.x - cheap.x) == pytest.approx(dear.x - lost.x, abs=0.2)
    assert [dot.style for dot in chart.dots] == [0, 0, 2]
    assert chart.front == f"M{cheap.x:g} {cheap.y:g}L{dear.x:g} {cheap.y:g}L{dear.x:g} {dear.y:g}"
    assert (dear.low, cheap.low) == (chart.y.at(0.28), None)
    assert chart.levels == (chart.y.at(0.02),)
    assert {tag.text for tag in chart.tags} == {"dear", "cheap", "lost", "random"}


def test_names_beside_dots_move_apart_and_stay_inside():
    box = Box(width=300, height=200)
    tags = tags_beside([(150, 100, "first"), (150, 100, "second"), (290, 100, "at the right end")], box)
    heights = {tag.text: tag.y for tag in tags}
    assert abs(heights["first"] - heights["second"]) >= 12
    assert {tag.text: tag.anchor for tag in tags} == {"first": "start", "second": "start", "at the right end": "end"}
