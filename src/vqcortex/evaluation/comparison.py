"""Methods against each other: from figures per image to tables with intervals, paired tests and a recommendation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.errors import ConfigError, DataError
from vqcortex.evaluation.curves import Curves
from vqcortex.evaluation.intervals import Interval, Resampling, intervals, ratio_intervals
from vqcortex.evaluation.metrics.drops import Drop
from vqcortex.evaluation.tables import column, spread
from vqcortex.evaluation.values import check_names
from vqcortex.results import Better, Table
from vqcortex.significance import holm, sign_flip_p

MEAN, NONE = "mean", "none"
NOTE = "note"
NAMED = 3  # methods listed in a sentence
ALPHA = 0.05
DECISIVE, DROP = "mean_drop", "drop"
BACKWARD = 2  # forward passes that a backward pass costs, by count of multiplications


@final
@dataclass(frozen=True, slots=True)
class Measure:
    """What was measured: metric, number of positions hidden (None: several or none), unit and direction."""

    metric: str
    n: int | None
    unit: str
    better: Better


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Measurements of b images, by arm, fill and judge.

    Args:
        arms: a names.
        fills: f names; ("none",) where nothing was filled.
        judges: j names; ("none",) where nobody judged.
        image_ids: b names.
        values: (a, f, j, b) per measure; NaN where an arm is not scored by a judge.
    """

    arms: tuple[str, ...]
    fills: tuple[str, ...]
    judges: tuple[str, ...]
    image_ids: tuple[str, ...]
    values: Mapping[Measure, Float[Tensor, "a f j b"]]

    def of(self, measure: Measure, arm: str, fill: str = MEAN, judge: str = MEAN) -> Float[Tensor, " b"]:
        """One arm's figures per image; the mean over fills or judges where that is what is asked for."""
        value = self.values[measure][self.arms.index(arm)]
        value = value.mean(0) if fill == MEAN else value[self.fills.index(fill)]
        return value.nanmean(0) if judge == MEAN else value[self.judges.index(judge)]

    def take(self, image_ids: Sequence[str]) -> Figures:
        """Those of some of the images, in this order."""
        place = {name: row for row, name in enumerate(self.image_ids)}
        rows = [place[name] for name in image_ids]
        return replace(
            self, image_ids=tuple(image_ids), values={key: one[..., rows] for key, one in self.values.items()}
        )

    def measure(self, metric: str, n: int | None = None) -> Measure:
        """The measure of that name."""
        return next(one for one in self.values if (one.metric, one.n) == (metric, n))


def join_figures(parts: Sequence[Figures]) -> Figures:
    """All images of the parts, sorted by id, so that no interval depends on the pieces that work was cut into.

    Raises:
        DataError: There is no part.
    """
    if not parts:
        raise DataError("there are no images to measure; pass at least one")
    first = parts[0]
    values = {key: torch.cat([part.values[key] for part in parts], -1) for key in first.values}
    whole = replace(first, image_ids=tuple(name for part in parts for name in part.image_ids), values=values)
    return whole.take(sorted(whole.image_ids))


def drop_figures(curves: Curves, deciding: tuple[int, ...]) -> dict[Measure, Float[Tensor, "a f j b"]]:
    """How far the judges' probability of the concept falls: the mean over the n that decide, and per n."""
    decisive = {Measure(DECISIVE, None, Drop.unit, Drop.better): Drop(counts=deciding)(curves)}
    return decisive | {Measure(DROP, n, Drop.unit, Drop.better): Drop(counts=(n,))(curves) for n in curves.counts}


# -- tables ------------------------------------------------------------------------------------------------------------

