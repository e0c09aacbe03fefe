"""From evidence tables to the charts, verdicts and sentences of a page. Absent tables give None or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

from vqcortex.evaluation.tables import ALL, METRICS
from vqcortex.report.charts import Bar, LineChart, Point, RowChart, Series, line_chart, reach, row_chart
from vqcortex.report.words import MINUS, count_of, estimate, interval, listed, number, percent, plain_name, signed
from vqcortex.results import Table

EvidenceRow = Mapping[str, Any]

GROUPS = 20  # concepts (or pairs) drawn one by one, beside all of them together
STYLE = {"tis": 1, "random": 2, "random_codes": 2, "embedding_optimisation": 1, "centre": 3, "brightness": 4}
STYLE |= {"token_frequency": 5, "gradient": 6}
OTHER_STYLE = 7
CONTROLS = frozenset(STYLE)
FREE, FROM_SCRATCH = "scratch", "from_scratch"  # the table, and the strategy in the exhibit
BELIEFS = "search_beliefs"
FILLS = ("mean_code", "resampled_codes", "grey", "black")  # the headline takes the first that was measured
HEADLINE_SHARE = 0.1
HEADLINE_METRIC = "probability_drop"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """What a reader may choose between.

    Args:
        name: Of the choice.
        options: As words; the first is shown at the start.
    """

    name: str
    options: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One verdict."""

    word: str
    title: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictGrid:
    """Verdicts against each other arm (rows) in each condition (columns); a cell holds one mark per n."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[Mark, ...], ...]], ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NumberGrid:
    """Values as text, with row and column heads."""

    heads: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is shown for one combination of choices.

    Args:
        key: Number of the option per chooser, joined with "-".
        is_first: Whether it is shown at the start.
        title: The choices as words.
        about: Unit, direction, images, and what the judges believed before.
        lines: Curves, one per fill.
        rows: Marks with intervals.
        verdicts: None: not judged.
        numbers: Everything drawn, as text.
    """

    key: str
    is_first: bool
    title: str
    about: tuple[str, ...]
    lines: tuple[LineChart, ...] = ()
    rows: tuple[RowChart, ...] = ()
    verdicts: VerdictGrid | None = None
    numbers: NumberGrid | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of evidence.

    Args:
        name: image, concept or codebook.
        choosers: In the order of the variants' keys.
        legend: (style, name) per arm, the default first.
        variants: One per combination.
        left_out: Concepts that are in the tables only.
    """

    name: str
    choosers: tuple[Chooser, ...]
    legend: tuple[tuple[int, str], ...]
    variants: tuple[Variant, ...]
    left_out: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The default against published TIS and random at one setting, all images.

    Args:
        arm: The default.
        fill: What took the place of hidden tokens.
        n: Positions hidden.
        positions: Of the grid.
        unit: Of the values.
        rows: Per judge: its name and, by arm, the row of the table.
        verdicts: By (judge, other arm), the word.
    """

    arm: str
    fill: str
    n: int
    positions: int
    unit: str
    rows: tuple[tuple[str, Mapping[str, EvidenceRow]], ...]
    verdicts: Mapping[tuple[str, str], str]


def distinct(rows: Iterable[EvidenceRow], key: str) -> list[Any]:
    """Values of a column in the order they first appear."""
    return list(dict.fromkeys(row[key] for row in rows))


