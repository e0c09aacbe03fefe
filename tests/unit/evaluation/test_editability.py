from __future__ import annotations

import pytest
import torch

from vqcortex.errors import DataError
from vqcortex.evaluation.editability import (
    ARMS,
    COLUMNS,
    OURS,
    RANDOM,
    Trials,
    editability_reasons,
    editability_table,
)
from vqcortex.evaluation.trust import amended
from vqcortex.results import Table, Trust


def trials(ours, random, concept=0, kind="remove", tokens=5, images=40):
    """Two judges; the first so many images are won."""

    def won(count):
        return (torch.arange(images) < count).expand(2, -1)

    return Trials(
        concept=concept, kind=kind, tokens=tokens, judges=("a", "b"),
        success={OURS: won(ours), "token_frequency": won(random), RANDOM: won(random)},
        cells=dict.fromkeys(ARMS, 3.0),
    )  # fmt: skip


def reasons(*some):
    return {one.concept: one for one in editability_reasons(editability_table(some, ["x", "y"]), ["x", "y"])}


def test_shares_have_wilson_intervals_and_differences_a_test():
    rows = editability_table([trials(30, 10)], ["x"]).where(concept="x", arm=OURS, judge="a")
    assert rows[0]["success"] == 0.75
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((0.5981, 0.8581), abs=1e-3)
    assert (rows[0]["beyond"], rows[0]["p"], rows[0]["changed_tokens"]) == (0, None, 3)
    random = editability_table([trials(30, 10)], ["x"]).where(concept="x", arm=RANDOM, judge="b")[0]
    assert random["beyond"] == 0.5
    assert random["p"] < 0.001


def test_all_concepts_together_weigh_images_and_not_concepts():
    table = editability_table([trials(40, 0), trials(0, 0, concept=1, images=10)], ["x", "y"])
    row = table.where(concept="all", arm=OURS, judge="a")[0]
    assert (row["images"], row["success"]) == (50, 0.8)


def test_without_images_there_is_a_row_without_figures():
    rows = editability_table([trials(0, 0, images=0)], ["x"]).rows
    assert {row["images"] for row in rows} == {0}
    assert {row["success"] for row in rows} == {None}


def test_tokens_that_beat_random_codes_speak_for_the_explanation():
    found = reasons(trials(30, 5), trials(5, 5, kind="insert"), trials(3, 30, concept=1))
    assert found["x"].standing == "fine"
    assert "beats as many random codes" in found["x"].text
    assert "taking them out on 75.0 % (random codes 12.5 %)" in found["x"].text
    assert found["y"].standing == "bad"


def test_tokens_that_do_no_better_raise_doubt_and_few_images_say_nothing():
    found = reasons(trials(12, 10), trials(5, 0, concept=1, images=5))
    assert found["x"].standing == "doubtful"
    assert "never surely beats" in found["x"].text
    assert found["y"].standing == "not known"
    assert "5 test images are too few" in found["y"].text


def test_only_the_largest_size_counts():
    assert reasons(trials(30, 0, tokens=1), trials(10, 10, tokens=9))["x"].standing == "doubtful"


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="table of editability is empty"):
        editability_reasons(Table("editability", COLUMNS, []), ["x"])


@pytest.mark.parametrize(
    ("before", "won", "after"),
    [
        ("high", (30, 5), "high"), ("high", (10, 10), "moderate"), ("high", (2, 30), "low"),
        ("moderate", (30, 5), "moderate"), ("low", (30, 5), "low"), ("unknown", (2, 30), "unknown"),
    ],
)  # fmt: skip
def test_edits_can_lower_trust_and_never_raise_it(before, won, after):
    trust = Trust(level=before, reasons=("fine: it is right",), concepts={"x": Trust(level=before)})
    found = amended(trust, editability_reasons(editability_table([trials(*won)], ["x"]), ["x"]))
    assert found.level == found.of("x").level == after
    assert len(found.reasons) == 2
    assert len(found.concepts["x"].reasons) == 1
    assert found.reasons == tuple(sorted(found.reasons, key=lambda one: "bdnf".index(one[0])))