ROW_SPREAD = {
    "low": column("as the row's unit", "Lower end of the 95 % bootstrap interval over images."),
    "high": column("as the row's unit", "Upper end of the 95 % bootstrap interval over images."),
    "images": column("images", "Images averaged over."),
}
COLUMNS = {
    "arm": column("name", "Attribution method, or control that looks at no extractor, or oracle that asked a judge."),
    "metric": column("name", "What was measured; mean_drop is the drop averaged over the numbers n that decide."),
    "fill": column("name", "What took the place of hidden positions; mean: over the fills, per image; none: no fill."),
    "judge": column("name", "Who judged; mean: over the judges that the arm did not ask, per image; none: nobody."),
    "n": column("positions", "Positions hidden; empty where the metric is over several numbers or none."),
    "value": column("as the row's unit", "Mean over images."),
    **ROW_SPREAD,
    "unit": column("name", "Unit of the metric."),
    "better": column("name", "Which way the metric is better: higher, lower or neither."),
    "constant_share": column(
        "share, 0 to 1", "Images to which the arm gives one score everywhere, so that reading order decides.", "lower"
    ),
}


def comparison_rows(
    figures: Figures, constant: Mapping[str, float], resampling: Resampling | None = None
) -> list[dict[str, Any]]:
    """One row per arm, measure, fill and judge, and for the means over fills and judges.

    Args:
        figures: What was measured.
        constant: By arm, the share of images with one score everywhere.
        resampling: Of the intervals.
    """
    fills, judges = (names if names == (NONE,) else (*names, MEAN) for names in (figures.fills, figures.judges))
    wheres = [
        (measure, arm, fill, judge)
        for measure in figures.values
        for arm in figures.arms
        for fill in fills
        for judge in judges
    ]
    values = torch.stack([figures.of(*where) for where in wheres])
    scored = (~values.isnan().any(1)).tolist()
    found = iter(intervals(values[torch.tensor(scored)], resampling))
    return [
        {
            "arm": arm, "metric": measure.metric, "fill": fill, "judge": judge, "n": measure.n,
            **spread("value", next(found)), "unit": measure.unit, "better": measure.better,
            "constant_share": constant[arm],
        }
        for (measure, arm, fill, judge), is_scored in zip(wheres, scored, strict=True)
        if is_scored
    ]  # fmt: skip


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table `comparison` of rows from `comparison_rows`."""
    return Table("comparison", COLUMNS, rows)


PAIR_COLUMNS = {
    "method": column("name", "Attribution method."),
    "other": column("name", "What it is compared with: a control, the published score, the best method, or an oracle."),
    "metric": COLUMNS["metric"],
    "fill": COLUMNS["fill"],
    "n": COLUMNS["n"],
    "difference": column("as the row's unit", "Method minus other, mean over the same images and judges.", "higher"),
    **ROW_SPREAD,
    "ratio": column(
        "times", "Mean of the method over mean of the other; empty where the other's is not surely above 0.", "higher"
    ),
    "ratio_low": column("times", "Lower end of the 95 % bootstrap interval of the ratio."),
    "ratio_high": column("times", "Upper end of the 95 % bootstrap interval of the ratio."),
    "p": column("probability, 0 to 1", "Two-sided sign-flip test of the paired differences."),
    "p_holm": column("probability, 0 to 1", "The same, corrected (Holm) over all rows of this metric, n and fill."),
    "unit": COLUMNS["unit"],
    "verdict": column("name", f"better or worse where p_holm is at most {ALPHA}, else undecided."),
}


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """One question: does a method differ from another arm in a measure under a fill?"""

    method: str
    other: str
    measure: Measure
    fill: str


def pairs_table(
    figures: Figures,
    methods: Sequence[str],
    others: Sequence[str],
    oracles: Figures | None = None,
    resampling: Resampling | None = None,
) -> Table:
    """Every method against some arms, on the same images: paired difference, ratio, sign-flip p, Holm, verdict.

    Args:
        figures: All arms but the oracles.
        methods: Arms that explain.
        others: Arms they are compared with; a method is not compared with itself.
        oracles: Arms that asked a judge, perhaps on fewer images; None: there are none. Each is compared with every
            method over the judges it did not ask.
        resampling: Of the intervals, and the seed of the tests.
    """
    resampling = resampling or Resampling()
    rows = _paired(figures, figures, methods, others, resampling)
    if oracles is not None:
        mine = figures.take(oracles.image_ids)
        rows += _paired(mine, oracles, methods, oracles.arms, resampling)
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault((row["metric"], row["n"], row["fill"]), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([one["p"] for one in family]), strict=True):
            word = "better" if row["difference"] > 0 else "worse"
            row |= {"p_holm": p, "verdict": word if p <= ALPHA else "undecided"}
    return Table("comparison_pairs", PAIR_COLUMNS, [{key: row[key] for key in PAIR_COLUMNS} for row in rows])


def _paired(
    mine: Figures, theirs: Figures, methods: Sequence[str], others: Sequence[str], resampling: Resampling
) -> list[dict[str, Any]]:
    pairs = [
        Pair(method, other, measure, fill)
        for measure in theirs.values
        if measure.metric in (DECISIVE, DROP)
        for fill in ((*theirs.fills, MEAN) if measure.metric == DECISIVE else (MEAN,))
        for method in methods
        for other in others
        if method != other
    ]
    if not pairs:
        return []
    ours, other = (torch.stack(side) for side in zip(*(_sides(mine, theirs, one) for one in pairs), strict=True))
    gaps = intervals(ours.double() - other.double(), resampling)
    ratios = ratio_intervals(ours, other, resampling)
    tests = sign_flip_p(ours.double() - other.double(), seed=resampling.seed).tolist()
    return [
        {
            "method": one.method, "other": one.other, "metric": one.measure.metric, "fill": one.fill,
            "n": one.measure.n, **spread("difference", gap), **_ratio(ratio), "p": p, "unit": one.measure.unit,
        }
        for one, gap, ratio, p in zip(pairs, gaps, ratios, tests, strict=True)
    ]  # fmt: skip


def _sides(mine: Figures, theirs: Figures, pair: Pair) -> tuple[Tensor, Tensor]:
    """Figures per image of both arms, over the judges that score the other one."""
    fill = slice(None) if pair.fill == MEAN else slice(at := theirs.fills.index(pair.fill), at + 1)
    other = theirs.values[pair.measure][theirs.arms.index(pair.other), fill]
    ours = mine.values[pair.measure][mine.arms.index(pair.method), fill]
    asked = other.isnan().any(-1).any(0)
    return ours[:, ~asked].mean((0, 1)), other[:, ~asked].mean((0, 1))


def _ratio(ratio: Interval | None) -> dict[str, float | None]:
    if ratio is None:
        return {"ratio": None, "ratio_low": None, "ratio_high": None}
    return {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}


COST_COLUMNS = {
    "method": column("name", "Attribution method."),
    "extractors": column("extractors", "Extractors it asks.", "lower"),
    "forward": column("passes per image", "Forward passes, over all extractors it asks.", "lower"),
    "backward": column("passes per image", "Backward passes, over all extractors it asks.", "lower"),
    "compute": column("forward passes per image", f"Forward plus {BACKWARD} times backward passes.", "lower"),
    "mean_drop": column("probability, -1 to 1", "Its mean_drop over fills and judges, mean over images.", "higher"),
    "low": column("probability, -1 to 1", "Lower end of the 95 % bootstrap interval over images."),
    "high": column("probability, -1 to 1", "Upper end of the 95 % bootstrap interval over images."),
    "images": column("images", "Images averaged over."),
    "pareto": column("yes or no", "Whether no other method is at least as good for at most its compute."),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a method costs per image.

    Args:
        extractors: Asked by it.
        forward: Passes over all of them.
        backward: Likewise.
    """

    extractors: int
    forward: int
    backward: int

    @property
    def compute(self) -> int:
        """In forward passes."""
        return self.forward + BACKWARD * self.backward


