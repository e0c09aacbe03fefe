"""When a judge's word counts."""

import math

import pytest
from scipy.stats import binomtest

from vqcortex.errors import ModelError
from vqcortex.judges.quality import Quality, wilson


def quality(right: int, images: int, chance: float) -> Quality:
    return Quality(right=right, images=images, chance=chance, ece=0.1)


@pytest.mark.parametrize(("right", "images"), [(0, 10), (7, 10), (10, 10), (930, 1000)])
def test_the_interval_is_wilson_s(right, images):
    slow = binomtest(right, images).proportion_ci(method="wilson")
    assert wilson(right, images) == pytest.approx((slow.low, slow.high), abs=1e-6)


@pytest.mark.parametrize(
    ("chance", "least"), [(0.5, 0.625), (1 / 3, 0.5), (0.25, 0.4375), (0.1, 0.2), (0.01, 0.11), (0.9, 0.925)]
)
def test_more_is_asked_than_chance_and_never_more_than_can_be_reached(chance, least):
    assert quality(5, 10, chance).least == pytest.approx(least)
    assert chance < least < 1


def test_few_images_make_a_weak_judge_of_one_that_many_would_trust():
    assert quality(4, 10, 0.25).is_weak
    assert quality(3, 4, 0.5).is_weak
    assert not quality(750, 1000, 0.5).is_weak


def test_a_judge_that_names_the_commonest_concept_is_weak_however_often_it_is_right():
    assert quality(900, 1000, 0.9).is_weak
    assert not quality(990, 1000, 0.9).is_weak


def test_values_are_read_back():
    before = quality(3, 7, 0.2)
    assert Quality.read(before.values, "here") == before
    assert all(math.isfinite(one) for one in before.values.values())


@pytest.mark.parametrize("change", [{"right": 8}, {"images": 0, "right": 0}, {"ece": None}])
def test_values_that_cannot_be_are_refused(change):
    with pytest.raises(ModelError, match=r"'judges\.json' says"):
        Quality.read({**quality(3, 7, 0.2).values, **change}, "judges.json")


def test_a_missing_value_is_refused():
    with pytest.raises(ModelError, match="right, images, chance and ece are needed"):
        Quality.read({"right": 3}, "judges.json")
