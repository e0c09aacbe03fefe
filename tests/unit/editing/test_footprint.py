from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.editing.footprint import Footprint, Place, dilated, measure_footprint
from vqcortex.errors import ConfigError

TOY = ToyAdapter()
PLACE = Place(grid=(4, 4), size=(16, 16))
ALL = torch.ones(8, dtype=torch.bool)


def footprint(decode, **other):
    tokens = TOY.generate(torch.arange(3), ["a", "b", "c"], seed=0)
    return measure_footprint(decode, TOY.codebook, ALL, tokens, ["a", "b", "c"], PLACE, **other)


def test_a_decoder_that_paints_squares_has_no_footprint_beyond_them():
    found = footprint(TOY.decode)
    assert found.swaps == 12
    assert found.swapped.tolist() == found.derivative.tolist() == [1, 1, 1, 1]
    assert found.radius() == 0


def test_a_decoder_that_smears_one_token_wide_has_a_radius_of_one():
    smear = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    nn.init.constant_(smear.weight, 1 / 27)

    def decode(embedded):
        return F.interpolate(smear(embedded), scale_factor=4)

    found = footprint(decode)
    assert found.radius() == 1
    assert 0 < found.swapped[0] < 0.5
    assert found.swapped[1] == 1
    # Linear, and alike at every position: a swap and a derivative spread alike.
    torch.testing.assert_close(found.swapped, found.derivative, atol=0.05, rtol=0)


def test_the_radius_is_the_larger_of_both_ways():
    found = Footprint(swapped=torch.tensor([0.95, 1.0]), derivative=torch.tensor([0.5, 1.0]), swaps=1)
    assert found.radius() == 1
    assert found.radius(0.4) == 0
    with pytest.raises(ConfigError, match=r"keep=1\.5 must be above 0 and at most 1"):
        found.radius(1.5)
    with pytest.raises(ConfigError, match="each=0 must be at least 1"):
        footprint(TOY.decode, each=0)


def test_distances_and_pixels_follow_the_grid():
    place = Place(grid=(2, 3), size=(4, 6))
    assert place.distance(0).tolist()[0] == [0, 0, 1, 1, 2, 2]
    assert place.distance(5).tolist()[-1] == [2, 2, 1, 1, 0, 0]
    marked = torch.tensor([[[True, False, False], [False, False, True]]])
    assert place.pixels(marked)[0].int().tolist() == [[1, 1, 0, 0, 0, 0]] * 2 + [[0, 0, 0, 0, 1, 1]] * 2


def test_a_region_grows_by_its_radius_and_stays_on_the_grid():
    free = torch.zeros(1, 4, 4, dtype=torch.bool)
    free[0, 0, 0] = True
    assert torch.equal(dilated(free, 0), free)
    assert dilated(free, 1).nonzero()[:, 1:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    with pytest.raises(ConfigError, match="radius=-1 must be at least 0"):
        dilated(free, -1)


def test_the_last_level_of_a_model_with_several_is_found_behind_the_others():
    codes = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def decode(embedded):  # the first two positions are a coarse level that paints nothing
        return F.interpolate(embedded[:, :, 0, 2:].unflatten(2, (2, 2)), scale_factor=2)

    place = Place(grid=(2, 2), size=(4, 4), first=2)
    found = measure_footprint(decode, codes, ALL, torch.zeros(1, 1, 6, dtype=torch.int64), ["a"], place)
    assert found.radius(1.0) == 0
