from __future__ import annotations

import math

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, DataError, ShapeError, TokenError
from vqcortex.evaluation.arms import Centre, Random, score_arms
from vqcortex.evaluation.choose import fills_for
from vqcortex.evaluation.drop import measure_drop, same_ids, steps_for
from vqcortex.evaluation.fills import Black, Grey, code_frequency
from vqcortex.evaluation.values import Condition


def red_first(tokens, concept):
    """What a perfect explanation says on the toy: the positions painted in the concept's colour."""
    return (tokens == concept[:, None, None]).double()


def test_the_drop_is_before_minus_after_worked_out_by_hand(share):
    toy = ToyAdapter(grid=(2, 2))
    tokens = torch.tensor([[[4, 4], [4, 1]]])  # red, red, red, blue
    scores = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    found = measure_drop(toy, [share], tokens, torch.tensor([4]), ["a"], {"x": scores}, [1], [Black()])
    assert found.conditions == (Condition(arm="x", masking="positions", fill="black", chosen=1),)
    assert found.before.tolist() == [[0.75]]
    assert found.metrics["probability_drop"].tolist() == [[[0.25]]]  # 3/4 - 2/4
    assert found.metrics["log_odds_drop"].item() == pytest.approx(math.log(3))  # log 3 - log 1
    assert found.touched.tolist() == [[1.0]]
    assert (found.positions, found.judges, found.image_ids) == (4, ("share",), ("a",))


def test_every_arm_n_and_fill_is_a_condition_in_order(toy, share, images):
    tokens, concept, ids = images
    scores = score_arms((Random(), Centre()), toy, tokens, concept, ids)
    found = measure_drop(toy, [share], tokens, concept, ids, scores, [1, 5], [Black(), Grey()])
    order = [(one.arm, one.chosen, one.fill) for one in found.conditions]
    assert order == [(a, n, f) for a in ("random", "centre") for n in (1, 5) for f in ("black", "grey")]
    assert found.metrics["probability_drop"].shape == (8, 1, 6)
    assert found.metrics["probability_drop"].dtype == torch.float32
    assert found.touched.tolist() == [[float(n)] * 6 for n in (1, 1, 5, 5, 1, 1, 5, 5)]


def test_a_perfect_explanation_beats_chance_and_chance_beats_its_opposite(toy, share, images):
    tokens, concept, ids = images
    perfect = red_first(tokens, concept)
    scores = {"perfect": perfect, "inverted": -perfect, "random": Random()(toy, tokens, concept, ids)}
    fills = fills_for(["black", "resampled_codes"], frequency=code_frequency(tokens, 8))
    found = measure_drop(toy, [share], tokens, concept, ids, scores, [3], fills)
    for metric in ("probability_drop", "log_odds_drop"):
        perfect, perfect_drawn, inverted, inverted_drawn, chance, chance_drawn = (
            found.metrics[metric].mean((1, 2)).tolist()
        )
        assert perfect > chance > inverted
        assert perfect_drawn > chance_drawn > inverted_drawn


def test_masking_by_id_hides_every_cell_with_a_chosen_token_and_says_how_many(share):
    toy = ToyAdapter(grid=(2, 2))
    tokens = torch.tensor([[[4, 4], [4, 1]]])
    scores = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    found = measure_drop(toy, [share], tokens, torch.tensor([4]), ["a"], {"x": scores}, [1], [Black()], masking="by_id")
    assert found.conditions[0].masking == "by_id"
    assert found.touched.tolist() == [[3.0]]
    assert found.metrics["probability_drop"].item() == 0.75


def test_same_ids_stay_within_their_image():
    tokens = torch.tensor([[[1, 2, 1]], [[1, 2, 1]]])
    chosen = torch.tensor([[[True, False, False]], [[False, True, False]]])
    assert same_ids(tokens, chosen, 3).tolist() == [[[True, False, True]], [[False, True, False]]]


@pytest.mark.parametrize(
    ("positions", "steps"), [(49, (1, 2, 5, 10, 15, 24)), (256, (3, 8, 13, 26, 51, 77, 128)), (1, (1,))]
)
def test_steps_follow_the_shares(positions, steps):
    assert steps_for(positions=positions) == steps


@pytest.mark.parametrize("wrong", [0, -1, 101])
def test_shares_are_percent(wrong):
    with pytest.raises(ConfigError, match=f"share {wrong} must be above 0 and at most 100 percent"):
        steps_for((1, wrong), 49)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"counts": [13]}, ConfigError, "n=13 positions cannot be hidden in a grid of 12"),
        ({"counts": [0]}, ConfigError, "n=0 hides nothing"),
        ({"counts": [2, 2]}, ConfigError, "n '2' is given twice"),
        ({"counts": []}, ConfigError, "there is no n to measure"),
        ({"fills": []}, ConfigError, "there is no fill to measure"),
        ({"fills": [Black(), Black()]}, ConfigError, "fill 'black' is given twice"),
        ({"judges": []}, ConfigError, "there is no judge to measure"),
        ({"scores": {}}, ConfigError, "there is no arm to measure"),
        ({"masking": "area_matched"}, ConfigError, "masking 'area_matched' is not for single images"),
        ({"image_ids": ["a"]}, ShapeError, "image_ids has 1 entries for 6 grids"),
        ({"tokens": torch.full((6, 3, 4), 8)}, TokenError, r"tokens span \[8, 8\]"),
        ({"batch": 0}, ConfigError, "batch=0 must be at least 1"),
    ],
)
def test_wrong_settings_are_named(toy, share, images, change, error, words):
    tokens, concept, ids = images
    asked = {
        "judges": [share],
        "tokens": tokens,
        "concept": concept,
        "image_ids": ids,
        "scores": {"x": torch.zeros(6, 3, 4)},
        "counts": [1],
        "fills": [Black()],
    }
    with pytest.raises(error, match=words):
        measure_drop(toy, **(asked | change))


def test_no_image_is_no_evidence(toy, share):
    empty = torch.zeros(0, 3, 4)
    with pytest.raises(DataError, match="no images to measure"):
        measure_drop(toy, [share], empty.long(), empty[:, 0, 0].long(), [], {"x": empty}, [1], [Black()])


def test_nothing_keeps_a_graph(toy, share, images):
    tokens, concept, ids = images
    scores = torch.zeros(6, 3, 4)
    found = measure_drop(toy, [share], tokens, concept, ids, {"x": scores}, [1], [Black()])
    assert not found.metrics["probability_drop"].requires_grad
