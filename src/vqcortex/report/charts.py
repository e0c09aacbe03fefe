"""Where everything in a chart goes, in pixels; templates only draw it. Plain numbers in, plain numbers out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from vqcortex.report.words import estimate, is_number, number, signed

STYLES = 8  # line and mark styles there are; later arms share the last one


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured value.

    Args:
        x: Where it was measured.
        y: Its value.
        low: Lower end of its interval; None: none.
        high: Upper end; None: none.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that belong together.

    Args:
        name: Shown in tooltips.
        points: In the order of x.
        style: 0 is the accent.
    """

    name: str
    points: tuple[Point, ...]
    style: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A drawing's size and the margins around its plot, in pixels."""

    width: float = 260
    height: float = 200
    left: float = 34
    right: float = 10
    top: float = 10
    bottom: float = 34


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on an axis."""

    place: float
    label: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Values to pixels, straight."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[Tick, ...] = ()

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A value as drawn, with its interval as a line from `low` to `high`, in pixels; None: no interval."""

    x: float
    y: float
    title: str
    low: float | None = None
    high: float | None = None
    style: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series as drawn; `band` is empty where no point has an interval."""

    name: str
    style: int
    path: str
    band: str
    dots: tuple[Dot, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Lines over a plot."""

    title: str
    box: Box
    x: Axis
    y: Axis
    x_label: str
    lines: tuple[Line, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of a `RowChart`.

    Args:
        label: At its left.
        value: Where its mark stands.
        low: Lower end of its interval; None: none.
        high: Upper end; None: none.
        style: 0 is the accent.
        note: After the value.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    style: int = 0
    note: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A `Bar` as drawn."""

    label: str
    dot: Dot
    text: str
    note: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A group's name, above its rows."""

    text: str
    y: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RowChart:
    """Marks with intervals, one row each, in groups; `about` is said under it."""

    title: str
    about: str
    box: Box
    x: Axis
    zero: float
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterChart:
    """Dots with vertical intervals and the line where both coordinates are equal."""

    title: str
    box: Box
    x: Axis
    y: Axis
    x_label: str
    dots: tuple[Dot, ...]
    diagonal: tuple[float, float, float, float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A position of a map; `weight` is its strength, 0..1, and `is_cool` says that it is below zero."""

    row: int
    column: int
    weight: float
    is_cool: bool
    title: str


def tick_values(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers about `count` steps apart that cover low..high.

    Example:
        >>> tick_values(0, 0.37)
        [0.0, 0.1, 0.2, 0.3, 0.4]
    """
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(step * size for step in (1, 2, 2.5, 5, 10) if step * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) + 0.0 for place in range(first, last + 1)]


def tick_label(value: float) -> str:
    """As few digits as the value needs."""
    return f"{value:.6g}".replace("-", "−")


def round_axis(low: float, high: float, start: float, end: float, count: int = 4) -> Axis:
    """An axis that begins and ends at a tick, or just beyond one where the values hardly pass it."""
    values = tick_values(low, high, count)
    near = 0.35 * (values[1] - values[0])
    if len(values) > 2 and 0 < values[1] - low < near:
        values = values[1:]
    if len(values) > 2 and 0 < high - values[-2] < near:
        values = values[:-1]
    plain = Axis(low=min(low, values[0]), high=max(high, values[-1]), start=start, end=end)
    return replace(plain, ticks=tuple(Tick(place=plain.at(value), label=tick_label(value)) for value in values))


def measured_axis(values: Sequence[float], start: float, end: float, apart: float = 20) -> Axis:
    """An axis from 0 with ticks at the measured values, the crowded ones left out."""
    plain = Axis(low=0, high=max([*values, 1e-9]), start=start, end=end)
    ticks: list[Tick] = []
    for value in sorted(set(values), reverse=True):
        place = plain.at(value)
        if not ticks or abs(ticks[-1].place - place) >= apart:
            ticks.append(Tick(place=place, label=tick_label(value)))
    return Axis(low=0, high=plain.high, start=start, end=end, ticks=tuple(reversed(ticks)))


def reach(series: Iterable[Series]) -> tuple[float, float]:
    """Lowest and highest of values, interval ends and 0."""
    found = [0.0]
    for point in (point for one in series for point in one.points):
        found += [value for value in (point.y, point.low, point.high) if value is not None and is_number(value)]
    return min(found), max(found)


def path_through(places: Iterable[tuple[float, float]]) -> str:
    """SVG path with straight pieces."""
    return "".join(f"{'L' if number else 'M'}{x:g} {y:g}" for number, (x, y) in enumerate(places))


def band_around(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """SVG path around the intervals: along the upper ends, back along the lower ones."""
    upper = [(x.at(p.x), y.at(p.high)) for p in points if p.low is not None and p.high is not None]
    lower = [(x.at(p.x), y.at(p.low)) for p in points if p.low is not None and p.high is not None]
    return f"{path_through([*upper, *reversed(lower)])}z" if upper else ""


def line_of(series: Series, x: Axis, y: Axis, x_word: str) -> Line:
    """A series as drawn; points that are no number are left out."""
    points = [point for point in series.points if is_number(point.y)]
    dots = [
        Dot(
            x=x.at(point.x),
            y=y.at(point.y),
            title=f"{series.name}, {x_word} {number(point.x)}: {estimate(point.y, point.low, point.high)}",
        )
        for point in points
    ]
    return Line(
        name=series.name,
        style=min(series.style, STYLES - 1),
        path=path_through((dot.x, dot.y) for dot in dots),
        band=band_around(points, x, y),
        dots=tuple(dots),
    )


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    x_word: str,
    limits: tuple[float, float] | None = None,
    box: Box | None = None,
) -> LineChart:
    """Curves with interval bands.

    Args:
        title: Over the chart.
        series: The first is drawn last, on top.
        x_label: Under the chart.
        x_word: Before x in tooltips.
        limits: Lowest and highest value to make room for; None: those of the series and 0.
        box: Size; None: the default.
    """
    box = box or Box()
    low, high = limits or reach(series)
    x = measured_axis([p.x for one in series for p in one.points], box.left + 4, box.width - box.right)
    y = round_axis(low, high, box.height - box.bottom, box.top)
    lines = tuple(line_of(one, x, y, x_word) for one in reversed(series))
    return LineChart(title=title, box=box, x=x, y=y, x_label=x_label, lines=lines)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RankChart:
    """Shares by rank on two logarithmic axes, and the line they would form if all were alike.

    Args:
        title: Over the chart.
        box: Size.
        x: Rank; its values are powers of ten.
        y: Share; likewise.
        path: The curve.
        dots: Some of its points, for tooltips.
        uniform: The line of equal shares.
        empty: From where to where ranks have no share, in pixels; None: every rank has one.
        about: What the chart shows, in words.
    """

    title: str
    box: Box
    x: Axis
    y: Axis
    x_label: str
    path: str
    dots: tuple[Dot, ...]
    uniform: str
    empty: tuple[float, float] | None
    about: str


RANKS_DRAWN, RANKS_NAMED = 120, 24  # points of a curve, however many codes there are, and those with a tooltip


def rank_chart(
    title: str,
    counts: Sequence[int],
    size: int,
    lowest: float | None = None,
    highest: float | None = None,
    widest: int | None = None,
) -> RankChart:
    """Sorted shares against their rank.

    Args:
        title: Over the chart.
        counts: Above 0, largest first; at least one.
        size: Ranks there could be, at least as many as counts.
        lowest: Share that the axis must reach down to, so that charts can be compared; None: that of these counts.
        highest: Share that it must reach up to; None: that of these counts.
        widest: Rank that the axis must reach; None: `size`.
    """
    box = Box(width=340, height=230, left=52, bottom=36)
    total, live = sum(counts), len(counts)
    x = power_axis(1, max(widest or size, 2), box.left + 4, box.width - box.right, whole=True)
    top = min(1.2 * max(highest or 0.0, counts[0] / total), 1.0)
    floor = min(lowest or 1.0, counts[-1] / total, 1 / size, top / 8) / 1.2
    y = power_axis(floor, top, box.height - box.bottom, box.top)
    places = [(x.at(math.log10(rank)), y.at(math.log10(counts[rank - 1] / total))) for rank in ranks(live, RANKS_DRAWN)]
    dots = tuple(
        Dot(
            x=x.at(math.log10(rank)),
            y=y.at(math.log10(counts[rank - 1] / total)),
            title=f"rank {rank:,}: {counts[rank - 1]:,} tokens, {share_label(counts[rank - 1] / total)}",
        )
        for rank in ranks(live, RANKS_NAMED)
    )
    level = y.at(-math.log10(size))
    return RankChart(
        title=title, box=box, x=x, y=y, x_label="rank of the code", path=path_through(places), dots=dots,
        uniform=path_through([(x.at(0), level), (x.at(math.log10(size)), level)]),
        empty=(x.at(math.log10(live)), x.at(math.log10(size))) if live < size else None,
        about=f"{title}, by rank: from {share_label(counts[0] / total)} for the most used code down to "
        f"{share_label(counts[-1] / total)} for rank {live:,} of {size:,}; equal use would be {share_label(1 / size)}",
    )  # fmt: skip


def ranks(last: int, count: int) -> list[int]:
    """About `count` ranks from 1 to `last`, evenly spread on a logarithmic axis, both ends among them.

    Example:
        >>> ranks(100, 3)
        [1, 10, 100]
    """
    return sorted({min(last, round(float(one))) for one in np.geomspace(1, last, count)} | {last})


def power_axis(low: float, high: float, start: float, end: float, whole: bool = False) -> Axis:
    """A logarithmic axis from `low` to `high`, both above 0: its values are exponents of ten.

    Args:
        low: Value at `start`.
        high: Value at `end`, above `low`.
        start: Pixel of the lower end.
        end: Pixel of the upper end.
        whole: Ticks say whole numbers; False: they say shares, in percent.
    """
    plain = Axis(low=math.log10(low), high=math.log10(high), start=start, end=end)
    first, last = math.floor(plain.low), math.ceil(plain.high)
    step = 1 + (last - first) // 7
    values = inside((10.0**power for power in range(first, last + 1, step)), low, high)
    if len(values) < 3:
        values = inside((front * 10.0**power for power in range(first, last + 1) for front in (1, 2, 5)), low, high)
    ticks = [
        Tick(place=plain.at(math.log10(one)), label=f"{one:,.0f}" if whole else share_label(one))
        for one in values
        if not whole or one > 0.99
    ]
    return replace(plain, ticks=tuple(ticks))


def inside(values: Iterable[float], low: float, high: float) -> list[float]:
    """Those of the values that lie in low..high, rounding aside."""
    return [one for one in values if low * (1 - 1e-9) <= one <= high * (1 + 1e-9)]


def share_label(share: float) -> str:
    """A share in percent with two digits that count, however small.

    Example:
        >>> share_label(0.1234), share_label(0.00005), share_label(1.0)
        ('12 %', '0.005 %', '100 %')
    """
    value = share * 100
    if value >= 10 or value <= 0:
        return f"{value:.0f} %"
    digits = 1 - math.floor(math.log10(value))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") + " %"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A name beside a dot; `anchor` is its end that is next to the dot, as SVG calls it."""

    x: float
    y: float
    text: str
    anchor: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FrontChart:
    """Values against costs on a logarithmic axis, the front of those that nothing cheaper reaches, and levels.

    Args:
        dots: One per point; style 0 on the front, 2 behind it.
        tags: Names of dots and lines, none over another.
        front: Steps through the points on the front.
        levels: Heights of the horizontal lines.
        about: What the chart shows, in words.
    """

    title: str
    box: Box
    x: Axis
    y: Axis
    x_label: str
    dots: tuple[Dot, ...]
    tags: tuple[Tag, ...]
    front: str
    levels: tuple[float, ...]
    about: str


LETTER, LINE = 6.2, 13  # pixels of a letter at most, and of a line of words


def front_chart(
    title: str,
    points: Sequence[tuple[str, Point, bool]],
    levels: Sequence[tuple[str, float]],
    x_label: str,
    box: Box | None = None,
) -> FrontChart:
    """What is reached for how much: points with vertical intervals, x above 0 on a logarithmic axis.

    Args:
        title: Over the chart.
        points: Name, place, and whether it is on the front.
        levels: Name and value of horizontal lines to compare with.
        x_label: Under the chart.
        box: Size; None: wide.
    """
    box = box or Box(width=480, height=320, left=40, right=14, top=14, bottom=36)
    costs = [point.x for _, point, _ in points]
    x = power_axis(min(costs) / 1.6, max(costs) * 1.6, box.left + 4, box.width - box.right, whole=True)
    low, high = reach([Series(name="", points=tuple(point for _, point, _ in points))])
    values = [low, high, *(value for _, value in levels)]
    y = round_axis(min(values), max(values), box.height - box.bottom, box.top)
    dots = tuple(
        Dot(
            x=x.at(math.log10(point.x)),
            y=y.at(point.y),
            title=f"{name}: {estimate(point.y, point.low, point.high)} for {number(point.x)}",
            low=None if point.low is None else y.at(point.low),
            high=None if point.high is None else y.at(point.high),
            style=0 if is_front else 2,
        )
        for name, point, is_front in points
    )
    front = sorted((dot.x, dot.y) for dot in dots if dot.style == 0)
    corners = [place for one, two in itertools.pairwise(front) for place in (one, (two[0], one[1]))] + front[-1:]
    return FrontChart(
        title=title, box=box, x=x, y=y, x_label=x_label, dots=dots,
        tags=tags_beside(
            [*((dot.x, dot.y, name) for dot, (name, _, _) in zip(dots, points, strict=True)),
             *((box.left, y.at(value), name) for name, value in levels)], box
        ),
        front=path_through(corners), levels=tuple(y.at(value) for _, value in levels),
        about=f"{title}: {'; '.join(dot.title for dot in dots)}",
    )  # fmt: skip


def tags_beside(places: Sequence[tuple[float, float, str]], box: Box) -> tuple[Tag, ...]:
    """Names beside their places, to the left where the right has no room, each moved until it covers nothing."""
    found: list[Tag] = []
    taken = [(x - 5, x + 5, y + 4) for x, y, _ in places]  # left, right and height of dots, and of the words so far
    for x, y, text in sorted(places, key=lambda one: (one[1], one[0])):
        width = LETTER * len(text)
        is_right = x + 9 + width <= box.width or x - 9 - width < 0
        left = x + 9 if is_right else x - 9 - width

        def is_free(height: float, left: float = left, width: float = width) -> bool:
            return not any(left < end and start < left + width and abs(height - at) < LINE for start, end, at in taken)

        height = next(y - 3 + away for away in moves() if is_free(y - 3 + away))
        taken.append((left, left + width, height))
        anchor = "start" if is_right else "end"
        found.append(Tag(x=round(x + 9 if is_right else x - 9, 1), y=round(height, 1), text=text, anchor=anchor))
    return tuple(found)


def moves() -> Iterator[int]:
    """0, 1, -1, 2, -2 and so on."""
    yield 0
    for away in itertools.count(1):
        yield from (away, -away)


WIDE, ROW, HEADING, FOOT = 340, 33, 26, 22  # narrow enough for a phone: a row's words stand above its mark


def row_chart(
    title: str,
    groups: Sequence[tuple[str, Sequence[Bar]]],
    limits: tuple[float, float] | None = None,
    about: str = "",
) -> RowChart:
    """Marks with intervals, in named groups, over one axis that shows 0.

    Args:
        title: Over the chart.
        groups: Name (empty: no heading) and rows.
        limits: Lowest and highest value to make room for; None: those of the rows and 0.
        about: Under the chart.
    """
    low, high = limits or reach(series_of(rows) for _, rows in groups)
    x = round_axis(low, high, 8, WIDE - 14)
    headings: list[Heading] = []
    rows: list[Row] = []
    y = 0
    for name, members in groups:
        if name:
            headings.append(Heading(text=name, y=y + 17))
            y += HEADING
        rows += [row_of(bar, x, y + number * ROW) for number, bar in enumerate(members)]
        y += ROW * len(members)
    box = Box(width=WIDE, height=y + FOOT, left=0, right=0, top=0, bottom=FOOT)
    return RowChart(title=title, about=about, box=box, x=x, zero=x.at(0), headings=tuple(headings), rows=tuple(rows))


def series_of(bars: Iterable[Bar]) -> Series:
    """Bars as points, to see how far they reach."""
    return Series(name="", points=tuple(Point(x=0, y=one.value, low=one.low, high=one.high) for one in bars))


def row_of(bar: Bar, x: Axis, y: float) -> Row:
    """A bar as drawn, its top at y."""
    text = estimate(bar.value, bar.low, bar.high)
    dot = Dot(
        x=x.at(bar.value),
        y=y + 22,
        title=f"{bar.label}: {text} {bar.note}".strip(),
        low=None if bar.low is None else x.at(bar.low),
        high=None if bar.high is None else x.at(bar.high),
        style=min(bar.style, STYLES - 1),
    )
    return Row(label=bar.label, dot=dot, text=text, note=bar.note)


def scatter_chart(
    title: str, points: Sequence[tuple[Point, str]], x_label: str, box: Box | None = None
) -> ScatterChart:
    """Dots with vertical intervals on two axes of equal range, and the diagonal.

    Args:
        title: Over the chart.
        points: Each with its tooltip.
        x_label: Under the chart.
        box: Size; None: nearly square.
    """
    box = box or Box(width=300, height=280)
    values = [v for p, _ in points for v in (p.x, p.y, p.low, p.high) if v is not None and is_number(v)]
    low, high = min([0.0, *values]), max([0.0, *values])
    x = round_axis(low, high, box.left, box.width - box.right)
    y = round_axis(low, high, box.height - box.bottom, box.top)
    dots = tuple(
        Dot(
            x=x.at(p.x),
            y=y.at(p.y),
            title=words,
            low=None if p.low is None else y.at(p.low),
            high=None if p.high is None else y.at(p.high),
        )
        for p, words in points
        if is_number(p.x) and is_number(p.y)
    )
    return ScatterChart(
        title=title, box=box, x=x, y=y, x_label=x_label, dots=dots, diagonal=(x.start, y.start, x.end, y.end)
    )


def map_cells(values: NDArray[np.float32], errors: NDArray[np.float32] | None = None) -> list[Cell]:
    """A map (h, w) with values in [-1, 1], cell by cell.

    Args:
        values: What is shown; beyond the range the strength stays at its most.
        errors: Standard errors, same shape; None: not said.
    """
    return [
        Cell(
            row=row,
            column=column,
            weight=round(min(abs(float(value)), 1.0), 3) if is_number(float(value)) else 0.0,
            is_cool=bool(value < 0),
            title=f"row {row}, column {column}: {signed(float(value), 2)}"
            + ("" if errors is None else f" ± {number(float(errors[row, column]), 3)}"),
        )
        for (row, column), value in np.ndenumerate(values)
    ]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShareBar:
    """A share and its interval, in percent of a bar's length; `length` is None where there is no interval."""

    value: float
    start: float
    length: float | None


def share_bar(value: float, low: float | None, high: float | None) -> ShareBar:
    """A share as drawn, kept within its bar."""
    ends = [one for one in (low, high) if one is not None and is_number(one)]
    kept = [round(min(max(one, 0.0), 1.0) * 100, 1) for one in (value, *(ends if len(ends) == 2 else ()))]
    if len(kept) == 1:
        return ShareBar(value=kept[0], start=kept[0], length=None)
    return ShareBar(value=kept[0], start=kept[1], length=round(max(kept[2] - kept[1], 0.0), 1))
