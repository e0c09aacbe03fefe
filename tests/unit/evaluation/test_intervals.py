from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError, DataError
from vqcortex.evaluation import intervals as module
from vqcortex.evaluation.intervals import (
    Interval,
    Resampling,
    interval,
    intervals,
    paired_difference,
    quantile,
    ratio_intervals,
    resampled_means,
)


def test_equal_values_give_an_interval_of_no_width():
    one = interval(torch.full((37,), 0.1))
    assert one.low == one.value == one.high
    assert one.images == 37


def test_one_image_has_a_mean_but_no_interval():
    assert interval(torch.tensor([0.5])) == Interval(value=0.5, low=None, high=None, images=1)


def test_no_image_has_nothing():
    with pytest.raises(DataError, match="an interval over 0 images does not exist"):
        interval(torch.zeros(0))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_without_a_mean_are_refused(bad):
    with pytest.raises(DataError, match="values hold NaN or infinity"):
        interval(torch.tensor([0.0, bad]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resamples": 1}, "resamples=1 must be at least 2"),
        ({"level": 1.0}, "level=1.0 must be between 0 and 1"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigError, match=words):
        interval(torch.zeros(3), Resampling(**settings))


def test_the_interval_of_many_images_is_the_normal_one():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    one = interval(values, Resampling(resamples=4000))
    half = 1.96 * values.std().item() / 2000**0.5
    assert one.low == pytest.approx(one.value - half, abs=0.06 * half)
    assert one.high == pytest.approx(one.value + half, abs=0.06 * half)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    samples = torch.randn(400, 40, generator=torch.Generator().manual_seed(1))
    hits = sum(one.low <= 0 <= one.high for one in intervals(samples, Resampling(resamples=300)))
    assert 0.90 <= hits / 400 <= 0.98


def test_rows_do_not_depend_on_their_company():
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(2))
    for row, one in zip(values, intervals(values), strict=True):
        alone = interval(row)
        assert (alone.value, alone.low, alone.high) == pytest.approx((one.value, one.low, one.high), abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = torch.rand(30, generator=torch.Generator().manual_seed(3))
    assert interval(values) == interval(values)
    assert interval(values) != interval(values, Resampling(seed=1))


def test_resampling_in_pieces_is_the_same_as_at_once(monkeypatch):
    values, settings = torch.rand(2, 30), Resampling(resamples=50)
    at_once = resampled_means(values, settings)
    monkeypatch.setattr(module, "AT_ONCE", 30 * 7)
    torch.testing.assert_close(resampled_means(values, settings), at_once, rtol=0, atol=1e-12)


def test_quantiles_are_those_of_torch():
    ordered = torch.rand(3, 41, dtype=torch.float64).sort(1).values
    for share in (0.0, 0.025, 0.5, 0.975, 1.0):
        torch.testing.assert_close(quantile(ordered, share), torch.quantile(ordered, share, dim=1))


def test_a_paired_difference_is_narrower_than_the_two_apart():
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(100, generator=generator)
    ours, other = image + 0.1, image + 0.01 * torch.randn(100, generator=generator)
    gap = paired_difference(ours, other)
    assert 0 < gap.low < 0.1 < gap.high + 0.01
    assert gap.high - gap.low < 0.1 * (interval(ours).high - interval(ours).low)
    assert gap.value == pytest.approx((ours.double() - other.double()).mean().item())


def test_an_arm_never_differs_from_itself():
    values = torch.rand(20)
    gap = paired_difference(values, values)
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)


def test_the_ratio_of_an_arm_to_half_of_itself_is_two_without_doubt():
    values = torch.rand(1, 30, generator=torch.Generator().manual_seed(0)) + 1
    (one,) = ratio_intervals(values, values / 2, Resampling(resamples=50))
    assert (one.value, one.low, one.high) == pytest.approx((2.0, 2.0, 2.0))
    assert one.images == 30


def test_there_is_no_ratio_to_what_may_be_nothing_and_none_over_one_image():
    random = torch.Generator().manual_seed(0)
    noise, ours = torch.randn(1, 30, generator=random), torch.ones(1, 30)
    assert ratio_intervals(ours, noise - noise.mean()) == [None]
    assert ratio_intervals(ours[:, :1], ours[:, :1]) == [None]
