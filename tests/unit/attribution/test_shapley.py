from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.baselines import DrawnCodes
from vqcortex.attribution.shapley import Shapley, orders_of
from vqcortex.errors import ConfigError

IDS = ["a", "b"]


class Pair(nn.Module):
    """Main effects 1, 2, ... of all positions, and 6 for the first two together."""

    def forward(self, embedded):
        x = embedded[:, 0].flatten(1)
        logit = x @ torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype) + 6 * x[:, 0] * x[:, 1]
        return torch.stack([0 * logit, logit], 1)


@pytest.fixture
def curved():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()
    return net, torch.randn(2, 3, 3, 3).double(), torch.tensor([0, 2])


@pytest.mark.parametrize("sampling", ["antithetic", "quasi"])
def test_a_pair_shares_what_it_does_together_from_one_order_and_its_reverse(sampling):
    method = Shapley(permutations=2, sampling=sampling)
    found = method(Pair(), torch.ones(2, 1, 2, 2), torch.tensor([1, 1]), IDS)
    assert found.flatten(1).tolist() == [[4.0, 5.0, 3.0, 4.0]] * 2


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("sampling", ["plain", "antithetic", "quasi"])
def test_scores_add_up_whatever_is_drawn(sampling, drawn, curved):
    codebook = torch.randn(5, 3).double()
    baseline = DrawnCodes(codebook=codebook, frequency=torch.ones(5)) if drawn else codebook[0]
    for permutations in (1, 2, 5):
        method = Shapley(permutations=permutations, sampling=sampling, baseline=baseline)
        gap = method.gap(method(*curved, IDS), *curved, IDS)
        torch.testing.assert_close(gap, torch.zeros(2).double(), atol=1e-12, rtol=0)


def test_many_orders_find_the_exact_values(curved):
    net, embedded, concept = curved[0], curved[1][:1, :, :2, :2], torch.tensor([1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2)).double().requires_grad_(False)
    value = {}
    for mask in range(16):
        shown = torch.tensor([mask >> at & 1 for at in range(4)]).view(1, 1, 2, 2)
        value[mask] = float(net(embedded * shown)[0, 1])
    weight = [1 / 4, 1 / 12, 1 / 12, 1 / 4]
    exact = [
        sum(
            weight[bin(mask).count("1")] * (value[mask | 1 << at] - value[mask])
            for mask in range(16)
            if not mask >> at & 1
        )
        for at in range(4)
    ]
    found = Shapley(permutations=2000)(net, embedded, concept, ["a"])
    assert found.flatten().tolist() == pytest.approx(exact, abs=0.02)


def test_orders_are_permutations_in_pairs():
    orders = list(orders_of(5, 7, "antithetic", torch.Generator().manual_seed(0)))
    assert all(sorted(order.tolist()) == list(range(7)) for order in orders)
    assert orders[1].tolist() == orders[0].tolist()[::-1]
    assert orders[3].tolist() == orders[2].tolist()[::-1]
    assert len(orders) == 5


def test_turned_orders_put_each_position_at_every_place_once_a_block():
    orders = torch.stack(list(orders_of(14, 7, "quasi", torch.Generator().manual_seed(0))))
    firsts = orders[::2]
    assert torch.equal(firsts.sort(0).values, torch.arange(7)[:, None].expand(7, 7))


def test_an_image_of_one_position_gets_the_whole_difference():
    found = Shapley(permutations=3)(nn.Flatten(), torch.tensor([[[[3.0]], [[5.0]]]]), torch.tensor([1]), ["a"])
    assert found.tolist() == [[[5.0]]]


def test_wrong_settings_are_said_at_once():
    with pytest.raises(ConfigError, match="2 settings wrong: permutations=0 must be at least 1; sampling='x' must be"):
        Shapley(permutations=0, sampling="x")
