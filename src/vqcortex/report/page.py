"""The page of a study: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from vqcortex.exhibit import ClusterExhibit, ConceptExhibit, EditExhibit, Exhibit, Floats, Pictures, SearchExhibit
from vqcortex.report import pictures, words
from vqcortex.report.charts import (
    LineChart,
    Point,
    ScatterChart,
    Series,
    line_chart,
    map_cells,
    scatter_chart,
    share_bar,
)
from vqcortex.report.editing import edit_charts, edit_legend, edit_rows
from vqcortex.report.evidence import (
    FROM_SCRATCH,
    answer,
    arms_in_order,
    beliefs,
    build_level,
    concept_charts,
    fooled,
    headline,
    headline_charts,
    losses,
    probabilities,
)
from vqcortex.report.together import pair_matrices
from vqcortex.report.trust import cascade_chart, check_rows, trust_view
from vqcortex.results import Column, Table

TOP = 5  # positions outlined per example
STABLE = 0.75
CODES_LISTED = 24
ROWS_SHOWN = 8
REASONS_SHOWN = 3  # in the banner
LEVELS = ("image", "concept", "codebook")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A key figure of the header."""

    name: str
    value: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Images of a search.

    Args:
        label: As words.
        arm: As the tables call it.
        images: (m, H, W, 3).
        is_free: Whether the whole grid could change, from no start.
    """

    label: str
    arm: str
    images: Pictures
    is_free: bool = False


def render_page(exhibit: Exhibit) -> str:
    """The study as one self-contained HTML page; the same exhibit gives the same page.

    Args:
        exhibit: Everything shown; absent tables leave a sentence in their place.
    """
    found = headline(exhibit.tables)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            exhibit=exhibit,
            answer=answer(exhibit.tables, len(exhibit.concepts)),
            figures=key_figures(exhibit),
            headline=found,
            headline_charts=headline_charts(found) if found else [],
            losses=losses(exhibit.tables),
            training=training_charts(exhibit.history),
            levels={name: build_level(exhibit.tables, name, concept_names(exhibit)) for name in LEVELS},
            concept_charts=concept_charts(exhibit.tables),
            probabilities=probabilities(exhibit.tables),
            believed=beliefs(exhibit.tables),
            fooled=fooled(exhibit.tables),
            together=pair_matrices(exhibit.tables),
            homes=cluster_homes(exhibit.clusters),
            trust=trust_view(exhibit.trust),
            checks=check_rows(exhibit.tables),
            cascade=cascade_chart(exhibit.tables),
            edit_charts=edit_charts(exhibit.tables),
            edit_legend=edit_legend(),
            edit_rows=edit_rows(exhibit.tables),
        )
    )


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates that escape everything and know our ways with numbers and pictures."""
    made = Environment(
        loader=PackageLoader("vqcortex.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for one in (
        words.plain_name,
        words.number,
        words.signed,
        words.percent,
        words.interval,
        words.cell,
        words.listed,
        words.is_number,
        options_of,
    ):
        made.filters[one.__name__] = one
    for two in (
        pictures.picture_address,
        pictures.strip_address,
        pictures.overlay_address,
        pictures.cells_path,
    ):
        made.filters[two.__name__] = two
    made.globals |= {
        "top_outline": top_outline,
        "strip_outline": pictures.strip_outline,
        "outline_path": pictures.outline_path,
        "is_crisp": pictures.is_crisp,
        "map_cells": map_cells,
        "share_bar": share_bar,
        "swap_chart": swap_chart,
        "middles": middles,
        "leading": leading,
        "search_steps": search_steps,
        "edit_steps": edit_steps,
        "names_first": names_first,
        "pair_name": pair_name,
        "searches_of": searches_of,
        "meaning_of": meaning_of,
        "trust_view": trust_view,
        "estimate": words.estimate,
        "count_of": words.count_of,
        "THUMBNAIL": pictures.CRISP,
        "PATCH": pictures.PATCH,
        "STABLE": STABLE,
        "TOP": TOP,
        "CODES_LISTED": CODES_LISTED,
        "ROWS_SHOWN": ROWS_SHOWN,
        "REASONS_SHOWN": REASONS_SHOWN,
    }
    return made


def edit_steps(edit: EditExhibit) -> list[tuple[str, Pictures]]:
    """What is shown of an edit, each with its label."""
    return [("before", edit.before), *((words.plain_name(arm), images) for arm, images in edit.after.items())]


def concept_names(exhibit: Exhibit) -> list[str]:
    """Names in the order shown: concepts, then searched pairs."""
    pairs = [pair_name(one) for one in exhibit.searches]
    return [*(one.name for one in exhibit.concepts), *pairs]


def pair_name(search: SearchExhibit) -> str:
    """A pair as the tables call it."""
    return f"{search.source} to {search.target}"


def key_figures(exhibit: Exhibit) -> list[Figure]:
    """Model, size of the study, accuracy of its extractor: those of them that the exhibit knows."""
    names = {"Model": "name", "Images": "images", "Codes": "codes"}
    found = [Figure(name=label, value=text) for label, key in names.items() if (text := fact(exhibit.model, key))]
    found.append(Figure(name="Concepts", value=str(len(exhibit.concepts))))
    if accuracy := fact(exhibit.extractor, "accuracy"):
        found.append(Figure(name="Extractor accuracy", value=accuracy))
    return found


def fact(facts: Mapping[str, str], key: str) -> str:
    """The first fact whose name holds a word; empty where there is none."""
    return next((text for name, text in facts.items() if key in name.lower()), "")


def training_charts(history: Iterable[Mapping[str, float]]) -> list[LineChart]:
    """Losses and accuracy per epoch; none without at least two epochs."""
    rows = list(history)
    if len(rows) < 2:
        return []
    losses_ = [curve(rows, "validation_loss", 0), curve(rows, "train_loss", 1)]
    accuracy = [curve(rows, "validation_accuracy", 0)]
    return [
        line_chart(title, [one for one in series if one.points], "epoch", "epoch")
        for title, series in (("Loss, in nats", losses_), ("Accuracy on validation images", accuracy))
        if any(one.points for one in series)
    ]


def curve(rows: Iterable[Mapping[str, float]], key: str, style: int) -> Series:
    """One column of the history against the epoch."""
    points = tuple(
        Point(x=row.get("epoch", number), y=row[key])
        for number, row in enumerate(rows, 1)
        if words.is_number(row.get(key))
    )
    return Series(name=words.plain_name(key), points=points, style=style)


def top_outline(importance: Floats) -> str:
    """SVG path around an example's highest positions."""
    return pictures.cells_path(pictures.top_cells(importance, TOP), inset=0.06)


def middles(patches: Pictures) -> str:
    """SVG path around the middle position of every patch in a strip, one unit per position."""
    return pictures.cells_path((1, 3 * number + 1) for number in range(len(patches)))


def swap_chart(concept: ConceptExhibit) -> ScatterChart | None:
    """Estimated against measured effect of real swaps; None where none was verified."""
    swaps = [one for one in concept.best_swaps if words.is_number(one["measured"])]
    if not swaps:
        return None
    return scatter_chart("Measured effect, logits", [swap_point(one) for one in swaps], "estimated effect, logits")


def swap_point(swap: Mapping[str, Any]) -> tuple[Point, str]:
    """One verified swap with an interval of two standard errors each way, and its tooltip."""
    error, measured = swap["measured_error"], swap["measured"]
    has_error = words.is_number(error)
    point = Point(
        x=swap["estimated"],
        y=measured,
        low=measured - 2 * error if has_error else None,
        high=measured + 2 * error if has_error else None,
    )
    return point, (
        f"code {swap['code']} at row {swap['row']}, column {swap['column']}: estimated "
        f"{words.signed(swap['estimated'], 2)}, measured {words.signed(measured, 2)} ± {words.number(error, 2)}"
    )


def cluster_homes(clusters: Iterable[ClusterExhibit]) -> dict[int, int]:
    """The cluster of every code that has one."""
    return {code: one.number for one in clusters for code in one.codes}


def leading(profile: Floats, names: list[str], count: int = 3) -> list[tuple[str, float]]:
    """The concepts that matter most to a cluster, with their shares."""
    order = np.argsort(-profile, kind="stable")[:count]
    return [(names[place], float(profile[place])) for place in order if place < len(names) and profile[place] > 0]


def search_steps(search: SearchExhibit) -> list[Step]:
    """The start, then each strategy, token selection first; searches from scratch last, they have no start."""
    start = Step(label="before", arm="untouched", images=search.before)
    order = arms_in_order(search.after, "token_selection")
    return [
        start,
        *(Step(label=step_name(arm), arm=arm, images=search.after[arm], is_free=is_free(arm)) for arm in order),
    ]


def is_free(arm: str) -> bool:
    """Whether a strategy of the exhibit began at nothing."""
    return arm.partition(":")[0] == FROM_SCRATCH


def step_name(arm: str) -> str:
    """A strategy of the exhibit as words.

    Example:
        >>> step_name("from_scratch:token_selection")
        'token selection, from scratch'
    """
    strategy = arm.partition(":")[2]
    return f"{words.plain_name(strategy)}, from scratch" if is_free(arm) and strategy else words.plain_name(arm)


def names_first(table: Table) -> dict[str, Column]:
    """A table's columns, names before numbers."""
    return dict(sorted(table.columns.items(), key=lambda item: item[1].unit != "name"))


def options_of(command: str) -> list[str]:
    """A command line cut before each option, so that lines break there."""
    first, *options = command.split(" --")
    return [first, *(f"--{one}" for one in options)]


def searches_of(exhibit: Exhibit, concept: str) -> list[tuple[int, SearchExhibit]]:
    """Searches from or to a concept, with their places on the page."""
    return [(place, one) for place, one in enumerate(exhibit.searches) if concept in (one.source, one.target)]


def meaning_of(tables: Mapping[str, Table], table: str, column: str) -> str:
    """What a column means and its unit, for a tooltip; empty where the table is absent."""
    about = tables[table].columns.get(column) if table in tables else None
    return f"{about.meaning} Unit: {about.unit}." if about else ""
