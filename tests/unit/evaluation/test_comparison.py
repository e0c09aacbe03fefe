"""From figures per image to tables and a recommendation, on numbers that were made up to have a known answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcortex.errors import ConfigError, DataError
from vqcortex.evaluation.comparison import (
    DECISIVE,
    DROP,
    MEAN,
    NONE,
    NOTE,
    Cost,
    Figures,
    Measure,
    agreement_table,
    best_of,
    check_methods,
    comparison_rows,
    comparison_table,
    cost_table,
    drop_figures,
    join_figures,
    pairs_table,
    recommendation_table,
    stability_table,
)
from vqcortex.evaluation.curves import Curves
from vqcortex.evaluation.intervals import Resampling, interval
from vqcortex.significance import holm, sign_flip_p

LEVEL = {"best": 0.30, "near": 0.28, "tis": 0.15, "random": 0.10, "centre": 0.05}
METHODS, CONTROLS = ("best", "near", "tis"), ("random", "centre")
FEW = Resampling(resamples=200, seed=3)
DECIDES, SINGLE = Measure(DECISIVE, None, "probability, -1 to 1", "higher"), Measure(DROP, 3, "probability", "higher")
COSTS = {
    "best": Cost(extractors=3, forward=150, backward=0),
    "near": Cost(extractors=1, forward=1, backward=1),
    "tis": Cost(extractors=1, forward=20, backward=20),
}


def figures(images: int = 40, spread: float = 0.1, levels=None) -> Figures:
    """Arms at known levels, with a noise per image that all arms share and one of their own."""
    levels = levels or LEVEL
    random = torch.Generator().manual_seed(1)
    shared = torch.randn(1, 2, 2, images, generator=random) * spread
    own = torch.randn(len(levels), 2, 2, images, generator=random) * spread / 10
    values = torch.tensor(list(levels.values()))[:, None, None, None] + shared + own
    names = tuple(f"image-{number:02d}" for number in range(images))
    return Figures(
        arms=tuple(levels), fills=("grey", "mean_code"), judges=("cnn", "patch"), image_ids=names,
        values={DECIDES: values, SINGLE: values / 2},
    )  # fmt: skip


def oracles(of: Figures, images: int = 20) -> Figures:
    """An oracle per judge, scored by the other, and their mean."""
    values = torch.full((3, 2, 2, images), 0.2)
    values[1, :, 0] = values[2, :, 1] = torch.nan
    return Figures(
        arms=("oracle", "oracle:cnn", "oracle:patch"), fills=of.fills, judges=of.judges,
        image_ids=of.image_ids[:images], values={DECIDES: values},
    )  # fmt: skip


def recommended(of: Figures, keep: float = 0.85, costs=None, notes=()):
    made = cost_table(of, costs or COSTS, FEW)
    others = dict.fromkeys((*CONTROLS, "tis", best_of(made)["method"]))
    pairs = pairs_table(of, list(costs or COSTS), list(others), None, FEW)
    return recommendation_table(made, pairs, CONTROLS, keep, notes)


def test_every_arm_measure_fill_and_judge_has_a_row_and_so_have_the_means():
    one = figures()
    table = comparison_table(comparison_rows(one, dict.fromkeys(one.arms, 0.25), FEW))
    assert len(table.rows) == 2 * 5 * 3 * 3
    (row,) = table.where(arm="tis", metric=DROP, n=3, fill="mean_code", judge="patch")
    expected = interval(one.values[SINGLE][2, 1, 1], FEW)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert (row["images"], row["better"], row["constant_share"]) == (40, "higher", 0.25)
    (mean,) = table.where(arm="tis", metric=DECISIVE, fill=MEAN, judge=MEAN)
    assert mean["value"] == pytest.approx(one.values[DECIDES][2].mean().item(), abs=1e-6)


def test_the_mean_over_judges_leaves_out_the_one_that_was_asked():
    table = comparison_table(
        comparison_rows(oracles(figures()), dict.fromkeys(("oracle", "oracle:cnn", "oracle:patch"), 0.0), FEW)
    )
    assert table.where(arm="oracle:cnn", judge="cnn") == []
    assert {row["judge"] for row in table.where(arm="oracle:cnn")} == {"patch", MEAN}
    assert {round(row["value"], 6) for row in table.rows} == {0.2}


def test_what_no_fill_and_no_judge_enters_has_one_row_per_arm():
    alone = Figures(
        arms=("a", "b"), fills=(NONE,), judges=(NONE,), image_ids=("x", "y"),
        values={Measure("infidelity", None, "u", "lower"): torch.rand(2, 1, 1, 2)},
    )  # fmt: skip
    assert [(row["arm"], row["fill"]) for row in comparison_rows(alone, {"a": 0.0, "b": 0.0}, FEW)] == [
        ("a", NONE), ("b", NONE),
    ]  # fmt: skip


def test_pairs_are_tested_on_the_same_images_and_corrected_together():
    one = figures()
    table = pairs_table(one, METHODS, ("random", "tis", "best"), None, FEW)
    assert len(table.rows) == (3 * 3 - 2) * (3 + 1)  # every fill and the mean of what decides, the mean of the single n
    family = table.where(metric=DECISIVE, fill=MEAN)
    gaps = torch.stack([one.of(DECIDES, row["method"]) - one.of(DECIDES, row["other"]) for row in family]).double()
    p = sign_flip_p(gaps, seed=3).tolist()
    assert [row["p"] for row in family] == p
    assert [row["p_holm"] for row in family] == holm(p)
    words = {(row["method"], row["other"]): row["verdict"] for row in family}
    assert words["best", "random"] == words["near", "tis"] == "better"
    assert words["tis", "best"] == "worse"
    (row,) = table.where(method="best", other="random", metric=DECISIVE, fill=MEAN)
    assert row["difference"] == pytest.approx(0.2, abs=0.02)
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]


def test_arms_that_do_not_differ_are_undecided():
    same = figures(levels={"best": 0.2, "near": 0.2})
    table = pairs_table(same, ("best", "near"), ("best",), None, FEW)
    assert {row["verdict"] for row in table.rows} == {"undecided"}


def test_a_ratio_to_something_that_may_be_nothing_is_left_out():
    table = pairs_table(figures(levels={"best": 0.3, "random": 0.0}), ("best",), ("random",), None, FEW)
    assert {row["ratio"] for row in table.rows} == {None}
    assert {row["verdict"] for row in table.rows} == {"better"}


def test_an_oracle_is_compared_over_its_own_images_and_the_judges_it_did_not_ask():
    one = figures()
    table = pairs_table(one, ("best",), ("random",), oracles(one), FEW)
    (row,) = table.where(other="oracle:cnn", fill="grey")
    assert row["images"] == 20
    assert row["difference"] == pytest.approx(one.values[DECIDES][0, 0, 1, :20].mean().item() - 0.2, abs=1e-6)
    (both,) = table.where(other="oracle", fill="grey")
    assert both["difference"] == pytest.approx(one.values[DECIDES][0, 0, :, :20].mean().item() - 0.2, abs=1e-6)


def test_the_front_holds_what_nothing_cheaper_reaches():
    rows = {row["method"]: row for row in cost_table(figures(), COSTS, FEW).rows}
    assert {name: row["pareto"] for name, row in rows.items()} == {"best": True, "near": True, "tis": False}
    assert {name: row["compute"] for name, row in rows.items()} == {"best": 150, "near": 3, "tis": 60}


def test_two_methods_that_are_alike_in_both_are_both_on_the_front():
    same = figures(levels={"best": 0.2, "near": 0.2}, spread=0.0)
    cost = Cost(extractors=1, forward=1, backward=0)
    assert [row["pareto"] for row in cost_table(same, {"best": cost, "near": cost}, FEW).rows] == [True, True]


def test_the_best_is_the_default_and_the_cheapest_that_keeps_enough_is_the_fast_one():
    rows = {row["role"]: row for row in recommended(figures()).rows}
    assert (rows["default"]["method"], rows["fast"]["method"]) == ("best", "near")
    assert rows["fast"]["kept"] == pytest.approx(0.28 / 0.30, abs=0.02)
    assert "clearly better than every other method" in rows["default"]["reason"]
    assert "3.0 times that of random" in rows["default"]["reason"]
    assert "1 forward and 1 backward passes per image; the default takes 150 forward passes" in rows["fast"]["reason"]
    assert NOTE not in rows


def test_nothing_is_called_fast_that_does_not_keep_enough():
    rows = recommended(figures(), keep=0.99).rows
    assert [row["role"] for row in rows] == ["default", NOTE]
    assert "No method of one extractor keeps 99 % of the default's mean drop." in rows[1]["reason"]


def test_a_default_that_is_itself_the_cheapest_says_so():
    costs = {"best": Cost(extractors=1, forward=1, backward=0)}
    rows = {row["role"]: row for row in recommended(figures(), costs=costs).rows}
    assert "the default itself" in rows["fast"]["reason"]
    assert "the only method compared" in rows["default"]["reason"]


def test_a_default_that_does_not_beat_a_control_is_told():
    rows = recommended(figures(levels={**LEVEL, "centre": 0.31}), notes=("One more thing.",)).rows
    notes = [row["reason"] for row in rows if row["role"] == NOTE]
    assert "not clearly above the control centre with: grey, mean_code, all fills together" in notes[0]
    assert notes[1:] == ["One more thing."]


def test_agreement_and_stability_leave_out_images_that_are_not_ranked():
    values = torch.tensor([0.5, torch.nan, 0.7])
    (row,) = agreement_table({("a", "b"): values}, FEW).rows
    assert (row["value"], row["images"]) == (pytest.approx(0.6), 2)
    nothing, one = stability_table({("a", "seeds"): values * torch.nan, ("a", "extractors"): values}, FEW).rows
    assert (nothing["value"], nothing["low"], nothing["images"]) == (None, None, 0)
    assert one["over"] == "extractors"


def test_joined_figures_are_sorted_and_do_not_depend_on_the_pieces():
    one = figures(images=6)
    names = one.image_ids
    pieces = [one.take(names[3:]), one.take(names[:3])]
    whole = join_figures(pieces)
    assert whole.image_ids == names
    assert all(torch.equal(whole.values[key], one.values[key]) for key in one.values)
    with pytest.raises(DataError, match="there are no images to measure"):
        join_figures([])


def test_the_drop_is_read_off_per_n_and_over_those_that_decide():
    curves = Curves(
        arms=("a",), fills=("grey",), counts=(1, 3), judges=("cnn",), image_ids=("x",), positions=4,
        before=torch.tensor([[0.9]]), removed=torch.tensor([0.5, 0.1]).reshape(1, 1, 2, 1, 1), kept=None,
        empty=torch.zeros(1, 1, 1),
    )  # fmt: skip
    found = {(key.metric, key.n): value.item() for key, value in drop_figures(curves, (1,)).items()}
    assert found == pytest.approx({(DECISIVE, None): 0.4, (DROP, 1): 0.4, (DROP, 3): 0.8}, abs=1e-6)
    (mean, *_) = drop_figures(curves, (1, 3)).values()
    assert mean.item() == pytest.approx(0.6, abs=1e-6)


def test_a_measure_is_found_by_name_and_n():
    one = figures()
    assert one.measure(DROP, 3) is SINGLE
    assert one.measure(DECISIVE) is DECIDES


def test_names_of_controls_and_names_given_twice_are_refused():
    with pytest.raises(ConfigError, match="'random' is a control, which is always compared"):
        check_methods(("tis", "random"), CONTROLS)
    with pytest.raises(ConfigError, match="method 'tis' is given twice"):
        check_methods(("tis", "tis"), CONTROLS)


def test_a_recommendation_needs_a_method():
    empty = replace(cost_table(figures(), COSTS, FEW), rows=[])
    with pytest.raises(ConfigError, match="no method to measure"):
        recommendation_table(empty, pairs_table(figures(), METHODS, ("random",), None, FEW), CONTROLS, 0.85)