def cost_table(figures: Figures, costs: Mapping[str, Cost], resampling: Resampling | None = None) -> Table:
    """Faithfulness against compute of every method; no seconds, which no two machines share."""
    decisive = figures.measure(DECISIVE)
    found = dict(zip(costs, intervals(torch.stack([figures.of(decisive, one) for one in costs]), resampling)))  # noqa: B905
    rows = [
        {
            "method": name, "extractors": cost.extractors, "forward": cost.forward, "backward": cost.backward,
            "compute": cost.compute, **spread("mean_drop", found[name]),
            "pareto": not any(
                (costs[one].compute <= cost.compute and found[one].value >= found[name].value)
                and (costs[one].compute, -found[one].value) != (cost.compute, -found[name].value)
                for one in costs
            ),
        }
        for name, cost in costs.items()
    ]  # fmt: skip
    return Table("comparison_cost", COST_COLUMNS, rows)


AGREEMENT_COLUMNS = {
    "one": column("name", "A method or control."),
    "other": column("name", "Another one."),
    "value": column(
        "correlation, -1 to 1", "Rank correlation (Spearman) of their scores in an image, mean over images."
    ),
    "low": column("correlation, -1 to 1", "Lower end of the 95 % bootstrap interval over images."),
    "high": column("correlation, -1 to 1", "Upper end of the 95 % bootstrap interval over images."),
    "images": column("images", "Images averaged over: those in which neither gives one score everywhere."),
}


