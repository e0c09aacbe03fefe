from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, DataError, ShapeError
from vqcortex.evaluation.choose import fills_for
from vqcortex.evaluation.curves import distinct, join_curves, measure_curves
from vqcortex.evaluation.drop import measure_drop
from vqcortex.evaluation.fills import Black, Grey
from vqcortex.judges.toy import toy_judges

ALL = ("black", "grey", "mean_code", "resampled_codes")


@pytest.fixture
def scores(images):
    """A perfect arm, its opposite and one without an opinion."""
    tokens, concept, _ = images
    perfect = (tokens == concept[:, None, None]).double()
    return {"perfect": perfect, "inverted": -perfect, "constant": torch.zeros_like(perfect)}


class Counting:
    """Wraps the parts of a measurement and counts pictures."""

    def __init__(self, inner):
        self.inner, self.rows, self.most = inner, 0, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def counted(self, batch):
        self.rows += len(batch)
        self.most = max(self.most, len(batch))

    def decode(self, embedded):
        self.counted(embedded)
        return self.inner.decode(embedded)

    def __call__(self, pixels):
        self.counted(pixels)
        return self.inner(pixels)


def test_probabilities_are_those_worked_out_by_hand(share):
    toy = ToyAdapter(grid=(2, 2))
    tokens = torch.tensor([[[4, 4], [4, 1]]])  # red, red, red, blue
    scores = {"x": torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])}
    found = measure_curves(toy, [share], tokens, torch.tensor([4]), ["a"], scores, [3, 1], [Black()])
    assert (found.arms, found.fills, found.judges, found.image_ids) == (("x",), ("black",), ("share",), ("a",))
    assert (found.counts, found.positions) == ((1, 3), 4)
    assert found.before.tolist() == [[0.75]]
    assert found.removed[0, 0, :, 0, 0].tolist() == [0.5, 0.0]
    assert found.kept[0, 0, :, 0, 0].tolist() == [0.25, 0.75]
    assert found.empty.tolist() == [[[0.0]]]


def test_removal_falls_as_measure_drop_says(toy, images, scores):
    fills, judges = fills_for(ALL, frequency=torch.ones(8)), toy_judges()
    curves = measure_curves(toy, judges, *images, scores, [1, 5], fills, kept=False)
    drop = measure_drop(toy, judges, *images, scores, [1, 5], fills)
    falls = (curves.before - curves.removed).transpose(1, 2).flatten(0, 2)  # arms, counts, fills as conditions are
    torch.testing.assert_close(falls, drop.metrics["probability_drop"])
    torch.testing.assert_close(curves.before, drop.before)
    assert curves.kept is None


def test_the_size_of_a_step_and_company_change_nothing(toy, images, scores):
    tokens, concept, ids = images
    fills, judges = fills_for(ALL, frequency=torch.ones(8)), toy_judges()
    whole = measure_curves(toy, judges, *images, scores, [2, 7], fills)
    stepped = measure_curves(toy, judges, *images, scores, [2, 7], fills, batch=1)
    order = [4, 0, 5, 2, 1, 3]
    mixed = {arm: score[order] for arm, score in scores.items()}
    moved = measure_curves(
        toy, judges, tokens[order], concept[order], [ids[i] for i in order], mixed, [7, 2], fills, batch=4
    )
    for name in ("before", "removed", "kept", "empty"):
        torch.testing.assert_close(getattr(stepped, name), getattr(whole, name))
        torch.testing.assert_close(getattr(moved, name), getattr(whole, name)[..., order])


def test_no_picture_is_judged_twice_and_none_decoded_for_fills_in_pixels(toy, share, images, scores):
    judge, model = Counting(share), Counting(toy)
    same = {"one": scores["perfect"], "other": scores["perfect"].clone()}
    measure_curves(model, [judge], *images, same, [1, 12], [Black(), Grey()], batch=4)
    assert model.rows == 6  # the images
    assert judge.rows == 6 * (1 + 2 * 4)  # of either fill: 1 hidden, 11 hidden, all hidden, nothing hidden
    assert judge.most == model.most == 4


def test_every_mask_of_an_image_comes_once():
    masks = torch.tensor([[[[True, False]], [[True, False]]], [[[True, False]], [[False, False]]]])
    image, hidden, place = distinct(masks)
    assert sorted(zip(image.tolist(), hidden.flatten(1).tolist(), strict=True)) == [
        (0, [True, False]),
        (1, [False, False]),
        (1, [True, False]),
    ]
    assert torch.equal(hidden[place], masks)
    assert image[place].tolist() == [[0, 0], [1, 1]]


def test_parts_join_to_the_whole(toy, share, images, scores):
    tokens, concept, ids = images
    whole = measure_curves(toy, [share], *images, scores, [1, 5], [Black()])
    parts = [
        measure_curves(
            toy, [share], tokens[rows], concept[rows], ids[rows], {a: s[rows] for a, s in scores.items()}, [1, 5],
            [Black()],
        )
        for rows in (slice(0, 2), slice(2, 6))
    ]  # fmt: skip
    joined = join_curves(parts)
    assert joined.image_ids == whole.image_ids
    for name in ("before", "removed", "kept", "empty"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


def test_what_was_measured_differently_is_not_joined(toy, share, images, scores):
    one = measure_curves(toy, [share], *images, scores, [1], [Black()])
    with pytest.raises(ConfigError, match=r"curves with counts \(2,\) cannot be joined to \(1,\)"):
        join_curves([one, replace(one, counts=(2,))])
    with pytest.raises(ConfigError, match="with and without kept positions"):
        join_curves([one, replace(one, kept=None)])
    with pytest.raises(DataError, match="no images"):
        join_curves([])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"counts": [13]}, ConfigError, "n=13 positions cannot be hidden in a grid of 12"),
        ({"counts": [0]}, ConfigError, "n=0 hides nothing"),
        ({"counts": [2, 2]}, ConfigError, "n '2' is given twice"),
        ({"fills": []}, ConfigError, "there is no fill to measure"),
        ({"judges": []}, ConfigError, "there is no judge to measure"),
        ({"scores": {}}, ConfigError, "there is no arm to measure"),
        ({"scores": {"x": torch.full((6, 3, 4), torch.nan)}}, ConfigError, "scores hold NaN"),
        ({"image_ids": ["a"]}, ShapeError, "image_ids has 1 entries for 6 grids"),
        ({"batch": 0}, ConfigError, "batch=0 must be at least 1"),
    ],
)
def test_wrong_settings_are_named(toy, share, images, change, error, words):
    tokens, concept, ids = images
    asked = {"judges": [share], "tokens": tokens, "concept": concept, "image_ids": ids, "counts": [1]}
    asked |= {"scores": {"x": torch.zeros(6, 3, 4)}, "fills": [Black()]}
    with pytest.raises(error, match=words):
        measure_curves(toy, **(asked | change))
