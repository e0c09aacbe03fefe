from dataclasses import replace

from vqcortex.report.page import render_page
from vqcortex.report.trust import MEANINGS, cascade_chart, check_rows, trust_view
from vqcortex.results import Column, Table, Trust

WORD = Column(unit="name", meaning="x")
LOW = Trust(
    level="low",
    reasons=("bad: the <b>maps</b> keep their order: 0.50", "not known: no judge", "fine: calibration 0.02"),
    concepts={"T-shirt/top": Trust(level="low", reasons=("bad: found on 20 %",)), "Dress": Trust(level="high")},
)


def sanity_table(*rows) -> Table:
    names = ("check", "verdict", "measures", "value", "low", "high", "limit", "images", "reason")
    return Table("sanity", dict.fromkeys(names, WORD), [dict(zip(names, row, strict=True)) for row in rows])


def curve_table(*rows) -> Table:
    names = ("kind", "step", "layers", "signed", "low", "high", "magnitude", "images", "flat")
    return Table("sanity_cascade", dict.fromkeys(names, WORD), [dict(zip(names, row, strict=True)) for row in rows])


CHECKS = sanity_table(
    ("renumbered_codes", "pass", "share", 0.0, None, None, 0.0, 32, ""),
    ("permuted_labels", "skipped", "rho", None, None, None, 0.2, 32, "none was trained"),
    ("randomised_weights", "fail", "rho", 0.5, 0.4, 0.6, 0.2, 32, "0.50 is above 0.2"),
)
CURVE = curve_table(
    ("cascading", 1, ["head"], 0.9, 0.8, 1.0, 0.9, 32, 0),
    ("cascading", 2, ["stem"], None, None, None, None, 32, 32),
    ("independent", 1, ["head"], 0.9, 0.8, 1.0, 0.9, 32, 0),
    ("independent", 2, ["stem"], 0.1, 0.0, 0.2, 0.1, 32, 0),
)


def test_reasons_are_parted_by_what_they_say():
    view = trust_view(LOW)
    assert [(one.standing, one.text) for one in view.against] == [
        ("bad", "the <b>maps</b> keep their order: 0.50"), ("not known", "no judge"),
    ]  # fmt: skip
    assert [one.text for one in view.fine] == ["calibration 0.02"]
    assert view.low == ("T-shirt/top",)
    assert {trust_view(Trust(level=level)).meaning for level in MEANINGS} == set(MEANINGS.values())


def test_failed_checks_come_first_with_their_numbers():
    rows = check_rows({"sanity": CHECKS})
    assert [(one.name, one.mark, one.number, one.limit) for one in rows] == [
        ("randomised weights", "▼", "0.50 [0.40, 0.60]", "0.20"), ("renumbered codes", "▲", "0", "0"),
        ("permuted labels", "○", "–", "0.20"),
    ]  # fmt: skip
    assert check_rows({}) == []


def test_the_curve_leaves_out_what_is_not_defined():
    chart = cascade_chart({"sanity_cascade": CURVE})
    assert {line.name: len(line.dots) for line in chart.lines} == {
        "these layers and all above": 1, "these layers alone": 2,
    }  # fmt: skip
    assert cascade_chart({}) is None
    assert cascade_chart({"sanity_cascade": curve_table()}) is None


def test_the_page_wears_a_banner_reasons_checks_and_a_badge_per_concept(exhibit):
    tables = {**exhibit.tables, "sanity": CHECKS, "sanity_cascade": CURVE}
    page = render_page(replace(exhibit, trust=LOW, tables=tables))
    assert page.index('<div class="banner low"') < page.index('id="trust"')
    assert "Concepts of low trust: T-shirt/top." in page
    assert "the &lt;b&gt;maps&lt;/b&gt; keep their order: 0.50" in page
    assert '<h3>T-shirt/top <span class="badge low">trust: low</span></h3>' in page
    assert '<h3>Dress <span class="badge high">trust: high</span></h3>' in page
    assert '<small class="badge low">low trust</small>' in page
    assert "0.50 is above 0.2" in page
    assert "Rank correlation with the original maps" in page


def test_a_page_without_trust_says_that_it_is_unknown(exhibit):
    page = render_page(exhibit)
    assert '<div class="banner unknown"' in page
    assert "this study holds no sanity checks" in page
    assert '<h3>Dress <span class="badge unknown">trust: unknown</span></h3>' in page
