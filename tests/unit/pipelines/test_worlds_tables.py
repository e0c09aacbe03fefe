"""What is asked of a method, from rows that are known."""

import pytest

from vqcortex.pipelines.settings import WorldsSettings
from vqcortex.pipelines.worlds_tables import CODES, FALSE, PAIRS, POSITIONS, summary_rows, tables_of

BASIC = {"run": 0, "extractor": "conv8", "accuracy": 0.9, "method": "m"}


def filled(columns, **given):
    return {name: None for name in columns} | BASIC | given


def paired(world, verdict, planted=True):
    row = filled(PAIRS, world=world, verdict=verdict, is_planted=planted, is_strongest=True)
    return {name: value for name, value in row.items() if name in PAIRS}


def piece(worst=1, above=True, found=0, auroc=0.995):
    codes = [
        filled(CODES, world="single", truth="causal", pool="mean", auroc=auroc),
        filled(CODES, world="pair", truth="causal", pool="mean", worst_rank=worst),
        filled(CODES, world="confounder", truth="causal", pool="mean", above_others=above),
        filled(CODES, world="shortcut", truth="causal", pool="mean", auroc=0.1),
        filled(CODES, world="shortcut", truth="decoy", pool="mean", auroc=0.96),
    ]
    positions = [filled(POSITIONS, world="single", truth="causal", auroc=0.9)]
    return {
        "codes": codes, "positions": positions, "null": [filled(FALSE, world="null", found=found)], "skipped": [],
        "pairs": [
            paired("pair", "synergy"), paired("exclusive_or", "redundancy"), paired("pair", "none", planted=False),
        ],
    }  # fmt: skip


def test_every_target_has_its_value_its_interval_and_its_verdict():
    pieces = [piece(), piece(worst=4, above=False, found=2, auroc=0.985)]
    table = tables_of(pieces, WorldsSettings())["worlds_summary"]
    rows = {row["target"]: row for row in table.rows}
    assert {name: row["value"] for name, row in rows.items()} == pytest.approx(
        {
            "single_codes": 0.99, "single_positions": 0.9, "pair": 0.5, "shortcut": 0.96, "confounder": 0.5,
            "pair_together": 1, "exclusive_or": 1, "null": 0.5,
        }
    )  # fmt: skip
    reached = {name for name, row in rows.items() if row["is_reached"]}
    assert reached == {"single_codes", "shortcut", "pair_together", "exclusive_or"}
    assert rows["pair"]["low"] == pytest.approx(0.0126, abs=1e-4)  # exact interval of 1 of 2
    assert rows["single_codes"]["low"] == pytest.approx(0.985)
    assert all(row["runs"] == 2 for row in rows.values())


def test_a_null_world_without_discoveries_is_reached():
    rows = tables_of([piece()] * 3, WorldsSettings())["worlds_summary"].where(target="null")
    assert [(row["value"], row["is_reached"]) for row in rows] == [(0, True)]
    assert rows[0]["high"] > 0.5  # three runs say little


def test_a_weak_shortcut_is_not_asked_for():
    table = tables_of([piece()] * 2, WorldsSettings(correlation=0.7))["worlds_summary"]
    assert not table.where(target="shortcut")


def test_the_summary_as_words_has_one_line_per_method():
    heads, lines = summary_rows(tables_of([piece()] * 2, WorldsSettings())["worlds_summary"], "mean")
    assert heads[:3] == ["extractor", "method", "single_codes"]
    assert [line[1] for line in lines] == ["m", "interactions"]
    assert lines[0][2].startswith("0.995 [")
    assert lines[0][2].endswith("] reached")
    assert lines[0][3].endswith("missed")
