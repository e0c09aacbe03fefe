from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.evaluation.intervals import Interval, Resampling, interval, paired_difference
from vqcortex.evaluation.tables import METRICS, evidence_table, verdict, verdict_table
from vqcortex.evaluation.values import Condition, Evidence
from vqcortex.results import load_table, save_table

NAMES = ("shoe", "shirt", "bag")


def evidence(level="image", metrics=("probability_drop", "log_odds_drop"), source=None):
    """Eight images, two arms at two counts, two judges; arm "ours" is better by about one."""
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.rand(4, 2, 8, generator=generator) for name in metrics}
    for one in values.values():
        one[:2] += 1
    return Evidence(
        level=level,
        conditions=tuple(
            Condition(arm=arm, masking="positions", fill="black", chosen=n)
            for arm in ("ours", "random")
            for n in (1, 3)
        ),
        judges=("cnn", "patch"),
        image_ids=tuple("hgfedcba"),
        concept=torch.tensor([0, 0, 0, 2, 2, 2, 2, 2]),
        source=source,
        positions=12,
        before=torch.rand(2, 8, generator=generator),
        metrics=values,
        touched=torch.tensor([[1.0], [3.0], [1.0], [3.0]]).expand(4, 8),
    )


def test_a_row_holds_the_mean_its_interval_and_what_it_is():
    found = evidence()
    table = evidence_table(found, NAMES)
    (row,) = table.where(
        concept="bag", arm="random", n=3, judge="patch", metric="log_odds_drop", fill="black", level="image"
    )
    values = found.metrics["log_odds_drop"][3, 1, 3:].flip(0)  # sorted by image id
    expected = interval(values)
    assert (row["value"], row["images"]) == (pytest.approx(values.mean().item()), 5)
    assert (row["low"], row["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (row["share"], row["hidden_share"]) == (3 / 12, 3 / 12)
    assert (row["unit"], row["better"], row["masking"]) == ("nats", "higher", "positions")


def test_everything_is_there_pooled_and_per_concept():
    table = evidence_table(evidence(), NAMES)
    measured = [row for row in table.rows if row["arm"] != "untouched"]
    assert len(measured) == 3 * 2 * 4 * 2  # groups, metrics, conditions, judges
    assert {row["concept"] for row in table.rows} == {"all", "shoe", "bag"}
    assert {row["images"] for row in table.where(concept="all")} == {8}
    pooled = evidence_table(evidence(), NAMES, per_concept=False)
    assert list(pooled.rows) == table.where(concept="all")


def test_untouched_images_have_their_row():
    found = evidence()
    (row,) = evidence_table(found, NAMES).where(arm="untouched", concept="all", judge="cnn")
    assert row["value"] == pytest.approx(found.before[0].mean().item())
    assert (row["n"], row["hidden_share"], row["masking"], row["fill"]) == (0, 0.0, "none", "none")


def test_the_order_of_images_changes_nothing():
    found = evidence()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = replace(
        found,
        image_ids=tuple(found.image_ids[i] for i in order),
        concept=found.concept[order],
        before=found.before[:, order],
        metrics={name: values[:, :, order] for name, values in found.metrics.items()},
        touched=found.touched[:, order],
    )
    assert evidence_table(shuffled, NAMES) == evidence_table(found, NAMES)
    assert verdict_table(shuffled, "ours", NAMES) == verdict_table(found, "ours", NAMES)


def test_pairs_are_the_groups_at_codebook_level():
    found = evidence("codebook", ("target_rise",), torch.tensor([1, 1, 1, 0, 0, 0, 1, 1]))
    groups = {row["concept"] for row in evidence_table(found, NAMES).rows}
    assert groups == {"all", "shirt to shoe", "shoe to bag", "shirt to bag"}


def test_a_concept_of_one_image_has_a_value_and_no_interval():
    found = replace(evidence(), concept=torch.tensor([1, 0, 0, 0, 0, 0, 0, 0]))
    rows = evidence_table(found, NAMES).where(concept="shirt")
    assert all(row["low"] is None and row["high"] is None and row["images"] == 1 for row in rows)
    verdicts = verdict_table(found, "ours", NAMES).where(concept="shirt")
    assert {row["verdict"] for row in verdicts} == {"undecided"}


def test_a_verdict_is_a_paired_difference():
    found = evidence()
    table = verdict_table(found, "ours", NAMES)
    (row,) = table.where(concept="all", n=3, judge="cnn", metric="probability_drop")
    values = found.metrics["probability_drop"].flip(2)
    gap = paired_difference(values[1, 0], values[3, 0])
    assert (row["arm"], row["other"], row["verdict"]) == ("ours", "random", "better")
    assert row["difference"] == pytest.approx(gap.value)
    assert (row["low"], row["high"]) == (pytest.approx(gap.low), pytest.approx(gap.high))
    assert len(table.rows) == 3 * 2 * 2 * 2  # groups, metrics, counts, judges


def test_a_default_that_loses_is_shown_losing():
    table = verdict_table(evidence(), "random", NAMES)
    assert {row["verdict"] for row in table.where(concept="all")} == {"worse"}


def test_areas_stand_beside_a_verdict():
    found = replace(evidence(), touched=torch.tensor([[1.0], [3.0], [6.0], [12.0]]).expand(4, 8))
    (row,) = verdict_table(found, "ours", NAMES).where(concept="all", n=1, judge="cnn", metric="log_odds_drop")
    assert (row["hidden_share"], row["other_hidden_share"]) == (pytest.approx(1 / 12), 0.5)


def test_a_default_that_was_not_measured_is_named():
    with pytest.raises(ConfigError, match="the default arm 'tis' was not measured; measured: ours, random"):
        verdict_table(evidence(), "tis", NAMES)


def test_a_concept_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="concept 2 has no name; 2 are named"):
        evidence_table(evidence(), NAMES[:2])


@pytest.mark.parametrize(
    ("low", "high", "better", "word"),
    [
        (0.1, 0.2, "higher", "better"),
        (-0.2, -0.1, "higher", "worse"),
        (0.1, 0.2, "lower", "worse"),
        (-0.2, -0.1, "lower", "better"),
        (-0.1, 0.1, "higher", "undecided"),
        (0.0, 0.0, "higher", "undecided"),
        (0.1, 0.2, "neither", "undecided"),
        (None, None, "higher", "undecided"),
    ],
)
def test_the_word_follows_the_interval_and_the_direction(low, high, better, word):
    assert verdict(Interval(value=0.0, low=low, high=high, images=2), better) == word


def test_tables_survive_the_disk(tmp_path):
    for table in (evidence_table(evidence(), NAMES), verdict_table(evidence(), "ours", NAMES)):
        _, text = save_table(table, tmp_path)
        again = load_table(text)
        assert list(again.rows) == [dict(row) for row in table.rows]
        assert again.columns == dict(table.columns)


def test_every_metric_says_its_unit_and_direction():
    for column in METRICS.values():
        assert column.unit
        assert column.meaning.endswith(".")
    assert {column.better for column in METRICS.values()} == {"higher", "lower", "neither"}


def test_the_resampling_is_passed_on():
    wide = evidence_table(evidence(), NAMES, resampling=Resampling(level=0.99)).rows[-1]
    narrow = evidence_table(evidence(), NAMES, resampling=Resampling(level=0.5)).rows[-1]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
