"""Building extractors by name, and the rule that scales them down."""

import pytest
import torch

from vqcortex.errors import ConfigError, ShapeError, UnknownName
from vqcortex.extractors import EXTRACTORS
from vqcortex.extractors.checkpoint import settings_of
from vqcortex.extractors.protocol import (
    build_extractor,
    depth_for,
    halved,
    halvings_for,
    hidden_for,
    look_up,
    network_from,
    width_for,
)


@pytest.mark.parametrize(
    ("side", "width", "halvings"), [(1, 32, 0), (4, 32, 0), (7, 64, 1), (8, 128, 1), (16, 512, 2), (32, 512, 3)]
)
def test_sizes_follow_the_grid(side, width, halvings):
    assert width_for((side, side)) == width
    assert halvings_for((side, side)) == halvings


def test_the_shorter_side_decides_how_often_a_grid_is_halved():
    assert halvings_for((2, 16)) == 0
    assert halvings_for((5, 16)) == 1


def test_an_odd_row_is_kept_when_a_grid_is_halved():
    assert [halved(side, 1) for side in (7, 8, 1)] == [4, 4, 1]
    assert halved(16, 2) == 4


def test_connected_layers_are_as_published_only_at_full_width():
    assert hidden_for(4096, 512) == 4096
    assert hidden_for(4096, 128) == 512
    assert hidden_for(4096, 64) == 256


def test_transformers_get_one_block_per_twenty_cells():
    assert [depth_for(12, (side, side)) for side in (1, 7, 12, 16, 32)] == [4, 4, 7, 12, 12]


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_the_same_arguments_give_the_same_weights_and_leave_torch_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (build_extractor(name, 3, (4, 4), 5, seed=1) for _ in range(2))
    other = build_extractor(name, 3, (4, 4), 5, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


def test_two_names_do_not_share_draws():
    conv8, conv10 = (build_extractor(name, 3, (2, 2), 2, seed=0) for name in ("conv8", "conv10"))
    assert not torch.equal(conv8.stages[0][0].conv.weight, conv10.stages[0][0].conv.weight)


def test_overrides_replace_settings():
    assert build_extractor("conv8", 3, (4, 4), 2, 0, width=5).settings.width == 5


def test_an_unknown_override_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'conv8' has no setting wdth; it has: channels, grid, concepts, width"):
        build_extractor("conv8", 3, (4, 4), 2, 0, wdth=5)


def test_an_unknown_name_suggests_a_known_one():
    with pytest.raises(UnknownName, match=r"no extractor named 'conv9'.*Did you mean 'conv8'"):
        build_extractor("conv9", 3, (4, 4), 2, 0)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("conv8", {"width": 0, "dropout": 1.0}, r"2 setting\(s\).*width=0 must be at least 1\n.*dropout=1.0"),
        ("conv8", {"hidden": (4, 0)}, "hidden=0 must be at least 1"),
        ("conv10", {"halvings": -1}, "halvings=-1 must be at least 0"),
        ("se_resnet", {"reduction": 64}, r"reduction=64 must lie in 1..width, 1..32"),
        ("se_resnet", {"strides": (1, 2, 2)}, "strides=.* one number for each of the two stages"),
        ("se_resnet", {"depth": 1}, "depth=1 must be at least 2"),
        ("transformer", {"heads": 3}, "heads=3 must divide width=32"),
        ("transformer", {"norm": "none"}, "norm='none' must be 'pre' or 'post'"),
    ],
)
def test_wrong_sizes_are_all_listed(name, wrong, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build_extractor(name, 3, (4, 4), 2, 0, **wrong)


def test_one_concept_is_too_few():
    with pytest.raises(ConfigError, match="concepts=1, but telling concepts apart needs at least 2"):
        build_extractor("conv8", 3, (4, 4), 1, 0)


def test_an_empty_grid_is_refused():
    with pytest.raises(ConfigError, match="d=3 on a 0x4 grid"):
        build_extractor("conv8", 3, (0, 4), 2, 0)


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_another_grid_is_refused(name):
    net = build_extractor(name, 3, (4, 4), 2, 0).eval()
    with pytest.raises(ShapeError, match=r"\(1, 3, 4, 5\) but this extractor reads \(b, 3, 4, 4\)"):
        net(torch.zeros(1, 3, 4, 5))


def test_settings_survive_json_and_rebuild_the_network_without_weights():
    net = build_extractor("conv8", 3, (4, 4), 2, 0)
    again = network_from("conv8", settings_of(net))
    assert again.settings == net.settings
    assert all(weight.is_meta for weight in again.parameters())


def test_stored_settings_must_be_complete():
    with pytest.raises(ConfigError, match="settings of 'conv8' are"):
        network_from("conv8", {"channels": 3})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_codes_are_looked_up_from_any_integer_type(dtype):
    codebook, tokens = torch.randn(8, 3), torch.tensor([[[0, 7, 1], [2, 2, 5]]])
    embedded = look_up(codebook, tokens.to(dtype))
    assert embedded.shape == (1, 3, 2, 3)
    assert torch.equal(embedded[0, :, 0, 1], codebook[7])
