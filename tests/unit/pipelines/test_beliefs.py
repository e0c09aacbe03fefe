from __future__ import annotations

import math

from vqcortex.pipelines.search import load_found


def test_every_search_of_a_study_is_believed_or_not_by_all_who_took_no_part(toy_study):
    table = toy_study.table("search_beliefs")
    rows = table.where(target="all")
    places = {(row["scope"], row["strategy"]) for row in rows}
    found = load_found(toy_study)
    regions = {("region", name) for name in ("untouched", *found.tokens)}
    assert places == regions | {("whole grid", name) for name in ("token_selection", "greedy")}
    for row in rows:
        index = row["searched_probability"] - row["judges_probability"]
        assert math.isclose(row["adversarial_index"], index, abs_tol=1e-6)
        assert row["log_likelihood"] < 0
        assert 0 <= row["held_out_probability"] <= 1
    untouched = next(row for row in rows if row["strategy"] == "untouched")
    assert untouched["changed_tokens"] == 0
    assert {row["images"] for row in rows if row["scope"] == "region"} == {len(found.image_ids)}
    roles = {row["witness"]: row["role"] for row in toy_study.table("search_witnesses").rows}
    assert roles == {"conv8": "searched", "pictures": "held out", "soft": "judge", "hard": "judge"}


def test_the_page_tells_it_unasked(toy_study):
    page = (toy_study.path("report") / "report.html").read_text()
    assert "Meaning, or a pattern that fools the extractor?" in page
    assert "adversarial index" in page
