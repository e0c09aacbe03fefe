"""From measurements per image to tables that say what they hold, and to verdicts that hide nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vqcortex.errors import ConfigError
from vqcortex.evaluation.intervals import Interval, Resampling, intervals
from vqcortex.evaluation.values import Condition, Evidence
from vqcortex.results import Better, Column, Table

ALL = "all"  # the group of all images


def column(unit: str, meaning: str, better: Better = "neither") -> Column:
    """A column's description, written short."""
    return Column(unit=unit, meaning=meaning, better=better)


METRICS = {
    "probability_drop": column(
        "probability, -1 to 1", "Judge's probability of the concept before minus after hiding.", "higher"
    ),
    "log_odds_drop": column("nats", "Judge's log-odds of the concept before minus after hiding.", "higher"),
    "probability_before": column("probability, 0 to 1", "Judge's probability of the concept in the untouched image."),
    "target_probability": column(
        "probability, 0 to 1", "Judge's probability of the target after the search.", "higher"
    ),
    "target_rise": column("probability, -1 to 1", "Judge's probability of the target after minus before.", "higher"),
    "target_log_odds_rise": column("nats", "Judge's log-odds of the target after minus before.", "higher"),
    "source_drop": column("probability, -1 to 1", "Judge's probability of the source before minus after.", "higher"),
    "changed_tokens": column("tokens", "Tokens that differ from the start, mean over restarts.", "lower"),
}

WHERE = {
    "level": column("name", "image, concept or codebook."),
    "concept": column("name", "Concept of the images ('source to target' at codebook level), or 'all' of them."),
    "masking": column(
        "name",
        "positions: exactly n in every arm; by_id: every cell sharing an id with a chosen one, as published; "
        "area_matched: the same number per image in every arm; search: tokens replaced; none: untouched.",
    ),
    "fill": column("name", "What took the place of hidden tokens."),
    "judge": column("name", "Classifier that took no part in the explanation."),
    "n": column("positions", "Positions chosen per image; empty where it differs from image to image."),
    "share": column("share, 0 to 1", "n as a share of all positions."),
    "metric": column("name", "What was measured; its unit and direction are in the row."),
}

SPREAD = {
    "low": column("as the row's unit", "Lower end of the bootstrap interval over images; empty for one image."),
    "high": column("as the row's unit", "Upper end of the bootstrap interval over images; empty for one image."),
    "images": column("images", "Images averaged over."),
    "unit": column("name", "Unit of the metric."),
    "better": column("name", "Which way the metric is better: higher, lower or neither."),
}

COLUMNS = {
    **WHERE,
    "arm": column("name", "What chose the tokens."),
    "hidden_share": column("share, 0 to 1", "Positions really hidden (tokens changed at codebook level), of all."),
    "value": column("as the row's unit", "Mean over images."),
    **SPREAD,
}

VERDICT_COLUMNS = {
    **WHERE,
    "arm": column("name", "Our default."),
    "other": column("name", "What it is compared with."),
    "hidden_share": column("share, 0 to 1", "Positions hidden (tokens changed) by our default, of all."),
    "other_hidden_share": column("share, 0 to 1", "Positions hidden (tokens changed) by the other, of all."),
    "difference": column("as the row's unit", "Our default minus the other, mean over the same images."),
    **SPREAD,
    "verdict": column(
        "name",
        "better or worse when the interval of the paired difference leaves out 0, else undecided; "
        "one comparison at a time, not corrected for their number.",
    ),
}


def evidence_table(
    evidence: Evidence,
    concepts: Sequence[str],
    *,
    name: str = "evidence",
    resampling: Resampling | None = None,
    per_concept: bool = True,
) -> Table:
    """Every measurement with its interval, pooled and per concept.

    Args:
        evidence: What was measured; the order of its images does not matter.
        concepts: Names, by index.
        name: Of the table.
        resampling: Of the intervals; None: 1,000 resamples, 95 %.
        per_concept: False: pooled rows only.
    """
    rows: list[Mapping[str, Any]] = []
    for group, part in groups(evidence, concepts, per_concept):
        rows += untouched_rows(group, part, resampling)
        for metric, values in part.metrics.items():
            found = iter(intervals(values.flatten(0, 1), resampling))
            rows += [
                {
                    **place(group, part, condition, judge, metric),
                    "arm": condition.arm,
                    "hidden_share": hidden_share(part, number),
                    **spread("value", next(found)),
                }
                for number, condition in enumerate(part.conditions)
                for judge in part.judges
            ]
    return Table(name, COLUMNS, [{key: row[key] for key in COLUMNS} for row in rows])


