from __future__ import annotations

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.evaluation.beliefs import (
    BELIEF_COLUMNS,
    Beliefs,
    Witnesses,
    belief_table,
    join_beliefs,
    measure_beliefs,
    witness_table,
)
from vqcortex.evaluation.intervals import Resampling

TOY = ToyAdapter(grid=(2, 2))
GRIDS = torch.tensor([[[[1, 4], [4, 1]], [[1, 1], [1, 1]]], [[[4, 4], [4, 4]], [[4, 4], [4, 4]]]])
TARGET = torch.tensor([1, 4])


def sure_of(concept: int, chance: float):
    """An extractor that gives every image of one concept the same chance."""
    odds = torch.full((8,), (1 - chance) / 7)
    odds[concept] = chance
    return lambda embedded: odds.log().expand(len(embedded), 8)


def believed(share, **changed) -> Beliefs:
    known = {
        "extractors": {"own": sure_of(1, 0.9), "other": sure_of(1, 0.5), "third": sure_of(4, 0.3)},
        "searched": ("own",),
        "judges": [share],
        "plausible": {
            "log_frequency": lambda grids, target: grids.sum((1, 2)).double(),
            "neighbour_log_odds": lambda grids, target: (grids[:, 0, 0] == target).double(),
            "log_likelihood": None,
        },
    }
    start = torch.full((2, 2, 2), 4)
    return measure_beliefs(TOY, Witnesses(**{**known, **changed}), "region", "greedy", GRIDS, TARGET, start)


def test_every_witness_is_asked_about_every_restart(share):
    found = believed(share)
    assert found.roles == {"own": "searched", "other": "held out", "third": "held out", share.name: "judge"}
    torch.testing.assert_close(found.probability[share.name], torch.tensor([0.75, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found.probability["own"], torch.tensor([0.9, 0.1 / 7], dtype=torch.float64))
    assert found.plausible["log_frequency"].tolist() == [(10 + 4) / 2, 16]
    assert found.plausible["neighbour_log_odds"].tolist() == [1, 1]
    assert found.changed.tolist() == [(2 + 4) / 2, 0]


def test_the_adversarial_index_is_what_was_searched_minus_the_judges(share):
    index = believed(share).adversarial_index.tolist()
    assert index == pytest.approx([0.9 - 0.75, 0.1 / 7 - 1], abs=1e-6)
    both = believed(share, searched=("own", "other")).adversarial_index.tolist()
    assert both[0] == pytest.approx((0.9 + 0.5) / 2 - 0.75, abs=1e-6)


def test_parts_join_to_the_whole(share):
    whole = believed(share)
    twice = join_beliefs([whole, whole])
    assert twice.target.tolist() == [1, 4, 1, 4]
    assert twice.changed.tolist() == [3, 0, 3, 0]
    assert twice.plausible["log_likelihood"] is None
    assert torch.equal(twice.probability["own"], whole.probability["own"].repeat(2))


def test_tables_tell_all_searches_and_each_target(share):
    table = belief_table([believed(share)], TOY.concepts, Resampling(resamples=50))
    assert list(table.columns) == list(BELIEF_COLUMNS)
    assert [row["target"] for row in table.rows] == ["all", TOY.concepts[1], TOY.concepts[4]]
    everyone, first, _ = table.rows
    assert everyone["images"] == 2
    assert everyone["judges_probability"] == pytest.approx(0.875)
    assert everyone["adversarial_low"] <= everyone["adversarial_index"] <= everyone["adversarial_high"]
    assert (first["adversarial_low"], first["log_likelihood"]) == (None, None)
    assert first["held_out_probability"] == pytest.approx((0.5 + 0.1) / 2)
    rows = witness_table([believed(share)], TOY.concepts).where(target="all")
    assert {row["witness"]: row["role"] for row in rows}[share.name] == "judge"
    assert len(rows) == 4


def test_without_companions_nobody_is_held_out(share):
    found = believed(share, extractors={"own": sure_of(1, 0.9)})
    (row, *_) = belief_table([found], TOY.concepts, Resampling(resamples=50)).rows
    assert row["held_out_probability"] is None
