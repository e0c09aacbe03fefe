from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.gradient import REDUCTIONS, gradient_of_logits, mean_gradient, value_range
from vqcortex.errors import ConfigError

IDS = ["a", "b"]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


class Square(nn.Module):
    """Logit c is the sum of squares times c; its gradient is 2 c x."""

    def forward(self, embedded):
        return embedded.square().sum((1, 2, 3))[:, None] * torch.arange(3)


def test_the_gradient_of_a_linear_extractor_is_its_weights_with_and_without_noise():
    net, embedded, concept = linear(), torch.randn(2, 3, 2, 2), torch.tensor([2, 0])
    weights = net[1].weight.detach()[concept].view(2, 3, 2, 2)
    torch.testing.assert_close(mean_gradient(net, embedded, concept, IDS), weights)
    torch.testing.assert_close(mean_gradient(net, embedded, concept, IDS, draws=3, noise=0.5), weights)


def test_the_gradient_of_a_square_is_known():
    embedded = torch.randn(2, 3, 2, 2)
    found = mean_gradient(Square(), embedded, torch.tensor([1, 2]), IDS)
    torch.testing.assert_close(found, 2 * embedded * torch.tensor([1.0, 2.0])[:, None, None, None])


def test_noise_has_the_spread_of_each_image():
    embedded = torch.rand(2, 3, 40, 40) * torch.tensor([1.0, 9.0])[:, None, None, None]
    found = mean_gradient(Square(), embedded, torch.tensor([1, 1]), IDS, draws=1, noise=0.25)
    spread = (found / 2 - embedded).std((1, 2, 3))
    torch.testing.assert_close(spread, 0.25 * value_range(embedded).flatten(), rtol=0.05, atol=0)


def test_noise_averages_out_with_draws():
    embedded = torch.rand(2, 3, 8, 8)
    clean = mean_gradient(Square(), embedded, torch.tensor([1, 1]), IDS)
    error = [
        float((mean_gradient(Square(), embedded, torch.tensor([1, 1]), IDS, draws=s, noise=0.2) - clean).std())
        for s in (1, 16)
    ]
    assert error[0] / error[1] == pytest.approx(4, rel=0.15)


def test_more_draws_continue_the_same_noise():
    embedded = torch.rand(2, 3, 5, 5)
    one = mean_gradient(Square(), embedded, torch.tensor([1, 1]), IDS, draws=1, noise=0.2)
    two = mean_gradient(Square(), embedded, torch.tensor([1, 1]), IDS, draws=2, noise=0.2)
    second = 2 * two - one
    assert not torch.allclose(second, one)
    torch.testing.assert_close((one + second) / 2, two)


def test_an_image_without_contrast_gets_no_noise():
    flat = torch.full((1, 3, 2, 2), 0.5)
    found = mean_gradient(Square(), flat, torch.tensor([1]), ["a"], draws=3, noise=0.2)
    torch.testing.assert_close(found, 2 * flat)


def test_half_precision_sums_in_float32():
    embedded = torch.rand(1, 3, 2, 2).bfloat16()
    assert mean_gradient(Square(), embedded, torch.tensor([1]), ["a"]).dtype == torch.float32


def test_one_backward_serves_the_whole_batch():
    calls = []

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            calls.append(gradient.shape)
            return gradient

    class Counting(Square):
        def forward(self, embedded):
            return super().forward(Count.apply(embedded))

    mean_gradient(Counting(), torch.rand(2, 3, 2, 2), torch.tensor([1, 2]), IDS, draws=5, noise=0.1)
    assert calls == [(2, 3, 2, 2)] * 5


def test_gradient_of_logits_is_one_draw():
    net, embedded, concept = linear(), torch.randn(2, 3, 2, 2), torch.tensor([2, 0])
    assert torch.equal(gradient_of_logits(net, embedded, concept), mean_gradient(net, embedded, concept, IDS))


def test_reductions_by_hand():
    gradient = torch.tensor([1.0, -3.0, 0.0, 2.0]).view(1, 4, 1, 1)
    found = {name: float(reduce(gradient)) for name, reduce in REDUCTIONS.items()}
    assert found == pytest.approx({"max": 2, "mean": 0, "abs_max": 3, "abs_mean": 1.5, "norm": 14**0.5})


@pytest.mark.parametrize("sampling", ["plain", "antithetic", "quasi"])
def test_every_way_of_drawing_has_the_same_mean(sampling):
    embedded = torch.rand(2, 3, 4, 4)
    clean = mean_gradient(Square(), embedded, torch.tensor([1, 1]), IDS)
    found = mean_gradient(Square(), embedded, torch.tensor([1, 1]), IDS, draws=400, noise=0.2, sampling=sampling)
    torch.testing.assert_close(found, clean, rtol=0, atol=0.1)


def test_opposite_draws_cancel_odd_terms_of_a_quadratic_extractor_exactly():
    embedded = torch.rand(2, 3, 4, 4).double()
    clean = mean_gradient(Square(), embedded, torch.tensor([1, 2]), IDS)
    for draws, exact in ((2, True), (6, True), (5, False)):
        found = mean_gradient(
            Square(), embedded, torch.tensor([1, 2]), IDS, draws=draws, noise=0.5, sampling="antithetic"
        )
        assert torch.allclose(found, clean, rtol=1e-12, atol=1e-12) == exact


def test_on_a_smooth_net_paired_and_stratified_draws_come_nearer_to_the_mean_of_a_thousand():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(8 * 16, 3)).double()
    embedded, concept = torch.randn(12, 3, 4, 4).double(), torch.arange(12) % 3
    ids = [f"image {i}" for i in range(12)]
    wanted = mean_gradient(net, embedded, concept, ids, draws=1000, noise=0.2, seed=1)
    error = {
        sampling: float(
            (mean_gradient(net, embedded, concept, ids, draws=8, noise=0.2, sampling=sampling) - wanted).std()
        )
        for sampling in ("plain", "antithetic", "quasi")
    }
    assert error["antithetic"] < 0.6 * error["plain"]
    assert error["quasi"] < 0.7 * error["plain"]


def test_one_logit_is_too_few():
    with pytest.raises(ConfigError, match="this extractor has 1 logit"):
        mean_gradient(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), torch.rand(1, 1, 2, 2), torch.tensor([0]), ["a"])
