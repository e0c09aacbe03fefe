"""Tables of planted worlds, and what is asked of a method in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from scipy.stats import binomtest

from vqcortex.evaluation.intervals import Resampling, interval
from vqcortex.pipelines.settings import WorldsSettings
from vqcortex.pipelines.together import EXCLUSIVE, REDUNDANCY, SYNERGY
from vqcortex.results import Column, Table

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = dict[str, list[dict[str, Any]]]
TOP_THREE = 3
INTERACTIONS = "interactions"  # stands for a method where pairs are tested
POOLS = {"positions": "positions", "null": "tests", "pairs": "tests"}
SHORTCUT_FROM = 0.8  # correlation from which a shortcut is to be found

SAME = {
    "world": Column(unit="name", meaning="Planted world."),
    "run": Column(unit="number, from 0", meaning="Run: other codes, places, images and weights."),
    "extractor": Column(unit="name", meaning="Architecture that learned the world."),
    "accuracy": Column(
        unit="share, 0 to 1", better="higher", meaning="Test images whose concept it knows, against the truth."
    ),
    "method": Column(unit="name", meaning="Attribution method; random: the control; traversal: first-order effects."),
}
ABOUT = {
    "split": Column(unit="name", meaning="Which images were explained."),
    "truth": Column(unit="name", meaning="What is to be found: causal codes, or decoys that only go with the concept."),
}
MARKS = {
    "auroc": Column(unit="share, 0 to 1", better="higher", meaning="Pairs of a true and another one in right order."),
    "precision": Column(
        unit="share, 0 to 1", better="higher", meaning="True ones among as many best ones as are true."
    ),
}
POSITIONS = {
    **SAME, **ABOUT,
    "images": Column(unit="images", meaning="Of the concept, recognised, with something to find."),
    **MARKS,
    "recall": Column(
        unit="share, 0 to 1", better="higher", meaning="True positions among the best tenth of the grid."
    ),
}  # fmt: skip
CODES = {
    **SAME,
    "pool": Column(
        unit="name",
        meaning="One score per code: mean or sum of importance where it stands in images of the concept; counts or "
        "lift among the best positions; effect of putting it into other images.",
    ),
    **ABOUT,
    "codes": Column(unit="code ids", meaning="The true codes."),
    "ranks": Column(unit="ranks, from 1", better="lower", meaning="Their places among all live codes."),
    **MARKS,
    "recall": Column(unit="share, 0 to 1", better="higher", meaning="True codes among the ten best."),
    "worst_rank": Column(unit="rank, from 1", better="lower", meaning="Place of the last true code."),
    "other_ranks": Column(
        unit="ranks, from 1", meaning="Places of the decoys where causal codes are sought, and the other way round."
    ),
    "above_others": Column(unit="yes or no", meaning="Every true code scores above every one of those."),
    "found": Column(
        unit="codes",
        meaning="Codes whose importance goes with the concept at a false discovery rate of 5 %, by sign flips over "
        "pairs of test images; with pool mean only.",
    ),
    "found_true": Column(unit="codes", better="higher", meaning="True ones among them."),
}  # fmt: skip
PAIRS = {
    **{name: SAME[name] for name in ("world", "run", "extractor", "accuracy")},
    "together": Column(unit="sign", meaning="How planted codes act: 1 both are needed, -1 one undoes the other."),
    "code_a": Column(unit="code id", meaning="A planted code."),
    "code_b": Column(unit="code id", meaning="The other one, or a code that means nothing."),
    "is_planted": Column(unit="yes or no", meaning="Both are planted; no: a control."),
    "images": Column(unit="images", meaning="Test images that hold no planted code, into which both were put."),
    "synergy": Column(unit="logits", meaning="What both do beyond the sum of each, mean over several positions."),
    "low": Column(unit="logits", meaning="Lower end of its 95 % bootstrap interval over images."),
    "high": Column(unit="logits", meaning="Upper end of its 95 % bootstrap interval over images."),
    "p": Column(unit="probability, 0 to 1", meaning="Sign-flip test over images."),
    "q": Column(unit="probability, 0 to 1", meaning="p after control of false discoveries over pairs and controls."),
    "verdict": Column(unit="name", meaning="As in the table of interactions of a study."),
    "is_strongest": Column(unit="yes or no", meaning="Its synergy is larger, either way, than that of every control."),
}
FALSE = {
    **SAME,
    "tested": Column(unit="codes", meaning="Codes tested, none of which makes the concept."),
    "least_p": Column(unit="probability, 0 to 1", meaning="Smallest p-value of a code, uncorrected."),
    "found": Column(unit="codes", better="lower", meaning="Found at a false discovery rate of 5 %, all falsely."),
}
SKIPPED = {
    **{name: SAME[name] for name in ("world", "run", "extractor", "method")},
    "reason": Column(unit="words", meaning="Why the method was not used."),
}
SUMMARY = {
    "target": Column(unit="name", meaning="What is asked."),
    "asks": Column(unit="words", meaning="The same as a sentence."),
    **{name: SAME[name] for name in ("extractor", "method")},
    "pool": Column(unit="name", meaning="How codes are scored, see worlds_codes; positions or tests: neither."),
    "value": Column(unit="share, 0 to 1", meaning="Mean over runs; of yes or no: share of runs."),
    "low": Column(unit="share, 0 to 1", meaning="Lower end of its 95 % interval: bootstrap, or exact of a share."),
    "high": Column(unit="share, 0 to 1", meaning="Upper end."),
    "runs": Column(unit="runs", meaning="Runs behind it."),
    "accuracy": Column(unit="share, 0 to 1", better="higher", meaning="Mean test accuracy of the extractors."),
    "bound": Column(unit="share, 0 to 1", meaning="What the value is to reach, or not to exceed."),
    "is_reached": Column(unit="yes or no", meaning="The value does."),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked of a method.

    Args:
        name: In the table.
        asks: One sentence.
        table: Where the rows are: positions, codes, null.
        rows: What they have in common.
        value: Of a row: a number, or yes or no.
        bound: What the mean is to reach.
        is_ceiling: It is not to exceed the bound instead.
    """

    name: str
    asks: str
    table: str
    rows: Mapping[str, str]
    value: Callable[[Row], float | bool]
    bound: float
    is_ceiling: bool = False


