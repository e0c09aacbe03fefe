from __future__ import annotations

import pytest
import torch
from leveled import TWO, LeveledAdapter, grids_of

from vqcortex.adapters.protocol import split_levels
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ShapeError
from vqcortex.evaluation.arms import (
    Brightness,
    Centre,
    Random,
    TokenFrequency,
    averaging,
    check_scores,
    hide_top,
    places,
    score_arms,
)

TOY = ToyAdapter(grid=(3, 3))
ZERO = torch.tensor([0])


def test_the_highest_scores_are_hidden():
    scores = torch.tensor([[[0.1, 0.9], [0.5, 0.4]]])
    assert hide_top(scores, 2).tolist() == [[[False, True], [True, False]]]


def test_ties_go_to_the_first_in_reading_order():
    assert hide_top(torch.zeros(1, 2, 3), 4).flatten().tolist() == [True] * 4 + [False] * 2


def test_places_are_a_permutation():
    found = places(torch.rand(5, 4, 6))
    assert torch.equal(found.flatten(1).sort(1).values, torch.arange(24).expand(5, -1))


@pytest.mark.parametrize("n", [-1, 7])
def test_more_positions_than_the_grid_has_cannot_be_hidden(n):
    with pytest.raises(ConfigError, match=f"n={n} positions cannot be hidden in a grid of 6; choose 0 to 6"):
        hide_top(torch.zeros(1, 2, 3), n)


def test_scores_that_are_nan_have_no_order():
    with pytest.raises(ConfigError, match="scores hold NaN"):
        hide_top(torch.full((1, 2, 2), torch.nan), 1)


def test_infinite_scores_have_an_order():
    assert hide_top(torch.tensor([[[-torch.inf, 0.0, torch.inf]]]), 1).tolist() == [[[False, False, True]]]


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"scores of arm 'x' have shape \(1, 2\) but the tokens \(1, 3, 3\)"):
        check_scores(torch.zeros(1, 2), torch.zeros(1, 3, 3, dtype=torch.int64), "x")


def test_the_centre_goes_first_and_the_corners_last():
    scores = Centre()(TOY, torch.zeros(1, 3, 3, dtype=torch.int64), ZERO, ["a"])
    assert scores[0].tolist() == [[-2, -1, -2], [-1, 0, -1], [-2, -1, -2]]


def test_brightness_is_the_mean_over_a_position():
    tokens = torch.tensor([[[0, 1, 3], [7, 0, 0], [0, 0, 0]]])  # black, blue, cyan, white
    scores = Brightness()(TOY, tokens, ZERO, ["a"])
    assert scores[0, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert hide_top(scores, 1)[0, 1, 0]


def test_averaging_copes_with_sizes_that_do_not_divide():
    assert averaging(2, 3).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert averaging(3, 2).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_the_most_frequent_code_of_the_concept_goes_first():
    counts = torch.zeros(2, 8, dtype=torch.int64)
    counts[0, 5], counts[1, 6] = 10, 10
    tokens = torch.tensor([[[5, 6, 0]] * 3] * 2)
    scores = TokenFrequency(counts=counts)(TOY, tokens, torch.tensor([0, 1]), ["a", "b"])
    assert scores[0, 0].tolist() == [10, 0, 0]
    assert scores[1, 0].tolist() == [0, 10, 0]


def test_counts_of_another_codebook_are_refused():
    arm = TokenFrequency(counts=torch.zeros(1, 7, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"counts has shape \(1, 7\) but \(at least 1, 8\) is needed"):
        arm(TOY, torch.zeros(1, 3, 3, dtype=torch.int64), ZERO, ["a"])


def test_random_orders_differ_between_images_and_seeds():
    tokens = torch.zeros(2, 3, 3, dtype=torch.int64)
    one = Random()(TOY, tokens, torch.zeros(2, dtype=torch.int64), ["a", "b"])
    other = Random(seed=1)(TOY, tokens, torch.zeros(2, dtype=torch.int64), ["a", "b"])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, other)
    assert torch.equal(one.flatten(1).sort(1).values, torch.arange(9.0).expand(2, -1).double())


def test_scores_come_by_name_whatever_the_batch():
    tokens, concept = torch.randint(0, 8, (5, 3, 3)), torch.zeros(5, dtype=torch.int64)
    ids = list("abcde")
    arms = (Random(), Centre(), Brightness())
    found = score_arms(arms, TOY, tokens, concept, ids, batch=2)
    assert list(found) == ["random", "centre", "brightness"]
    for name, scores in score_arms(arms, TOY, tokens, concept, ids).items():
        assert torch.equal(found[name], scores)


def test_several_levels_are_measured_in_the_same_picture():
    model = LeveledAdapter(TWO)
    tokens = grids_of(TWO, 2)
    near = Centre()(model, tokens, torch.zeros(2, dtype=torch.long), ["a", "b"])
    top, bottom = split_levels(near, TWO)
    assert top.unique().tolist() == [-0.125]
    assert bottom[0, 1, 1] > top[0, 0, 0] > bottom[0, 0, 0]
    light = Brightness()(model, tokens, torch.zeros(2, dtype=torch.long), ["a", "b"])
    top, bottom = split_levels(light, TWO)
    torch.testing.assert_close(top, torch.nn.functional.avg_pool2d(bottom, 2))
