"""Planting: shares, places, and what does not fit."""

import pytest
import torch

from vqcortex.errors import ConfigError
from vqcortex.worlds.planting import build_world, copies_of, half_of, plan_world
from vqcortex.worlds.protocol import Parameters
from vqcortex.worlds.shortcut import SHORTCUT
from vqcortex.worlds.single import SINGLE

N, K, GRID = 500, 9, (4, 5)
BASE = torch.randint(K, (N, *GRID), generator=torch.Generator().manual_seed(1))
IDS = [str(number) for number in range(N)]
USE = torch.bincount(BASE.flatten(), minlength=K)


def world_named(name, **given):
    return build_world(name, BASE, IDS, frequency=USE, parameters=Parameters(**given))


def agreement(world, split):
    rows = world.rows(split)
    return float((world.decoy[rows].flatten(1).any(1) == (world.truth[rows] == 1)).double().mean())


@pytest.mark.parametrize("correlation", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("name", ["confounder", "shortcut"])
def test_a_decoy_goes_with_the_concept_as_often_as_asked_and_not_in_test(name, correlation):
    world = world_named(name, correlation=correlation)
    assert agreement(world, "train") == pytest.approx(correlation, abs=0.08)
    assert agreement(world, "test") == pytest.approx(0.5, abs=0.13)
    if name == "shortcut":
        assert not world.decoy[world.rows("test")].any()


def test_a_confounder_follows_the_rule_and_a_shortcut_the_label():
    for name, followed, other in (("confounder", "truth", "concept"), ("shortcut", "concept", "truth")):
        world = world_named(name, correlation=1.0, label_noise=0.3)
        rows = torch.cat([world.rows("train"), world.rows("validation")])
        there = world.decoy[rows].flatten(1).any(1).long()
        assert torch.equal(there, getattr(world, followed)[rows])
        assert not torch.equal(there, getattr(world, other)[rows])


def test_a_shortcut_fills_one_square_at_one_place():
    world = world_named("shortcut", patch=2)
    shown = world.decoy[world.decoy.flatten(1).any(1)]
    assert torch.equal(shown, shown[:1].expand_as(shown))
    rows, columns = shown[0].nonzero().T
    assert (rows.max() - rows.min(), columns.max() - columns.min(), len(rows)) == (1, 1, 4)
    assert not (world.causal & shown[0]).any()


def test_training_images_hold_one_to_the_most_copies_and_test_images_one():
    plan = plan_world(SINGLE, GRID, USE, Parameters(plant_rate=0.2))
    world = world_named("single", plant_rate=0.2)
    copies = [copies_of(plan, one) for one in IDS]
    assert {copies[row] for row in world.rows("train").tolist()} == {1, 2, 3, 4}
    planted = (world.tokens == world.causal_codes[0]).flatten(1).sum(1)
    assert planted.tolist() == [number * int(truth) for number, truth in zip(copies, world.truth, strict=True)]


def test_a_placed_code_stands_in_the_other_half_as_often_with_as_without_the_concept():
    world = world_named("placed")
    lower = (world.tokens == world.causal_codes[0])[:, 2:].flatten(1).any(1)
    for concept in (0, 1):
        assert lower[world.truth == concept].double().mean() == pytest.approx(0.5, abs=0.08)


def test_single_members_of_a_pair_stand_alone_without_the_concept():
    world = world_named("pair")
    a, b = ((world.tokens == code).flatten(1).any(1)[world.truth == 0] for code in world.causal_codes)
    assert [int((a & ~b).sum() > 25), int((b & ~a).sum() > 25), int((a & b).sum())] == [1, 1, 0]


def test_codes_that_act_on_each_other_are_told_as_pairs():
    three = world_named("pair", codes=3)
    a, b, c = sorted(three.causal_codes.tolist())
    assert three.pairs == ((a, b), (a, c), (b, c))
    assert (three.together, world_named("exclusive_or").together) == (1, -1)
    assert world_named("any_of", codes=3).pairs == ()


def test_half_of_a_grid_is_above_and_of_a_row_on_the_left():
    assert half_of((3, 2)).tolist() == [[True, True], [False, False], [False, False]]
    assert half_of((1, 3)).tolist() == [[True, False, False]]


def test_a_patch_that_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match="patch=5 is larger than the 4x5 grid; it may be 4 at most"):
        world_named("shortcut", patch=5)
    allowed = torch.ones(K, *GRID, dtype=torch.bool)
    allowed[:, 1::2] = False
    with pytest.raises(ConfigError, match="no 2x2 square of this grid may hold code"):
        plan_world(SHORTCUT, GRID, USE, Parameters(), allowed)


def test_more_than_the_grid_has_room_for_is_an_error():
    with pytest.raises(ConfigError, match=r"plants 3 code\(s\) at up to 10 position\(s\).* stand at 20 of the 4x5"):
        world_named("pair", codes=3, plant_rate=0.5)
    with pytest.raises(ConfigError, match="world 'pair' plants 9 codes, but 9 may be planted of 9 live ones"):
        world_named("pair", codes=9, plant_rate=0.01)


def test_only_plantable_codes_are_planted():
    plantable = torch.arange(K) == 4
    parameters = Parameters()
    assert plan_world(SINGLE, GRID, USE, parameters, plantable=plantable).causal.tolist() == [4]
    with pytest.raises(ConfigError, match="plants 3 codes, but 1 may be planted of 9 live ones"):
        plan_world(SHORTCUT, GRID, USE, parameters, plantable=plantable)


def test_a_level_without_a_code_left_for_the_background_is_an_error():
    allowed = torch.ones(K, *GRID, dtype=torch.bool)
    allowed[1:, 0, 0] = False
    with pytest.raises(ConfigError, match=r"no code is left for the background at position \(0, 0\)"):
        plan_world(SINGLE, GRID, USE, Parameters(), allowed, plantable=torch.arange(K) == 0)
