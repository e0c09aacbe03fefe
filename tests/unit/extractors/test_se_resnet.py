"""The residual extractor: gates, strides, sizes."""

import pytest
import torch

from vqcortex.extractors.protocol import build_extractor
from vqcortex.extractors.se_resnet import SE_RESNET, Block, SqueezeExcitation


def test_the_published_sizes_are_the_defaults_at_16x16():
    settings = SE_RESNET.default_settings(256, (16, 16), 1000)
    assert (settings.width, settings.stages, settings.strides) == (512, (3, 3), (2, 2))
    assert (settings.reduction, settings.hidden, settings.dropout) == (16, 2048, 0.4)


def test_the_published_network_has_as_many_weights_as_published():
    with torch.device("meta"):
        net = build_extractor("se_resnet", 256, (16, 16), 1000, 0)
    assert sum(weight.numel() for weight in net.parameters()) / 1e6 == pytest.approx(30.84, abs=0.01)


@pytest.mark.parametrize(("side", "strides"), [(4, (1, 1)), (7, (1, 2)), (16, (2, 2)), (32, (2, 2))])
def test_small_grids_have_fewer_strides(side, strides):
    assert SE_RESNET.default_settings(3, (side, side), 2).strides == strides


def test_a_gate_of_zero_weights_halves_its_input():
    gate = SqueezeExcitation(4, 2)
    torch.nn.init.zeros_(gate.excite.weight)
    torch.nn.init.zeros_(gate.excite.bias)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(gate(x), x / 2)


def test_the_gate_acts_on_the_sum_of_branch_and_shortcut():
    block = Block(4, 4, 1, 2).eval()
    torch.nn.init.zeros_(block.second.weight)
    x = torch.rand(2, 4, 3, 3)
    torch.testing.assert_close(block(x), block.gate(x))


def test_depth_is_split_over_two_stages():
    net = build_extractor("se_resnet", 3, (4, 4), 2, 0, depth=3, width=16)
    assert [len(stage) for stage in net.stages] == [2, 1]
