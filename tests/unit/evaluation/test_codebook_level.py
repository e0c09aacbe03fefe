from __future__ import annotations

import math

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ShapeError, TokenError
from vqcortex.evaluation.codebook_level import changes, check_searched, measure_codebook_level, random_codes

TOY = ToyAdapter(grid=(2, 2))
START = torch.tensor([[[4, 4], [4, 1]]])  # three red, one blue
SOURCE, TARGET = torch.tensor([4]), torch.tensor([1])


def measured(share, searched, **change):
    asked = {"source": SOURCE, "target": TARGET, "image_ids": ["a"], "searched": searched} | change
    return measure_codebook_level(TOY, [share], START, **asked)


def test_every_measure_is_the_mean_over_restarts_worked_out_by_hand(share):
    grids = torch.tensor([[[[1, 4], [4, 1]], [[1, 1], [1, 4]]]])  # 2 and 3 blue of 4
    found = measured(share, {"token_selection": grids})
    values = {name: value.item() for name, value in found.metrics.items()}
    assert found.before.item() == 0.25
    assert values["target_probability"] == pytest.approx((0.5 + 0.75) / 2)
    assert values["target_rise"] == pytest.approx(0.625 - 0.25)
    assert values["target_log_odds_rise"] == pytest.approx((0 + math.log(3)) / 2 + math.log(3))
    assert values["source_drop"] == pytest.approx(0.75 - (0.5 + 0.25) / 2)
    assert values["changed_tokens"] == pytest.approx((1 + 4) / 2)
    assert found.touched.item() == 2.5
    assert (found.source.tolist(), found.concept.tolist()) == ([4], [1])


def test_arms_may_have_different_numbers_of_restarts(share):
    found = measured(share, {"one": START[:, None], "three": START[:, None].expand(1, 3, 2, 2)})
    assert [one.arm for one in found.conditions] == ["one", "three"]
    assert found.metrics["target_rise"].abs().sum() == 0
    assert found.touched.tolist() == [[0.0], [0.0]]


def test_changes_count_tokens():
    assert changes(START, torch.tensor([[[[0, 4], [4, 1]], [[4, 4], [4, 1]]]])).tolist() == [0.5]


def test_random_codes_change_free_positions_only_and_belong_to_image_and_restart():
    free = torch.tensor([[True, False], [True, False]])
    start = torch.full((2, 2, 2), 500)
    grids = random_codes(start, free, 400, ["a", "b"], restarts=3, seed=1)
    assert grids.shape == (2, 3, 2, 2)
    assert (grids[..., 1] == 500).all()
    assert (grids[..., 0] < 400).all()
    assert len({tuple(one.flatten().tolist()) for one in grids.flatten(0, 1)}) == 6
    assert torch.equal(random_codes(start[:1], free, 400, ["b"], restarts=1, seed=1)[0, 0], grids[1, 0])


def test_no_restart_is_refused():
    with pytest.raises(ConfigError, match="restarts=0 must be at least 1"):
        random_codes(START, torch.ones(2, 2, dtype=torch.bool), 8, ["a"], restarts=0)


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 1, 2, 2), (1, 2, 2)])
def test_grids_that_do_not_fit_the_start_are_refused(shape):
    with pytest.raises(
        ShapeError, match=r"grids of arm 'x' have shape .* but \(b, r, h, w\) = \(1, at least 1, 2, 2\)"
    ):
        check_searched(START, {"x": torch.zeros(shape)}, 8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"target": SOURCE}, ConfigError, "image 'a' has its own concept as target"),
        ({"searched": {}}, ConfigError, "there is no arm to measure"),
        ({"searched": {"x": torch.full((1, 1, 2, 2), 8)}}, TokenError, r"tokens span \[8, 8\]"),
        ({"searched": {"x": torch.zeros(1, 0, 2, 2).long()}}, ShapeError, "at least 1"),
        ({"image_ids": ["a", "b"]}, ShapeError, "image_ids has 2 entries"),
    ],
)
def test_wrong_input_is_named(share, change, error, words):
    with pytest.raises(error, match=words):
        measured(share, **({"searched": {"x": START[:, None]}} | change))