TARGETS = (
    Target(
        name="single_codes", asks="AUROC of a single causal code among live codes", table="codes",
        rows={"world": "single", "truth": "causal"}, value=lambda row: float(row["auroc"]), bound=0.99,
    ),
    Target(
        name="single_positions", asks="AUROC of a single causal code's positions", table="positions",
        rows={"world": "single", "truth": "causal"}, value=lambda row: float(row["auroc"]), bound=0.99,
    ),
    Target(
        name="pair", asks="all codes needed together are among the top three", table="codes",
        rows={"world": "pair", "truth": "causal"}, value=lambda row: row["worst_rank"] <= TOP_THREE, bound=0.9,
    ),
    Target(
        name="shortcut", asks="AUROC of a shortcut's code among live codes", table="codes",
        rows={"world": "shortcut", "truth": "decoy"}, value=lambda row: float(row["auroc"]), bound=0.95,
    ),
    Target(
        name="confounder", asks="a confounder ranks below every causal code", table="codes",
        rows={"world": "confounder", "truth": "causal"}, value=lambda row: bool(row["above_others"]), bound=0.9,
    ),
    Target(
        name="pair_together", asks="the table of interactions says synergy of codes needed together, beyond controls",
        table="pairs", rows={"world": "pair"}, bound=0.9,
        value=lambda row: row["verdict"] == SYNERGY and row["is_strongest"],
    ),
    Target(
        name="exclusive_or", asks="the table of interactions flags codes that undo each other, beyond controls",
        table="pairs", rows={"world": "exclusive_or"}, bound=0.9,
        value=lambda row: row["verdict"] in (EXCLUSIVE, REDUNDANCY) and row["is_strongest"],
    ),
    Target(
        name="null", asks="codes are found although there is no signal", table="null",
        rows={"world": "null"}, value=lambda row: row["found"] > 0, bound=0.05, is_ceiling=True,
    ),
)  # fmt: skip


def tables_of(pieces: Sequence[Rows], settings: WorldsSettings) -> dict[str, Table]:
    """All tables, by name.

    Args:
        pieces: Rows of every piece, in order.
        settings: Whose correlation says which figures are asked for.
    """
    rows: Rows = {
        name: [row for piece in pieces for row in piece[name]]
        for name in ("positions", "codes", "pairs", "null", "skipped")
    }
    columns = {"positions": POSITIONS, "codes": CODES, "pairs": PAIRS, "null": FALSE, "skipped": SKIPPED}
    tables = [Table(f"worlds_{name}", columns[name], rows[name]) for name in columns]
    tables.append(Table("worlds_summary", SUMMARY, list(_summary(rows, settings))))
    return {one.name: one for one in tables}


def _summary(rows: Rows, settings: WorldsSettings) -> Iterator[dict[str, Any]]:
    resampling = Resampling(resamples=settings.interval_resamples, seed=settings.seed)
    for target in TARGETS:
        if target.name == "shortcut" and settings.correlation < SHORTCUT_FROM:
            continue
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in rows[target.table]:
            if all(row[name] == value for name, value in target.rows.items()) and row.get("is_planted", True):
                pool = str(row.get("pool", POOLS.get(target.table)))
                groups.setdefault((row["extractor"], row.get("method", INTERACTIONS), pool), []).append(row)
        for (extractor, method, pool), group in groups.items():
            yield {
                "target": target.name,
                "asks": target.asks,
                "extractor": extractor,
                "method": method,
                "pool": pool,
            } | (_over_runs(target, group, resampling))


def _over_runs(target: Target, group: Sequence[Row], resampling: Resampling) -> dict[str, Any]:
    values = [target.value(row) for row in group]
    low: float | None
    high: float | None
    if isinstance(values[0], bool):
        exact = binomtest(values.count(True), len(values)).proportion_ci(method="exact")
        value, low, high = sum(values) / len(values), float(exact.low), float(exact.high)
    else:
        one = interval(torch.tensor(values, dtype=torch.float64), resampling)
        value, low, high = one.value, one.low, one.high
    return {
        "value": value, "low": low, "high": high, "runs": len(values),
        "accuracy": sum(row["accuracy"] for row in group) / len(group), "bound": target.bound,
        "is_reached": value <= target.bound if target.is_ceiling else value >= target.bound,
    }  # fmt: skip


def summary_rows(summary: Table, pool: str = "counts") -> tuple[list[str], list[list[str]]]:
    """The summary as words: one line per extractor and method, one column per target; codes scored in one way.

    Args:
        summary: The table worlds_summary.
        pool: Of the attribution methods; traversal has its own.
    """
    shown = [row for row in summary.rows if row["pool"] in (pool, "effect", "positions", "tests")]
    targets = list(dict.fromkeys(row["target"] for row in shown))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in shown:
        lines.setdefault((row["extractor"], row["method"]), {})[row["target"]] = _words(row)
    heads = ["extractor", "method", *targets]
    return heads, [[*names, *(found.get(one, "-") for one in targets)] for names, found in lines.items()]


def _words(row: Row) -> str:
    around = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.3f}{around} {'reached' if row['is_reached'] else 'missed'}"
