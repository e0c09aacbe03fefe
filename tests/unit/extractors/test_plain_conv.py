"""Plain convolutional extractors: stages, poolings, sizes."""

import pytest
import torch

from vqcortex.extractors.plain_conv import CONV8, CONV10, PlainConvSettings
from vqcortex.extractors.protocol import build_extractor


def sizes(**changed):
    return PlainConvSettings(channels=3, grid=(16, 16), concepts=2, **changed)


def test_the_published_sizes_are_the_defaults_at_16x16():
    eight, ten = (one.default_settings(256, (16, 16), 1000) for one in (CONV8, CONV10))
    assert (eight.width, eight.depth, eight.hidden, eight.halvings, eight.dropout) == (512, 8, (4096, 4096), 2, 0.5)
    assert (ten.width, ten.depth, ten.hidden, ten.halvings) == (512, 10, (4096, 2048), 2)


def test_the_published_networks_have_as_many_weights_as_published():
    count = {}
    for name in ("conv8", "conv10"):
        with torch.device("meta"):
            net = build_extractor(name, 256, (16, 16), 1000, 0)
        count[name] = sum(weight.numel() for weight in net.parameters()) / 1e6
    assert count == {"conv8": pytest.approx(72.16, abs=0.01), "conv10": pytest.approx(66.44, abs=0.01)}


@pytest.mark.parametrize(
    ("depth", "halvings", "stages"),
    [
        (8, 2, ((4, 1), (4, 1))),
        (10, 2, ((4, 1), (4, 1), (2, 0))),
        (10, 3, ((4, 2), (4, 1), (2, 0))),
        (8, 1, ((4, 1), (4, 0))),
        (3, 2, ((3, 2),)),
        (5, 0, ((4, 0), (1, 0))),
    ],
)
def test_convolutions_come_in_stages_of_four_with_poolings_after_the_first_two(depth, halvings, stages):
    assert sizes(depth=depth, halvings=halvings).stages == stages


def test_the_grid_after_all_poolings_is_what_the_connected_layers_read():
    net = build_extractor("conv10", 3, (7, 5), 2, 0, halvings=2, width=4)
    assert net.settings.final_grid == (2, 2)
    assert net.hidden[0].linear.in_features == 4 * 2 * 2
    assert net.eval()(torch.randn(2, 3, 7, 5)).shape == (2, 2)


def test_it_may_have_no_hidden_layer():
    net = build_extractor("conv8", 3, (2, 2), 2, 0, hidden=())
    assert net.eval()(torch.randn(1, 3, 2, 2)).shape == (1, 2)
