from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.baselines import DrawnCodes
from vqcortex.attribution.integrated import IntegratedGradients, path_nodes
from vqcortex.errors import ConfigError

IDS = ["a", "b"]


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()
    return net, torch.randn(2, 3, 3, 3).double(), torch.tensor([0, 2])


class Cube(nn.Module):
    """Logit c is c times the sum of cubes."""

    def forward(self, embedded):
        return embedded.pow(3).sum((1, 2, 3))[:, None] * torch.arange(3)


def test_two_gauss_nodes_are_exact_for_a_cube():
    embedded = torch.randn(2, 3, 2, 2).double()
    found = IntegratedGradients(nodes=2)(Cube(), embedded, torch.tensor([1, 2]), IDS)
    torch.testing.assert_close(found, embedded.pow(3).sum(1) * torch.tensor([1.0, 2.0])[:, None, None].double())


@pytest.mark.parametrize("rule", ["gauss", "midpoint"])
def test_nodes_lie_inside_and_their_weights_add_up_to_one(rule):
    nodes = path_nodes(rule, 7)
    assert all(0 < at < 1 for at, _ in nodes)
    assert sum(weight for _, weight in nodes) == pytest.approx(1)
    assert sum(weight * at for at, weight in nodes) == pytest.approx(0.5)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("rule", ["gauss", "midpoint"])
def test_the_gap_closes_with_more_nodes(rule, drawn, case):
    codebook = torch.randn(5, 3).double()
    baseline = DrawnCodes(codebook=codebook, frequency=torch.ones(5), draws=3) if drawn else codebook[0]
    gaps = []
    for nodes in (1, 4, 32):
        method = IntegratedGradients(nodes=nodes, rule=rule, baseline=baseline)
        gaps.append(float(method.gap(method(*case, IDS), *case, IDS).abs().max()))
        assert method.passes((3, 3)) == (nodes * (3 if drawn else 1),) * 2
    assert gaps[0] > 10 * gaps[1] > 50 * gaps[2]
    assert gaps[2] < (1e-10 if rule == "gauss" else 1e-2)


def test_wrong_settings_are_said_at_once():
    with pytest.raises(
        ConfigError, match="2 settings wrong: nodes=0 must be at least 1; rule='simpson' must be one of"
    ):
        IntegratedGradients(nodes=0, rule="simpson")
