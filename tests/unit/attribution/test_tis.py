from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.tis import Gradient, Tis
from vqcortex.errors import ConfigError

IDS = ["a", "b"]


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return net, torch.randn(2, 3, 2, 2), torch.tensor([0, 2])


def test_published_settings_are_the_defaults():
    assert (Tis().draws, Tis().noise, Tis().reduce) == (20, 0.2, "max")


def test_without_noise_it_is_the_gradient(case):
    assert torch.equal(Tis(noise=0.0)(*case, IDS), Gradient()(*case, IDS))
    assert Tis(noise=0.0).passes((2, 2)) == Gradient().passes((2, 2)) == (1, 1)


def test_reductions_are_ordered_as_mathematics_says(case):
    peak, mean, abs_peak, abs_mean, norm = (
        Gradient(reduce=reduce)(*case, IDS) for reduce in ("max", "mean", "abs_max", "abs_mean", "norm")
    )
    assert (mean <= peak).all()
    assert (peak <= abs_peak).all()
    assert (abs_mean <= abs_peak).all()
    assert (abs_peak <= norm + 1e-6).all()


def test_everything_wrong_is_said_at_once():
    with pytest.raises(
        ConfigError, match=r"3 settings wrong: draws=0 .*noise=nan .*reduce='median' must be one of max"
    ):
        Tis(draws=0, noise=float("nan"), reduce="median")


def test_a_wrong_reduction_of_the_gradient_is_an_error():
    with pytest.raises(ConfigError, match="reduce='median' must be one of max, mean"):
        Gradient(reduce="median")
