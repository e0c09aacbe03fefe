from __future__ import annotations

import pytest

from vqcortex.exhibit import Exhibit
from vqcortex.report import evidence
from vqcortex.report.evidence import (
    Level,
    answer,
    beliefs,
    build_level,
    concept_charts,
    fooled,
    headline,
    headline_charts,
    losses,
    probabilities,
)
from vqcortex.results import Column, Table


@pytest.fixture(scope="module")
def tables(exhibit: Exhibit):
    return exhibit.tables


@pytest.fixture(scope="module")
def names(exhibit: Exhibit):
    return [one.name for one in exhibit.concepts]


@pytest.fixture(scope="module")
def image(tables, names) -> Level:
    level = build_level(tables, "image", names)
    assert level is not None
    return level


@pytest.fixture(scope="module")
def pooled(tables) -> dict[str, Table]:
    """All images only: as much as most tests need."""
    return {
        key: Table(key, table.columns, [row for row in table.rows if row["concept"] == "all"])
        for key, table in tables.items()
        if "concept" in table.columns
    }


def changed(table: Table, **values: object) -> Table:
    return Table(table.name, table.columns, [{**row, **values} for row in table.rows])


def test_every_choice_of_concept_judge_and_metric_has_a_variant(image: Level, names):
    assert [one.name for one in image.choosers] == ["concept", "judge", "metric"]
    assert image.choosers[0].options == ("all images", *names)
    assert len(image.variants) == 5 * 2 * 2
    assert [one.key for one in image.variants if one.is_first] == ["0-0-0"]


def test_every_arm_has_a_curve_with_a_band_in_every_fill(image: Level):
    assert len(image.legend) == 6
    for variant in image.variants:
        assert [chart.title for chart in variant.lines] == [
            "black pixels",
            "mid-grey pixels",
            "mean code",
            "resampled codes",
        ]
        assert all(len(chart.lines) == 6 and all(line.band for line in chart.lines) for chart in variant.lines)


def test_the_fills_of_a_variant_share_their_axis(image: Level):
    assert all(len({(chart.y.low, chart.y.high) for chart in one.lines}) == 1 for one in image.variants)


def test_the_default_comes_first_everywhere(image: Level):
    assert image.legend[0] == (0, "noisy gradient × embedding")
    assert all(chart.lines[-1].style == 0 for one in image.variants for chart in one.lines)


def test_a_curve_stands_where_its_table_says(image: Level, tables):
    chart = image.variants[0].lines[0]
    (row,) = tables["image_level"].where(
        concept="all", judge="cnn", metric="probability_drop", fill="black", arm="tis", n=5
    )
    (line,) = [one for one in chart.lines if one.name == "TIS (published)"]
    assert (line.dots[2].x, line.dots[2].y) == (chart.x.at(5), chart.y.at(row["value"]))


def test_every_verdict_of_a_variant_is_shown_once(image: Level, tables):
    grid = image.variants[0].verdicts
    assert grid is not None
    shown = sorted(mark.word for _, cells in grid.rows for marks in cells for mark in marks)
    wanted = tables["verdicts"].where(level="image", concept="all", judge="cnn", metric="probability_drop")
    assert shown == sorted(row["verdict"] for row in wanted)


def test_the_area_hidden_is_said_at_concept_level(pooled, names):
    level = build_level(pooled, "concept", names)
    assert level is not None
    notes = {row.note for chart in level.variants[0].rows for row in chart.rows}
    assert notes == {"hides 18 %"}


def test_codebook_charts_say_unit_and_direction(pooled, names):
    level = build_level(pooled, "codebook", names)
    assert level is not None
    abouts = {chart.title: chart.about for chart in level.variants[0].rows}
    assert "Unit: probability, −1 to 1; higher is better." in abouts["target rise"]
    assert "Unit: tokens; lower is better." in abouts["changed tokens"]


def test_many_concepts_are_drawn_up_to_a_number_and_the_rest_is_counted(tables, names, monkeypatch):
    monkeypatch.setattr(evidence, "GROUPS", 1)
    level = build_level(tables, "image", names)
    assert level is not None
    assert level.choosers[0].options == ("all images", names[0])
    assert level.left_out == 3


@pytest.mark.parametrize("name", ["image", "concept", "codebook"])
def test_a_level_that_was_not_measured_is_none(name: str, tables, names):
    assert build_level({}, name, names) is None
    empty = Table(f"{name}_level", tables["image_level"].columns, [])
    assert build_level({f"{name}_level": empty}, name, names) is None


def test_without_verdicts_the_default_is_the_arm_that_is_no_control(pooled, names):
    level = build_level({"image_level": pooled["image_level"]}, "image", names)
    assert level is not None
    assert level.legend[0] == (0, "noisy gradient × embedding")
    assert level.variants[0].verdicts is None