def by_keys(rows: Iterable[EvidenceRow], *keys: str) -> dict[tuple[Any, ...], list[EvidenceRow]]:
    """Rows grouped by some of their columns."""
    found: dict[tuple[Any, ...], list[EvidenceRow]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def measured(table: Table) -> list[EvidenceRow]:
    """Rows that compare arms, without those of untouched images."""
    return [row for row in table.rows if row["masking"] != "none"]


def verdict_rows(tables: Mapping[str, Table], level: str) -> list[EvidenceRow]:
    """Verdicts of one level; none where there is no such table."""
    return tables["verdicts"].where(level=level) if "verdicts" in tables else []


def default_arm(tables: Mapping[str, Table], level: str) -> str:
    """The arm that is ours: the one verdicts speak of, else the first that is no control."""
    known = tables["verdicts"].rows if "verdicts" in tables else ()
    if found := next((row for row in known if row["level"] == level), None):
        return str(found["arm"])
    arms = distinct(measured(tables[f"{level}_level"]), "arm")
    return str(next((arm for arm in arms if arm not in CONTROLS), arms[0]))


def style_of(arm: str, default: str) -> int:
    """How an arm is drawn, the same in every chart of a page."""
    return 0 if arm == default else STYLE.get(arm, OTHER_STYLE)


def arms_in_order(arms: Iterable[str], default: str) -> list[str]:
    """The default first, then published, random and the other controls."""
    return sorted(arms, key=lambda arm: (style_of(arm, default), arm))


def groups_in_order(rows: Iterable[EvidenceRow], concepts: Sequence[str]) -> tuple[list[str], int]:
    """All images, then at most `GROUPS` concepts in the model's order; and the number left out."""
    place = {name: number for number, name in enumerate(concepts)}
    names = [name for name in distinct(rows, "concept") if name != ALL]
    names.sort(key=lambda name: place.get(name, len(place)))
    return [ALL, *names[:GROUPS]], max(len(names) - GROUPS, 0)


def about_metric(row: EvidenceRow) -> str:
    """What a metric says, its unit and direction."""
    known = METRICS.get(row["metric"])
    sentence = known.meaning.rstrip(".") if known else plain_name(row["metric"])
    way = "" if row["better"] == "neither" else f"; {row['better']} is better"
    return f"{sentence}. Unit: {row['unit'].replace('-', MINUS)}{way}."


def about_before(rows: Iterable[EvidenceRow]) -> str:
    """What the judges believed of the untouched images."""
    said = [f"{plain_name(row['judge'])} {estimate(row['value'], row['low'], row['high'], 2)}" for row in rows]
    return f"Before, on untouched images: {listed(said)}." if said else ""


def abouts(rows: Sequence[EvidenceRow], before: Iterable[EvidenceRow]) -> tuple[str, ...]:
    """The sentences under a variant's title; several metrics are explained at their own charts."""
    metrics = dict.fromkeys(map(about_metric, rows))
    images = count_of(rows[0]["images"], "image")
    return (*(metrics if len(metrics) == 1 else ()), f"{images}. {about_before(before)}".strip())


def curves(rows: Sequence[EvidenceRow], default: str) -> list[Series]:
    """One series per arm against n, the default first."""
    by_arm = by_keys(rows, "arm")
    return [
        Series(
            name=plain_name(arm),
            style=style_of(arm, default),
            points=tuple(
                Point(x=row["n"], y=row["value"], low=row["low"], high=row["high"])
                for row in sorted(by_arm[arm,], key=lambda row: row["n"])
            ),
        )
        for arm in arms_in_order((arm for (arm,) in by_arm), default)
    ]


def positions_of(rows: Iterable[EvidenceRow]) -> int | None:
    """h*w, from n and its share."""
    return next((round(row["n"] / row["share"]) for row in rows if row["n"] and row["share"]), None)


def fill_charts(rows: Sequence[EvidenceRow], default: str) -> tuple[LineChart, ...]:
    """A line chart per fill, all with the same vertical axis."""
    by_fill = {fill: curves(some, default) for (fill,), some in by_keys(rows, "fill").items()}
    limits = reach(one for series in by_fill.values() for one in series)
    cells = positions_of(rows)
    label = "positions hidden" + (f", of {cells}" if cells else "")
    return tuple(line_chart(plain_name(fill), series, label, "n =", limits) for fill, series in by_fill.items())


def bars(rows: Sequence[EvidenceRow], default: str, says_area: bool) -> list[Bar]:
    """One bar per arm, the default first."""
    by_arm = {row["arm"]: row for row in rows}
    return [
        Bar(
            label=plain_name(arm),
            value=by_arm[arm]["value"],
            low=by_arm[arm]["low"],
            high=by_arm[arm]["high"],
            style=style_of(arm, default),
            note=f"hides {percent(by_arm[arm]['hidden_share'])}" if says_area else "",
        )
        for arm in arms_in_order(by_arm, default)
    ]


def bar_charts(rows: Sequence[EvidenceRow], default: str, chart: str, group: str) -> tuple[RowChart, ...]:
    """A chart per value of column `chart`, grouped by column `group`; charts of one unit share their axis."""
    by_unit = by_keys(rows, "unit")
    limits = {unit: reach([points_of(some)]) for (unit,), some in by_unit.items()}
    return tuple(
        row_chart(
            plain_name(value),
            [
                (plain_name(name), bars(part, default, says_area=chart == "masking"))
                for (name,), part in by_keys(some, group).items()
            ],
            limits[some[0]["unit"]],
            about_metric(some[0]) if chart == "metric" else "",
        )
        for (value,), some in by_keys(rows, chart).items()
    )


def points_of(rows: Iterable[EvidenceRow]) -> Series:
    """Values and intervals, to see how far they reach."""
    return Series(name="", points=tuple(Point(x=0, y=row["value"], low=row["low"], high=row["high"]) for row in rows))


def mark_of(row: EvidenceRow) -> Mark:
    """A verdict with its difference."""
    place = f"judge {plain_name(row['judge'])}: " if row["level"] == "codebook" else ""
    place += "" if row["n"] is None else f"n = {row['n']}: "
    area = ""
    if abs(row["hidden_share"] - row["other_hidden_share"]) > 0.005:
        area = f" (hides {percent(row['hidden_share'])} against {percent(row['other_hidden_share'])})"
    gap = f"{signed(row['difference'])} {interval(row['low'], row['high'])}".strip()
    return Mark(word=row["verdict"], title=f"{place}{row['verdict']}, {gap}{area}")


def verdict_grid(rows: Sequence[EvidenceRow], default: str, *columns: str) -> VerdictGrid | None:
    """The verdicts of one variant, a column per combination of the named columns that was measured."""
    if not rows:
        return None
    heads = list(by_keys(rows, *columns))
    cells = by_keys(sorted(rows, key=lambda row: row["n"] or 0), "other", *columns)
    return VerdictGrid(
        columns=tuple(", ".join(plain_name(part) for part in head) for head in heads),
        rows=tuple(
            (plain_name(other), tuple(tuple(map(mark_of, cells.get((other, *head), ()))) for head in heads))
            for other in arms_in_order(distinct(rows, "other"), default)
        ),
    )


def number_grid(rows: Sequence[EvidenceRow], default: str, heads: Sequence[str], along: str) -> NumberGrid:
    """Values with intervals, a column per value of `along`."""
    columns = distinct(rows, along)
    if along == "n":
        columns.sort()
    groups = by_keys(rows, *heads)
    order = sorted(
        groups,
        key=lambda group: [style_of(part, default) if h == "arm" else 0 for h, part in zip(heads, group, strict=True)],
    )
    found = {(*(row[head] for head in heads), row[along]): row for row in rows}
    return NumberGrid(
        heads=tuple(plain_name(head) for head in heads),
        columns=tuple(f"n = {one}" if along == "n" else plain_name(one) for one in columns),
        rows=tuple(
            (
                tuple(plain_name(part) for part in group),
                tuple(text_of(found.get((*group, column))) for column in columns),
            )
            for group in order
        ),
    )


def text_of(row: EvidenceRow | None) -> str:
    """A value with its interval; nothing where it was not measured."""
    return "" if row is None else estimate(row["value"], row["low"], row["high"])


def build_level(tables: Mapping[str, Table], name: str, concepts: Sequence[str]) -> Level | None:
    """Everything shown of one level of evidence.

    Args:
        tables: Of the exhibit.
        name: image, concept or codebook.
        concepts: In the order they are offered.

    Returns:
        None where the level was not measured.
    """
    table = tables.get(f"{name}_level")
    if table is None or not (rows := measured(table)):
        return None
    default = default_arm(tables, name)
    keys = ("concept",) if name == "codebook" else ("concept", "judge", "metric")
    groups, left_out = groups_in_order(rows, concepts)
    options = [groups, *(distinct(rows, key) for key in keys[1:])]
    first = "pair" if name == "codebook" else "concept"
    return Level(
        name=name,
        choosers=tuple(
            Chooser(name=label, options=tuple(map(plain_name, some)))
            for label, some in zip((first, *keys[1:]), options, strict=True)
        ),
        legend=tuple(
            (style_of(arm, default), plain_name(arm)) for arm in arms_in_order(distinct(rows, "arm"), default)
        ),
        variants=tuple(variants_of(tables, name, keys, options)),
        left_out=left_out,
    )


def variants_of(
    tables: Mapping[str, Table], name: str, keys: Sequence[str], options: Sequence[Sequence[str]]
) -> Iterator[Variant]:
    """One variant per combination of options that was measured."""
    table, default = tables[f"{name}_level"], default_arm(tables, name)
    rows, verdicts = by_keys(measured(table), *keys), by_keys(verdict_rows(tables, name), *keys)
    before = by_keys((row for row in table.rows if row["masking"] == "none"), "concept")
    for numbers in product(*(range(len(some)) for some in options)):
        key = tuple(some[place] for some, place in zip(options, numbers, strict=True))
        if key in rows:
            yield Variant(
                key="-".join(map(str, numbers)),
                is_first=not any(numbers),
                title=" · ".join(map(plain_name, key)),
                about=abouts(rows[key], before.get(key[:1], [])),
                **drawn(name, rows[key], verdicts.get(key, []), default),
            )


def drawn(level: str, rows: Sequence[EvidenceRow], verdicts: Sequence[EvidenceRow], default: str) -> dict[str, Any]:
    """Charts, verdicts and numbers of one variant."""
    if level == "image":
        return {
            "lines": fill_charts(rows, default),
            "verdicts": verdict_grid(verdicts, default, "fill"),
            "numbers": number_grid(rows, default, ("fill", "arm"), "n"),
        }
    if level == "concept":
        return {
            "rows": bar_charts(rows, default, "masking", "fill"),
            "verdicts": verdict_grid(verdicts, default, "masking", "fill"),
            "numbers": number_grid(rows, default, ("masking", "arm"), "fill"),
        }
    return {
        "rows": bar_charts(rows, default, "metric", "judge"),
        "verdicts": verdict_grid(verdicts, default, "metric"),
        "numbers": number_grid(rows, default, ("metric", "arm"), "judge"),
    }


def concept_charts(tables: Mapping[str, Table]) -> dict[str, tuple[LineChart, ...]]:
    """Curves of every concept by the first judge and metric, one per fill; nothing where none was measured."""
    table = tables.get("image_level")
    if table is None or not (rows := measured(table)):
        return {}
    first = [row for row in rows if row["judge"] == rows[0]["judge"] and row["metric"] == rows[0]["metric"]]
    default = default_arm(tables, "image")
    return {concept: fill_charts(some, default) for (concept,), some in by_keys(first, "concept").items()}


def probabilities(tables: Mapping[str, Table]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Each judge's probability of the target as text, by pair and arm.

    The arm "untouched" is before any search; searches from scratch stand under their target alone.
    """
    rows = tables["codebook_level"].rows if "codebook_level" in tables else ()
    wanted = [row for row in rows if row["metric"] in ("target_probability", "probability_before")]
    found = {
        (pair, arm): [(plain_name(row["judge"]), estimate(row["value"], row["low"], row["high"], 2)) for row in some]
        for (pair, arm), some in by_keys(wanted, "concept", "arm").items()
    }
    free = by_keys(tables[FREE].rows, "concept", "strategy", "judge") if FREE in tables else {}
    for (concept, strategy, judge), some in free.items():
        mean = sum(row["probability"] for row in some) / len(some)
        found.setdefault((concept, f"{FROM_SCRATCH}:{strategy}"), []).append((plain_name(judge), number(mean, 2)))
    return found


def beliefs(tables: Mapping[str, Table]) -> Table | None:
    """Who believes what each strategy found, over all searches; None where it was not measured."""
    if BELIEFS not in tables or not (rows := tables[BELIEFS].where(target=ALL)):
        return None
    shown = {key: column for key, column in tables[BELIEFS].columns.items() if key != "target"}
    return Table(BELIEFS, shown, [{key: row[key] for key in shown} for row in rows])


def fooled(tables: Mapping[str, Table]) -> list[str]:
    """A sentence per search whose extractor believes more than the judges do, the worst first."""
    table = beliefs(tables)
    rows = [row for row in table.rows if (row["adversarial_low"] or 0) > 0] if table else []
    return [
        f"{plain_name(row['strategy'])}, {row['scope']}: the extractor gives the target "
        f"{percent(row['searched_probability'])}, the judges {percent(row['judges_probability'])}; adversarial index "
        f"{estimate(row['adversarial_index'], row['adversarial_low'], row['adversarial_high'], 2)}."
        for row in sorted(rows, key=lambda row: -row["adversarial_index"])
    ]


def losses(tables: Mapping[str, Table]) -> list[str]:
    """Where our default did worse than another arm over all images, and how often in single concepts.

    Returns:
        A sentence per (level, fill, other arm) that beat it somewhere, the most often first; nothing without verdicts.
    """
    if "verdicts" not in tables:
        return []
    rows = tables["verdicts"].rows
    pooled = by_keys([row for row in rows if row["concept"] == ALL], "level", "masking", "fill", "arm", "other")
    lost = [(key, [row for row in some if row["verdict"] == "worse"], some) for key, some in pooled.items()]
    lost = sorted((one for one in lost if one[1]), key=lambda one: -len(one[1]) / len(one[2]))
    single = Counter(row["verdict"] for row in rows if row["concept"] != ALL)
    said = [loss_sentence(*one) for one in lost]
    return [*said, singles_sentence(single)] if sum(single.values()) else said


def loss_sentence(key: tuple[Any, ...], worse: Sequence[EvidenceRow], compared: Sequence[EvidenceRow]) -> str:
    """One place where the default lost, and by which metrics if not by all."""
    level, masking, fill, arm, other = key
    where = [f"{level} level"]
    where += [plain_name(masking)] if level == "concept" else []
    where += [] if level == "codebook" else [plain_name(fill)]
    metrics = [plain_name(one) for one in distinct(worse, "metric")]
    by = f" ({listed(metrics)})" if len(metrics) < len(distinct(compared, "metric")) else ""
    return (
        f"{', '.join(where).capitalize()}: {plain_name(arm)} lost to {plain_name(other)} "
        f"in {len(worse)} of {count_of(len(compared), 'comparison')}{by}."
    )


def singles_sentence(words: Counter[str]) -> str:
    """How the comparisons within single concepts went."""
    return (
        f"Within single concepts: better in {words['better']:,}, undecided in {words['undecided']:,}, "
        f"worse in {words['worse']:,} of {sum(words.values()):,} comparisons."
    )


def headline(tables: Mapping[str, Table]) -> Headline | None:
    """The page's key comparison: all images, near a tenth of the positions, the fairest fill that was measured."""
    table = tables.get("image_level")
    rows = (
        []
        if table is None
        else [
            row
            for row in measured(table)
            if row["concept"] == ALL and row["metric"] == HEADLINE_METRIC and row["n"] and row["share"]
        ]
    )
    if not rows:
        return None
    fills = distinct(rows, "fill")
    fill = next((one for one in FILLS if one in fills), fills[0])
    n = min(distinct(rows, "n"), key=lambda one: (abs(one / positions_or_one(rows) - HEADLINE_SHARE), one))
    arm = default_arm(tables, "image")
    wanted = {arm, "tis", "random"}
    some = [row for row in rows if row["fill"] == fill and row["n"] == n]
    by_judge = by_keys(some, "judge")
    return Headline(
        arm=arm,
        fill=fill,
        n=n,
        positions=positions_or_one(rows),
        unit=rows[0]["unit"],
        rows=tuple(
            (judge, {row["arm"]: row for a in wanted for row in part if row["arm"] == a})
            for (judge,), part in by_judge.items()
        ),
        verdicts={
            (row["judge"], row["other"]): row["verdict"]
            for row in verdict_rows(tables, "image")
            if (row["concept"], row["metric"], row["fill"], row["n"]) == (ALL, HEADLINE_METRIC, fill, n)
        },
    )


def positions_or_one(rows: Iterable[EvidenceRow]) -> int:
    """h*w, or 1 where no row says it."""
    return positions_of(rows) or 1


def headline_charts(found: Headline) -> list[RowChart]:
    """The key comparison as bars, one chart per judge, on one axis."""
    limits = reach([points_of(row for _, by_arm in found.rows for row in by_arm.values())])
    return [
        row_chart(f"Judge: {plain_name(judge)}", [("", bars(list(by_arm.values()), found.arm, False))], limits)
        for judge, by_arm in found.rows
    ]


def answer(tables: Mapping[str, Table], concepts: int) -> str:
    """What the study found, in one sentence that says no more than its tables do."""
    found = headline(tables)
    if found is None:
        return (
            f"The tokens behind {count_of(concepts, 'concept')}, as the extractor sees them; "
            "no judge has checked them yet."
        )
    ours = [(judge, by_arm[found.arm]["value"]) for judge, by_arm in found.rows if found.arm in by_arm]
    drop = listed([f"{number(value, 2)} for judge {plain_name(judge)}" for judge, value in ours])
    others = [arm for arm in arms_in_order(found.rows[0][1], found.arm) if arm != found.arm]
    return (
        f"Hiding the {found.n} of {found.positions} positions that {plain_name(found.arm)} ranks highest lowers the "
        f"probability of the concept by {drop}"
        + (f"; that is {listed([compared(found, arm) for arm in others])}" if others else "")
        + "."
    )


def compared(found: Headline, other: str) -> str:
    """The clause that compares the default with one other arm."""
    values = listed([number(by_arm[other]["value"], 2) for _, by_arm in found.rows if other in by_arm])
    words = [found.verdicts.get((judge, other), "undecided") for judge, _ in found.rows]
    clause = {"better": "more than", "worse": "less than", "undecided": "not clearly different from"}
    if len(set(words)) > 1:
        return f"more than {plain_name(other)} ({values}) for one judge but not for another"
    return f"{clause[words[0]]} {plain_name(other)} ({values})"
