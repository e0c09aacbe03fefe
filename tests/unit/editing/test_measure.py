from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.editing.measure import (
    changed_tokens,
    features_of,
    measure_leak,
    measure_success,
    nearness,
    similarity,
)
from vqcortex.errors import ShapeError

BEFORE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def half():
    inside = torch.zeros(2, 16, 16, dtype=torch.bool)
    inside[:, :8] = True
    return inside


def test_what_changes_inside_is_no_leak():
    after = BEFORE.clone()
    after[:, :, :4] = 0  # the windows of similarity reach three pixels down
    found = measure_leak(BEFORE, after, half())
    assert found.outside.tolist() == [0.5, 0.5]
    assert found.mean_absolute.tolist() == found.visible.tolist() == [0, 0]
    torch.testing.assert_close(found.ssim, torch.ones(2, dtype=torch.float64))


def test_a_change_outside_is_measured_in_full():
    after = BEFORE.clone()
    after[0, :, 8:] = (after[0, :, 8:] + 0.02).clamp(max=2)
    after[1, :, 12:] += 0.5
    found = measure_leak(BEFORE, after, half())
    torch.testing.assert_close(found.mean_absolute, torch.tensor([0.02, 0.25], dtype=torch.float64), atol=1e-6, rtol=0)
    assert found.visible.tolist() == [0, 0.5]
    assert 0 < found.ssim[1] < found.ssim[0] < 1


def test_where_nothing_lies_outside_there_is_no_leak_to_speak_of():
    found = measure_leak(BEFORE, BEFORE, torch.ones(2, 16, 16, dtype=torch.bool))
    assert found.outside.tolist() == [0, 0]
    assert found.mean_absolute.isnan().all()
    assert found.ssim.isnan().all()
    with pytest.raises(ShapeError, match=r"shape \(2, 8, 16\) but the images \(2, 3, 16, 16\)"):
        measure_leak(BEFORE, BEFORE, half()[:, :8])


def test_similarity_is_one_with_itself_and_low_with_the_negative():
    assert torch.allclose(similarity(BEFORE, BEFORE), torch.ones(2, 16, 16, dtype=torch.float64))
    assert similarity(BEFORE, 1 - BEFORE).mean() < -0.5


def test_success_is_target_above_source_and_naming_is_target_above_all():
    before = torch.tensor([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]]).log()
    after = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]]).log()
    found = measure_success(before, after, torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert found.accepted.tolist() == [True, True]
    assert found.named.tolist() == [False, True]
    torch.testing.assert_close(found.target_after, torch.tensor([0.3, 0.6], dtype=torch.float64))
    torch.testing.assert_close(found.source_before, torch.tensor([0.8, 0.8], dtype=torch.float64))


def test_tokens_that_differ_are_counted():
    one = torch.zeros(2, 3, 3, dtype=torch.int64)
    other = one.clone()
    other[1, :2, 0] = 5
    assert changed_tokens(one, other).tolist() == [0, 2]


def test_features_are_what_the_last_linear_layer_reads():
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 3))
    found = features_of(network, BEFORE)
    torch.testing.assert_close(found, network[:3](BEFORE).double().detach())
    plain = nn.Sequential(nn.Flatten())
    torch.testing.assert_close(features_of(plain, BEFORE), BEFORE.flatten(1).double())


def test_nearness_is_one_where_an_edit_lies_as_near_as_real_images_do():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    assert nearness(torch.tensor([[4.0], [2.0], [6.0]], dtype=torch.float64), real).tolist() == [1, 0, 3]
    assert nearness(real[:1], real[:1]).isnan().all()
    assert nearness(real[:1], torch.zeros(3, 1, dtype=torch.float64)).isnan().all()