def test_intervals_that_are_not_there_leave_no_band(pooled, names):
    level = build_level({"image_level": changed(pooled["image_level"], low=None, high=None)}, "image", names)
    assert level is not None
    assert not any(line.band for chart in level.variants[0].lines for line in chart.lines)


def test_the_headline_takes_a_tenth_of_the_positions_and_the_mean_code(pooled):
    found = headline(pooled)
    assert found is not None
    assert (found.n, found.positions, found.fill) == (5, 49, "mean_code")
    assert [judge for judge, _ in found.rows] == ["cnn", "patch"]
    assert all(set(by_arm) == {found.arm, "tis", "random"} for _, by_arm in found.rows)
    assert len(headline_charts(found)) == 2


def test_the_answer_says_what_the_verdicts_say(pooled):
    words = {word: answer({**pooled, "verdicts": changed(pooled["verdicts"], verdict=word)}, 10) for word in
             ("better", "worse", "undecided")}  # fmt: skip
    assert "more than TIS (published)" in words["better"]
    assert "less than random" in words["worse"]
    assert "not clearly different from random" in words["undecided"]


def test_judges_that_differ_are_not_hidden_by_the_answer(pooled):
    rows = [{**row, "verdict": "better" if row["judge"] == "cnn" else "worse"} for row in pooled["verdicts"].rows]
    said = answer({**pooled, "verdicts": Table("verdicts", pooled["verdicts"].columns, rows)}, 10)
    assert "for one judge but not for another" in said


def test_without_evidence_the_answer_claims_nothing():
    assert answer({}, 10) == "The tokens behind 10 concepts, as the extractor sees them; no judge has checked them yet."


def test_every_loss_over_all_images_is_told(tables):
    lost = [row for row in tables["verdicts"].where(concept="all") if row["verdict"] == "worse"]
    places = {(row["level"], row["masking"], row["fill"], row["other"]) for row in lost}
    said = losses(tables)
    assert lost
    assert len(said) == len(places) + 1
    assert any("black pixels: noisy gradient × embedding lost to brightest patches" in one for one in said)
    assert said[-1].startswith("Within single concepts: ")


def test_a_study_without_verdicts_tells_no_loss():
    assert losses({}) == []


def test_each_concept_has_its_own_curves(tables, names):
    charts = concept_charts(tables)
    assert set(charts) == {"all", *names}
    assert concept_charts({}) == {}


def test_the_judges_word_on_a_search_is_found_by_pair_and_strategy(tables):
    said = probabilities(tables)
    assert [judge for judge, _ in said["Pullover to Dress", "token_selection"]] == ["cnn", "patch"]
    assert ("Pullover to Dress", "untouched") in said
    assert probabilities({}) == {}


def test_searches_from_scratch_are_averaged_over_restarts_per_judge():
    column = Column(unit="any", meaning="Any.")
    rows = [
        {"concept": "Bag", "strategy": "greedy", "judge": judge, "probability": value}
        for judge, value in (("cnn", 0.2), ("patch", 0.9), ("cnn", 0.4))
    ]
    table = Table("scratch", dict.fromkeys(("concept", "strategy", "judge", "probability"), column), rows)
    assert probabilities({"scratch": table}) == {("Bag", "from_scratch:greedy"): [("cnn", "0.30"), ("patch", "0.90")]}


def believed(strategy: str, target: str, index: float, low: float | None) -> dict[str, object]:
    numbers = {"searched_probability": 0.9, "judges_probability": 0.9 - index, "adversarial_index": index}
    names = {"scope": "region", "strategy": strategy, "target": target}
    return {**names, **numbers, "adversarial_low": low, "adversarial_high": index + 0.1}


def test_searches_that_fool_the_extractor_are_told_the_worst_first():
    rows = [
        believed("greedy", "all", 0.2, 0.1),
        believed("token_selection", "all", 0.8, 0.7),
        believed("token_selection", "Bag", 0.9, 0.8),
        believed("random_codes", "all", 0.01, -0.02),
        believed("beam", "all", 0.5, None),
    ]
    table = Table("search_beliefs", dict.fromkeys(rows[0], Column(unit="any", meaning="Any.")), rows)
    shown = beliefs({"search_beliefs": table})
    assert shown is not None
    assert [row["strategy"] for row in shown.rows] == ["greedy", "token_selection", "random_codes", "beam"]
    assert "target" not in shown.columns
    worst, other = fooled({"search_beliefs": table})
    assert worst.startswith("token selection, region: the extractor gives the target 90 %, the judges 10 %; ")
    assert worst.endswith("adversarial index 0.80 [0.70, 0.90].")
    assert other.startswith("greedy, region: ")


def test_without_beliefs_nobody_is_called_fooled():
    assert beliefs({}) is None
    assert fooled({}) == []
