"""What every planted world owes its caller, asked of every registered name."""

from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError, DataError, ShapeError, TokenError
from vqcortex.worlds import WORLDS
from vqcortex.worlds.planting import background, build_world, plan_world
from vqcortex.worlds.protocol import CONCEPTS, WITH, Kind, Parameters

NAMES = sorted(WORLDS)
N, K, GRID = 120, 12, (6, 5)
BASE = torch.randint(K, (N, *GRID), generator=torch.Generator().manual_seed(0))
IDS = [f"image {number}" for number in range(N)]
USE = torch.bincount(BASE.flatten(), minlength=K)
SOME = Parameters(codes=3, seed=4)
# The rule of each world, said again: from which causal codes stand where they count, in order.
RULES = {
    "single": lambda one: one,
    "placed": lambda one: one,
    "confounder": lambda one: one,
    "any_of": lambda *some: any(some),
    "shortcut": lambda *some: any(some),
    "pair": lambda *some: all(some),
    "exclusive_or": lambda one, other: one != other,
    "null": lambda: False,
}
RULED = [name for name in NAMES if name != "null"]


def world_named(name, parameters=SOME, base=BASE, ids=IDS, **given):
    return build_world(name, base, ids, frequency=USE, parameters=parameters, **given)


def says(name, grid, codes):
    """What the rule says to one grid, position by position."""
    rows = GRID[0] // 2 if name == "placed" else GRID[0]
    seen = [any(int(grid[r, c]) == code for r in range(rows) for c in range(GRID[1])) for code in codes]
    return RULES[name](*seen)


def test_every_world_is_known_here():
    assert set(NAMES) == set(RULES)
    assert len(NAMES) == 8
    assert CONCEPTS[WITH] == "with"


@pytest.mark.parametrize("name", NAMES)
def test_a_world_knows_its_name_and_says_what_it_is(name):
    kind = WORLDS[name]
    assert isinstance(kind, Kind)
    assert kind.name == name
    assert kind.description.endswith(".")
    assert world_named(name).description == kind.description


@pytest.mark.parametrize("name", RULED)
def test_concepts_follow_the_rule_exactly_where_labels_are_clean(name):
    world = world_named(name)
    said = [says(name, grid, world.causal_codes.tolist()) for grid in world.tokens]
    assert world.truth.tolist() == [int(one) for one in said]
    assert torch.equal(world.concept, world.truth)
    assert 0.3 < world.truth.double().mean() < 0.7


@pytest.mark.parametrize("name", RULED)
def test_label_noise_turns_that_share_of_concepts_and_nothing_else(name):
    clean, noisy = world_named(name), world_named(name, Parameters(codes=3, seed=4, label_noise=0.3))
    assert torch.equal(noisy.truth, clean.truth)
    assert torch.equal(noisy.causal, clean.causal)
    assert 0.15 < (noisy.concept != noisy.truth).double().mean() < 0.45


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_marks_exactly_the_test_positions_whose_code_decides(name):
    world = world_named(name)
    codes, checked = world.causal_codes.tolist(), 0
    for row in world.rows("test").tolist():
        before = says(name, world.tokens[row], codes)
        for r in range(GRID[0]):
            for c in range(GRID[1]):
                changed = world.tokens[row].clone()
                changed[r, c] = -1
                assert bool(world.causal[row, r, c]) == (says(name, changed, codes) != before)
                checked += bool(world.causal[row, r, c])
    assert (checked > 0) == (name != "null")


@pytest.mark.parametrize("name", NAMES)
def test_elsewhere_the_mask_marks_the_codes_without_which_the_rule_says_otherwise(name):
    world = world_named(name)
    codes = world.causal_codes.tolist()
    for row in range(N):
        grid, before = world.tokens[row], says(name, world.tokens[row], codes)
        for code in codes:
            gone = torch.where(grid == code, -1, grid)
            here = world.causal[row][grid == code]
            assert bool(here.any()) == (says(name, gone, codes) != before)
        assert not world.causal[row][~torch.isin(grid, world.causal_codes)].any()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_company_or_order(name):
    world, rows = world_named(name), list(range(60, 20, -1))
    part = world_named(name, base=BASE[rows], ids=[IDS[row] for row in rows])
    for field in ("tokens", "concept", "truth", "causal", "decoy"):
        assert torch.equal(getattr(part, field), getattr(world, field)[rows])
    assert part.split == tuple(world.split[row] for row in rows)
    assert torch.equal(part.causal_codes, world.causal_codes)