def agreement_table(
    values: Mapping[tuple[str, str], Float[Tensor, " b"]], resampling: Resampling | None = None
) -> Table:
    """How alike arms rank positions; NaN stands for an image that one of them does not rank."""
    rows = [{"one": one, "other": other, **_spread_of(value, resampling)} for (one, other), value in values.items()]
    return Table("agreement", AGREEMENT_COLUMNS, rows)


STABILITY_COLUMNS = {
    "method": column("name", "Attribution method."),
    "over": column(
        "name",
        "seeds: another seed; extractors: the same method asked of each other extractor, or an ensemble without one "
        "of its members.",
    ),
    "value": column(
        "correlation, -1 to 1", "Rank correlation (Spearman) with the scores as they are, mean over images.", "higher"
    ),
    "low": AGREEMENT_COLUMNS["low"],
    "high": AGREEMENT_COLUMNS["high"],
    "images": AGREEMENT_COLUMNS["images"],
}  # fmt: skip


def stability_table(
    values: Mapping[tuple[str, str], Float[Tensor, " b"]], resampling: Resampling | None = None
) -> Table:
    """How alike a method ranks positions when nothing that matters is changed; keys are (method, over)."""
    rows = [{"method": one, "over": over, **_spread_of(value, resampling)} for (one, over), value in values.items()]
    return Table("stability", STABILITY_COLUMNS, rows)


def _spread_of(value: Float[Tensor, " b"], resampling: Resampling | None) -> dict[str, Any]:
    """An interval over the images that have a value, as columns; empty where none has."""
    known = value[~value.isnan()]
    if not len(known):
        return {"value": None, "low": None, "high": None, "images": 0}
    return spread("value", intervals(known[None], resampling)[0])


# -- recommendation ----------------------------------------------------------------------------------------------------

RECOMMENDATION_COLUMNS = {
    "role": column(
        "name",
        "default: the most faithful method; fast: the cheapest of one extractor that keeps enough of it; note: what a "
        "reader of the figures must know.",
    ),
    "method": column("name", "The method recommended, empty for a note."),
    "compute": column("forward passes per image", "What it costs.", "lower"),
    "mean_drop": column("probability, -1 to 1", "Its mean_drop over fills and judges, mean over images.", "higher"),
    "kept": column("share of the default", "Its mean_drop over that of the default.", "higher"),
    "reason": column("sentence", "Why."),
}  # fmt: skip


