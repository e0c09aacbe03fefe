from __future__ import annotations

import pytest

from vqcortex.report.together import group_sentence, pair_matrices
from vqcortex.results import Column, Table

ANY = Column(unit="any", meaning="Whatever.")
PAIR = {
    "concept": "cat", "code_a": 3, "code_b": 7, "form": "removal", "images": 16, "synergy": 1.5, "low": 1.0,
    "high": 2.0, "p": 1e-4, "q": 0.001, "verdict": "synergy", "effect_a": 0.25, "effect_b": -0.5, "joint": 1.25,
}  # fmt: skip
GROUP = {
    "concept": "cat", "images": 12, "joint": 3.0, "excess": -0.5, "excess_low": -0.75, "excess_high": -0.25,
    "control_joint": 0.5, "verdict": "redundancy",
}  # fmt: skip


def tables(*rows, groups=()):
    made = {"interactions": rows, "interaction_groups": groups}
    return {name: Table(name, {key: ANY for key in some[0]} if some else {}, list(some)) for name, some in made.items()}


def test_removal_stands_above_the_diagonal_and_insertion_below():
    below = {**PAIR, "form": "insertion", "synergy": -3.0, "verdict": "exclusive"}
    found = pair_matrices(tables(PAIR, below))["cat"]
    assert found.codes == (3, 7)
    (none, above), (under, also_none) = found.rows
    assert none is also_none is None
    assert (above.text, above.weight, above.is_cool, above.is_sure) == ("+1.50 ▲", 0.5, False, True)
    assert (under.text, under.weight, under.is_cool, under.is_sure) == ("−3 ✕", 1.0, True, True)
    assert above.title == (
        "codes 3 and 7 taken out of 16 images: synergy; synergy 1.50 [1.00, 2.00], q = 0.0010; "
        "alone +0.25 and −0.50, together +1.25 logits"
    )


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"verdict": "none"}, "+1.50"),
        ({"verdict": "redundancy", "synergy": -1.5}, "−1.50 ▼"),
        ({"verdict": "too few images", "q": None, "images": 2}, "–"),
        ({"verdict": "too few images", "q": None, "images": 0, "synergy": None, "low": None, "high": None}, "–"),
    ],
)
def test_a_cell_has_a_mark_only_with_a_verdict(changed, text):
    cell = pair_matrices(tables({**PAIR, **changed}))["cat"].rows[0][1]
    assert cell.text == text
    assert cell.is_sure == (len(text.split()) == 2)


def test_the_group_is_one_sentence():
    assert group_sentence(GROUP) == (
        "All together add +3 to the logit over 12 images, as many random codes of the same images +0.50; "
        "beyond the sum of each alone: −0.50 [−0.75, −0.25] (redundancy)."
    )
    assert group_sentence({**GROUP, "joint": None}) == ""
    assert pair_matrices(tables(PAIR, groups=(GROUP,)))["cat"].about == group_sentence(GROUP)


def test_nothing_measured_is_nothing_shown():
    assert pair_matrices({}) == {}
    assert pair_matrices(tables()) == {}