@pytest.mark.parametrize("name", NAMES)
def test_the_background_and_the_concept_know_nothing_of_each_other(name):
    world = world_named(name)
    plan = plan_world(WORLDS[name], GRID, USE, SOME)
    planted = torch.isin(world.tokens, plan.planted)
    behind = torch.stack([background(plan, grid, one) for grid, one in zip(BASE, IDS, strict=True)])
    assert torch.equal(world.tokens[~planted], behind[~planted])  # a function of base and id alone
    assert not torch.isin(behind, plan.planted).any()
    assert torch.equal(world_named(name, base=BASE.flip(0)).truth, world.truth)


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_live_distinct_and_drawn_by_the_seed(name):
    world = world_named(name)
    codes = [*world.causal_codes.tolist(), *world.decoy_codes.tolist()]
    assert len(set(codes)) == len(codes)
    assert torch.equal(world_named(name).tokens, world.tokens)
    others = [world_named(name, Parameters(codes=3, seed=seed)) for seed in range(3)]
    assert len({tuple(one.concept.tolist()) for one in others}) == 3
    live = torch.arange(K) > 6
    use = torch.where(live, USE, 0)
    base = torch.where(BASE > 6, BASE, 7)
    few = build_world(name, base, IDS, frequency=use, parameters=SOME)
    assert live[few.tokens].all()


@pytest.mark.parametrize("name", NAMES)
def test_every_split_has_images_of_both_concepts(name):
    world = world_named(name)
    for split in ("train", "validation", "test"):
        assert world.truth[world.rows(split)].unique().tolist() == [0, 1]
    assert sum(len(world.rows(split)) for split in ("train", "validation", "test")) == len(world) == N


@pytest.mark.parametrize("name", NAMES)
def test_a_test_image_holds_a_planted_code_once(name):
    world = world_named(name)
    test = world.tokens[world.rows("test")]
    for code in [*world.causal_codes.tolist(), *world.decoy_codes.tolist()]:
        assert (test == code).flatten(1).sum(1).amax() <= (2 if name == "placed" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_codes_stand_only_where_they_are_allowed(name):
    allowed = torch.ones(K, *GRID, dtype=torch.bool)
    allowed[::2, :, 0] = False
    base = BASE.clone()
    base[:, :, 0] |= 1  # odd codes may stand there
    world = world_named(name, base=base, allowed=allowed)
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    assert allowed[world.tokens, rows, columns].all()


@pytest.mark.parametrize("name", NAMES)
def test_fewer_images_than_can_train_choose_and_test_are_an_error(name):
    with pytest.raises(DataError, match="a world of 19 images cannot train, choose and test; give at least 20"):
        world_named(name, base=BASE[:19], ids=IDS[:19])


@pytest.mark.parametrize("name", RULED)
def test_more_codes_than_live_ones_are_an_error(name):
    use = torch.zeros(K, dtype=torch.long)
    use[3] = 9
    with pytest.raises(ConfigError, match=rf"world '{name}' plants \d codes?, but 1 may be planted of 1 live ones"):
        build_world(name, torch.full((N, *GRID), 3), IDS, frequency=use, parameters=SOME)


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_tokens_that_do_not_fit_are_errors(name):
    with pytest.raises(ShapeError, match="120 base grids came with 119 ids"):
        world_named(name, ids=IDS[1:])
    with pytest.raises(TokenError, match=r"base tokens span \[0, 12\] but frequency tells of codes \[0, 11\]"):
        world_named(name, base=torch.where(BASE == 3, 12, BASE))