def verdict_table(
    evidence: Evidence,
    default: str,
    concepts: Sequence[str],
    *,
    name: str = "verdicts",
    resampling: Resampling | None = None,
    per_concept: bool = True,
) -> Table:
    """Our default against every other arm, as a paired difference with interval and a word, won or lost.

    Args:
        evidence: What was measured.
        default: The arm that is ours.
        concepts: Names, by index.
        name: Of the table.
        resampling: Of the intervals; None: 1,000 resamples, 95 %.
        per_concept: False: pooled rows only.

    Raises:
        ConfigError: No condition has the default arm.
    """
    pairs = list(matches(evidence.conditions, default))
    rows: list[Mapping[str, Any]] = []
    for group, part in groups(evidence, concepts, per_concept):
        for metric, values in part.metrics.items() if pairs else ():
            ours, other = ([pair[side] for pair in pairs] for side in (0, 1))
            gaps = values[ours].double() - values[other].double()  # (pairs, j, b)
            found = iter(intervals(gaps.flatten(0, 1), resampling))
            rows += [
                verdict_row(place(group, part, part.conditions[mine], judge, metric), part, mine, theirs, next(found))
                for mine, theirs in pairs
                for judge in part.judges
            ]
    return Table(name, VERDICT_COLUMNS, rows)


def groups(evidence: Evidence, concepts: Sequence[str], per_concept: bool) -> Iterator[tuple[str, Evidence]]:
    """All images, then those of each concept (each pair at codebook level), sorted by image id."""
    order = sorted(range(len(evidence.image_ids)), key=evidence.image_ids.__getitem__)
    yield ALL, taken(evidence, order)
    if not per_concept:
        return
    keys = group_keys(evidence)
    for key in sorted(set(keys)):
        yield label(key, concepts), taken(evidence, [i for i in order if keys[i] == key])


def group_keys(evidence: Evidence) -> list[tuple[int, ...]]:
    """(concept,) of each image, or (source, target)."""
    axes = [evidence.concept] if evidence.source is None else [evidence.source, evidence.concept]
    return [tuple(key) for key in torch.stack(axes, 1).tolist()]


def label(key: tuple[int, ...], concepts: Sequence[str]) -> str:
    """Names of a group's concepts."""
    if max(key) >= len(concepts):
        raise ConfigError(f"concept {max(key)} has no name; {len(concepts)} are named; name them all")
    return " to ".join(concepts[one] for one in key)


def taken(evidence: Evidence, images: list[int]) -> Evidence:
    """The evidence of some of the images."""
    return replace(
        evidence,
        image_ids=tuple(evidence.image_ids[i] for i in images),
        concept=evidence.concept[images],
        source=None if evidence.source is None else evidence.source[images],
        before=evidence.before[:, images],
        metrics={name: values[:, :, images] for name, values in evidence.metrics.items()},
        touched=evidence.touched[:, images],
    )


def matches(conditions: Sequence[Condition], default: str) -> Iterator[tuple[int, int]]:
    """Numbers of (our condition, another arm's condition that is alike in all else)."""
    mine = {replace(one, arm=""): number for number, one in enumerate(conditions) if one.arm == default}
    if not mine:
        arms = sorted({one.arm for one in conditions})
        raise ConfigError(f"the default arm {default!r} was not measured; measured: {', '.join(arms)}")
    for number, one in enumerate(conditions):
        if one.arm != default and replace(one, arm="") in mine:
            yield mine[replace(one, arm="")], number


def untouched_rows(group: str, part: Evidence, resampling: Resampling | None) -> list[dict[str, Any]]:
    """What the judges believe of the images before anything is done to them."""
    nothing = Condition(arm="untouched", masking="positions", fill="none", chosen=0)
    found = intervals(part.before, resampling)
    return [
        {
            **place(group, part, nothing, judge, "probability_before"),
            "masking": "none",
            "arm": nothing.arm,
            "hidden_share": 0.0,
            **spread("value", one),
        }
        for judge, one in zip(part.judges, found, strict=True)
    ]


def place(group: str, part: Evidence, condition: Condition, judge: str, metric: str) -> dict[str, Any]:
    """The columns that say which measurement a row is."""
    n = condition.chosen
    return {
        "level": part.level,
        "concept": group,
        "masking": condition.masking,
        "fill": condition.fill,
        "judge": judge,
        "n": n,
        "share": None if n is None else n / part.positions,
        "metric": metric,
        "unit": METRICS[metric].unit,
        "better": METRICS[metric].better,
    }


def spread(name: str, one: Interval) -> dict[str, Any]:
    """An interval as columns."""
    return {name: one.value, "low": one.low, "high": one.high, "images": one.images}


def hidden_share(part: Evidence, condition: int) -> float:
    """Mean share of positions that a condition really touched."""
    touched: Tensor = part.touched[condition].double().mean()
    return float(touched) / part.positions


def verdict_row(where: dict[str, Any], part: Evidence, mine: int, theirs: int, gap: Interval) -> dict[str, Any]:
    """One comparison."""
    row = {
        **where,
        "arm": part.conditions[mine].arm,
        "other": part.conditions[theirs].arm,
        "hidden_share": hidden_share(part, mine),
        "other_hidden_share": hidden_share(part, theirs),
        **spread("difference", gap),
        "verdict": verdict(gap, METRICS[where["metric"]].better),
    }
    return {key: row[key] for key in VERDICT_COLUMNS}


def verdict(gap: Interval, better: Better) -> str:
    """ "better", "worse" or "undecided" for a difference of ours minus other."""
    if gap.low is None or gap.high is None or better == "neither" or gap.low <= 0 <= gap.high:
        return "undecided"
    return "better" if (gap.low > 0) == (better == "higher") else "worse"