def recommendation_table(
    costs: Table, pairs: Table, controls: Sequence[str], keep: float, notes: Sequence[str] = ()
) -> Table:
    """Which method to use, and why, in words.

    Args:
        costs: From `cost_table`.
        pairs: From `pairs_table`, the best method among its others.
        controls: Arms that look at no extractor.
        keep: Share of the best method's drop that the fast one must keep, 0 to 1.
        notes: What else a reader must know.

    Raises:
        ConfigError: There is no method.
    """
    check_names("method", [row["method"] for row in costs.rows])
    best = best_of(costs)
    rows = [_recommended("default", best, best, _why_best(best, costs, pairs, controls))]
    single = [row for row in costs.rows if row["extractors"] == 1 and row["mean_drop"] >= keep * best["mean_drop"] > 0]
    if single:
        fast = min(single, key=lambda row: (row["compute"], -row["mean_drop"], row["method"]))
        rows.append(_recommended("fast", fast, best, _why_fast(fast, best, keep)))
    else:
        notes = (*notes, f"No method of one extractor keeps {keep * 100:.0f} % of the default's mean drop.")
    warned = [*_lost(best, pairs, controls), *notes]
    rows += [{key: None for key in RECOMMENDATION_COLUMNS} | {"role": NOTE, "reason": one} for one in warned]
    return Table("recommendation", RECOMMENDATION_COLUMNS, rows)


def best_of(costs: Table) -> Mapping[str, Any]:
    """The row of the method with the largest mean drop; the cheaper of equal ones."""
    return min(costs.rows, key=lambda row: (-row["mean_drop"], row["compute"], row["method"]))


def _recommended(role: str, row: Mapping[str, Any], best: Mapping[str, Any], reason: str) -> dict[str, Any]:
    kept = row["mean_drop"] / best["mean_drop"] if best["mean_drop"] > 0 else None
    return {
        "role": role, "method": row["method"], "compute": row["compute"], "mean_drop": row["mean_drop"],
        "kept": kept, "reason": reason,
    }  # fmt: skip


def _why_best(best: Mapping[str, Any], costs: Table, pairs: Table, controls: Sequence[str]) -> str:
    mine = pairs.where(method=best["method"], metric=DECISIVE, fill=MEAN)
    times = [
        f"{row['ratio']:.1f} times that of {row['other']}"
        for row in mine
        if row["ratio"] is not None and row["other"] in ("random", "tis", "oracle", "oracle_each_fill")
    ]
    rivals = pairs.where(other=best["method"], metric=DECISIVE, fill=MEAN)
    equal = [row["method"] for row in rivals if row["verdict"] != "worse"]
    also = f"not clearly better than {_some(equal)}" if equal else "clearly better than every other method"
    words = ", ".join(["the largest mean drop", *times, also if len(costs.rows) > 1 else "the only method compared"])
    return f"{words}; {_passes(best)} per image"


def _why_fast(fast: Mapping[str, Any], best: Mapping[str, Any], keep: float) -> str:
    if fast["method"] == best["method"]:
        return f"the default itself: no cheaper method of one extractor keeps {keep * 100:.0f} % of its mean drop"
    kept = fast["mean_drop"] / best["mean_drop"]
    return (
        f"keeps {kept * 100:.0f} % of the default's mean drop (at least {keep * 100:.0f} % was asked) for "
        f"{_passes(fast)} per image; the default takes {_passes(best)}"
    )


def _some(names: Sequence[str]) -> str:
    """Names, or how many there are where that would be long."""
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} of the others"


def _passes(row: Mapping[str, Any]) -> str:
    back = f" and {row['backward']:,} backward" if row["backward"] else ""
    return f"{row['forward']:,} forward{back} passes"


def _lost(best: Mapping[str, Any], pairs: Table, controls: Sequence[str]) -> Iterator[str]:
    """Fills in which the best method is not clearly above a control that looks at no extractor."""
    for control in controls:
        rows = pairs.where(method=best["method"], metric=DECISIVE, other=control)
        lost = [row for row in rows if row["verdict"] != "better"]
        if lost:
            where = ", ".join("all fills together" if row["fill"] == MEAN else row["fill"] for row in lost)
            least = min(row["difference"] for row in lost)
            yield (
                f"Even the default is not clearly above the control {control} with: {where} (difference as low as "
                f"{round(least, 3) + 0.0:.3f})."
            )


def check_methods(names: Sequence[str], others: Sequence[str]) -> None:
    """Return if methods are named once each and none is called like a control.

    Raises:
        ConfigError: One is.
    """
    check_names("method", list(names))
    if taken := [name for name in names if name in others]:
        raise ConfigError(f"{taken[0]!r} is a control, which is always compared; name attribution methods only")
