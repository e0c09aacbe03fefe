"""The comparison page: what it says, draws and lists; the stage around it is tested with the pipeline."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from comparing import CONTROLS, FILLS, METHODS, comparison

from vqcortex.evaluation.comparison import MEAN, NOTE
from vqcortex.report.compare import (
    agreement,
    answer,
    begun,
    deciding_rows,
    drawn,
    drop_charts,
    fill_charts,
    front,
    key_figures,
    metric_table,
    notes,
    ordered,
    render_compare,
    whole,
)
from vqcortex.report.words import plain_name

NASTY = """</script><script>alert("1")</script><img src=x onerror='a()'> & {{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Collects tags and checks that they close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def exhibit():
    return comparison(notes=("Mind the gap.",))


@pytest.fixture(scope="module")
def page(exhibit):
    return render_compare(exhibit, command="vqcortex compare --seed 0 --out STUDY")


def test_the_page_is_whole_needs_nothing_from_outside_and_is_the_same_again(exhibit, page):
    reader = Reader(page)
    assert reader.open == []
    assert not [value for _, attrs in reader.tags for key, value in attrs.items() if key in ("src", "srcset")]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in reader.tags)
    assert render_compare(exhibit, command="vqcortex compare --seed 0 --out STUDY") == page


def test_nothing_that_a_name_holds_becomes_part_of_the_page(exhibit):
    wicked = render_compare(replace(exhibit, model=NASTY), command=NASTY)
    assert "<script>alert" not in wicked
    assert "49 * 7" not in wicked
    assert Reader(wicked).open == []
    assert not [tag for tag, attrs in Reader(wicked).tags if "onerror" in attrs]


def test_the_answer_names_the_default_what_it_reaches_and_the_fast_one(exhibit):
    said = answer(exhibit)
    assert said.startswith(
        "Occlusion of all extractors is the most faithful of 7 methods: without its first 3 and 5 of 49"
    )
    assert "times random's" in said
    assert "instead of 150 forward passes per image" in said


def test_without_a_fast_method_or_with_the_default_itself_the_answer_says_less():
    only = comparison({"ensemble:occlusion": 0.25, "tis": 0.1}, oracle=False)
    assert "instead of" not in answer(only)
    same = comparison({"occlusion": 0.25, "tis": 0.1}, oracle=False)
    assert answer(same).endswith("No cheaper one keeps enough of that.")


def test_the_front_has_every_method_and_the_levels_to_compare_with(exhibit):
    chart = front(exhibit)
    assert len(chart.dots) == len(METHODS)
    assert {tag.text for tag in chart.tags} == {*map(plain_name, METHODS), "random", "oracle"}
    on = {row["method"] for row in exhibit.tables["comparison_cost"].rows if row["pareto"]}
    assert sum(dot.style == 0 for dot in chart.dots) == len(on) > 1


def test_every_fill_has_a_chart_of_all_arms_in_one_order(exhibit):
    charts = fill_charts(exhibit)
    assert [chart.title for chart in charts] == ["Over all fills", *map(begun, FILLS)]
    labels = [[row.label for row in chart.rows] for chart in charts]
    assert all(one == labels[0] for one in labels)
    assert labels[0][0] == "occlusion, all"
    assert len(set(labels[0])) == len(METHODS) + len(CONTROLS) + 1
    notes_ = {row.label: row.note for row in charts[0].rows}
    assert (notes_["random"], notes_["oracle"], notes_["banzhaf"]) == ("control", "asked a judge", "")


def test_lines_are_drawn_for_what_is_recommended_the_published_score_and_two_controls(exhibit):
    arms = drawn(exhibit)
    assert next(iter(arms)) == "ensemble:occlusion"
    assert {"tis", "random", "token_frequency"} <= set(arms)
    assert len(set(arms.values())) == len(arms)
    charts = drop_charts(exhibit)
    assert [len(chart.lines) for chart in charts] == [len(arms)] * 3
    assert all(len(line.dots) == 4 for chart in charts for line in chart.lines)


def test_metrics_stand_beside_each_other_best_arm_first(exhibit):
    table = metric_table(exhibit)
    assert [name for name, _ in table.heads] == ["mean drop", "deletion auc", "infidelity"]
    assert [better for _, better in table.heads] == ["higher", "lower", "lower"]
    rows = dict(table.rows)
    assert next(iter(rows)) == "occlusion of all extractors"
    assert rows["random"][2] == ""
    assert rows["banzhaf"][2] != ""


def test_agreement_is_a_square_with_ones(exhibit):
    matrix = agreement(exhibit)
    assert len(matrix.cells) == len(matrix.names) == 11
    assert all(matrix.cells[i][i] == 1 for i in range(11))
    assert all(matrix.cells[i][j] == matrix.cells[j][i] for i in range(11) for j in range(11))


def test_notes_and_figures_of_the_header(exhibit):
    assert notes(exhibit) == ["Mind the gap."]
    assert {one.name: one.value for one in key_figures(exhibit)}["Images"] == "60 validation"
    assert {row["role"] for row in exhibit.tables["recommendation"].rows} == {"default", "fast", NOTE}


def test_a_table_is_cut_to_what_differs(exhibit):
    cut = whole(exhibit.tables["comparison_pairs"], metric="mean_drop", fill=MEAN)
    assert {"metric", "fill", "n", "unit"}.isdisjoint(cut.columns)
    assert len(cut.rows) == len(exhibit.tables["comparison_pairs"].where(metric="mean_drop", fill=MEAN))


def test_rows_are_ordered_by_their_own_or_by_other_values(exhibit):
    rows = deciding_rows(exhibit, MEAN)
    values = [row["value"] for row in ordered(rows)]
    assert values == sorted(values, reverse=True)
    assert [row["arm"] for row in ordered(rows, list(reversed(rows)))] == [row["arm"] for row in ordered(rows)]
