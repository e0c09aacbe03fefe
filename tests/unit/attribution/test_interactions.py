from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.baselines import DrawnCodes
from vqcortex.attribution.interactions import (
    MOST,
    coalition_values,
    control_positions,
    corners_of,
    group_effect,
    measure_together,
    pairs_of,
    positions_of,
    synergy,
)
from vqcortex.errors import ConfigError, ModelError, ShapeError

CODES = torch.eye(6)  # code i is seen on channel i
IDS = ["a", "b"]
TOKENS = torch.tensor([[[0, 0, 1], [5, 2, 5], [3, 5, 5]], [[0, 5, 5], [5, 5, 5], [2, 5, 1]]])
CONCEPT = torch.tensor([1, 1])


class Rule(nn.Module):
    """A logit that is a function of which codes an image holds; counts the grids it is asked."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.asked = rule, 0

    def forward(self, embedded):
        self.asked += len(embedded)
        holds = (embedded.flatten(2) > 0.5).any(2).to(embedded)
        logit = self.rule(*holds.T)
        return torch.stack([0 * logit, logit], 1)


def together(rule, tokens=TOKENS, codes=(0, 1), **given):
    embedded = CODES[tokens].permute(0, 3, 1, 2)
    ids = [f"image {number}" for number in range(len(tokens))]
    concept = torch.ones(len(tokens), dtype=torch.int64)
    return measure_together(Rule(rule), embedded, concept, ids, positions_of(tokens, codes, 6), **given)


def test_what_adds_up_has_no_synergy_and_its_shapley_values_are_its_parts():
    found = together(lambda a, b, c, d, *_: 1 * a + 2 * b - 3 * c + d, codes=(0, 1, 2, 3))
    assert not synergy(found.pairs).any()
    assert not found.interaction.any()
    assert found.shapley.tolist() == [[1, 2, -3, 1], [1, 2, -3, 0]]
    assert found.present.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert found.joint.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rule", "pairs", "value"),
    [
        (lambda a, b, *_: 4 * a * b, [0, 0, 0, 4], 4),
        (lambda a, b, *_: 4 * (a + b - a * b), [0, 4, 4, 4], -4),
        (lambda a, b, *_: 4 * (a + b - 2 * a * b), [0, 4, 4, 0], -8),
    ],
    ids=["both needed", "either does", "exactly one"],
)
def test_two_codes_show_their_rule_in_every_context(rule, pairs, value):
    found = together(rule, codes=(2, 0, 1))
    at = pairs_of(3).index((1, 2))
    assert found.pairs[:, at].tolist() == [pairs] * 2
    for one in (synergy(found.pairs), found.interaction, found.banzhaf):
        assert one[:, at].tolist() == [value] * 2
        assert one.abs().sum() == abs(value) * 2  # and the third code has no part in it
    assert found.shapley[:, 0].tolist() == [0, 0]


def test_three_that_need_each_other_are_pairs_only_where_the_third_stands():
    found = together(lambda a, b, c, *_: 6 * a * b * c, codes=(0, 1, 2))
    assert synergy(found.pairs).tolist() == [[6.0] * 3] * 2
    assert found.interaction.tolist() == [[3.0] * 3] * 2
    assert found.shapley.tolist() == [[2.0] * 3] * 2
    assert (found.joint - found.alone.sum(1)).tolist() == [6, 6]


def test_a_code_that_an_image_lacks_has_no_part_in_it():
    found = together(lambda a, b, c, d, *_: a * d + d + b, codes=(0, 3))
    assert found.present.tolist() == [[True, True], [True, False]]
    assert found.pairs[1].tolist() == [[1.0] * 4]
    assert found.shapley[1].tolist() == [0, 0]


def test_no_grid_is_asked_twice():
    net, embedded = Rule(lambda a, b, *_: a + b), CODES[TOKENS].permute(0, 3, 1, 2)
    players = positions_of(TOKENS, (0, 1, 3), 6)
    wanted = torch.arange(8).repeat(2, 3)
    values = coalition_values(net, embedded, CONCEPT, IDS, players, wanted)
    assert net.asked == 8 + 4  # the second image lacks one of the three
    assert values[:, :8].tolist() == [[0, 1, 1, 2, 0, 1, 1, 2]] * 2


def test_company_and_the_number_of_grids_at_once_change_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()
    tokens, ids, concept = torch.randint(6, (4, 3, 3)), list("wxyz"), torch.tensor([0, 2, 1, 2])
    embedded = CODES.double()[tokens].permute(0, 3, 1, 2)
    baseline = DrawnCodes(codebook=CODES.double(), frequency=torch.ones(6), draws=3)
    for m, players in ((3, positions_of(tokens, (0, 1, 2), 6)), (9, torch.eye(9).bool().view(1, 9, 3, 3))):
        players = players.expand(4, -1, -1, -1)
        given = {"baseline": baseline, "contexts": 2}
        whole = measure_together(net, embedded, concept, ids, players, **given)
        for row in range(4):
            rows = [row]
            one = measure_together(
                net, embedded[rows], concept[rows], [ids[row]], players[rows], at_once=3 if m == 3 else 64, **given
            )
            for name in ("shapley", "pairs", "interaction", "banzhaf", "alone", "joint"):
                torch.testing.assert_close(getattr(one, name)[0], getattr(whole, name)[row])


def test_many_players_are_sampled_and_add_up():
    codes = torch.eye(9)
    tokens = torch.arange(9).view(1, 3, 3)
    players = positions_of(tokens, range(9), 9)
    net = Rule(lambda *holds: 2 * holds[0] * holds[1] + holds[2] + 3 * holds[3] * holds[4] * holds[5])
    given = (net, codes[tokens].permute(0, 3, 1, 2), torch.tensor([1]), ["a"], players)
    found = measure_together(*given, contexts=400, seed=3)
    pairs = dict(
        zip(pairs_of(9), zip(found.interaction[0].tolist(), found.banzhaf[0].tolist(), strict=True), strict=True)
    )
    assert pairs[0, 1] == (2, 2)
    assert pairs[3, 4] == pytest.approx((1.5, 1.5), abs=0.25)
    assert pairs[6, 7] == (0, 0)
    assert found.shapley[0].tolist() == pytest.approx([1, 1, 1, 1, 1, 1, 0, 0, 0], abs=0.2)
    assert float(found.shapley.sum()) == pytest.approx(float(found.joint))
    other = measure_together(*given, contexts=400, seed=4)
    assert not torch.equal(other.shapley, found.shapley)
    assert torch.equal(other.pairs, found.pairs)


def test_rounding_is_no_synergy():
    logits = torch.tensor([[100.0, 100.1, 100.2, 100.3], [0.0, 0.0, 0.0, 1e-8]])
    assert synergy(logits).tolist() == pytest.approx([0, 1e-8], abs=1e-12)


def test_the_group_effect_is_that_of_all_and_of_each_alone():
    net = Rule(lambda a, b, c, *_: a + b + 5 * a * b * c)
    players = positions_of(TOKENS, (0, 1, 2), 6)
    found = group_effect(net, CODES[TOKENS].permute(0, 3, 1, 2), CONCEPT, IDS, players)
    assert found.tolist() == [[7, 2], [7, 2]]


def test_control_codes_are_others_of_the_same_image_as_many_as_it_holds():
    tokens = torch.tensor([[[0, 1, 2], [3, 4, 4], [2, 3, 5]], [[0, 2, 2], [2, 2, 2], [2, 2, 2]]])
    drawn = [control_positions(tokens, (0, 1), IDS, draw=draw) for draw in range(20)]
    for one in drawn:
        assert one.flatten(2).any(2).sum(1).tolist() == [2, 1]
        for image, players in zip(tokens, one, strict=True):
            for at in players:
                assert image[at].unique().numel() <= 1
                assert not set(image[at].tolist()) & {0, 1}
        assert int(one.sum(1).max()) == 1
    assert len({one[0].sum(0).numpy().tobytes() for one in drawn}) > 2
    alone = control_positions(tokens[1:], (0, 1), IDS[1:], draw=7)
    assert torch.equal(alone[0], drawn[7][1])


def test_corners_are_neither_each_and_both():
    assert corners_of(3).tolist() == [[0, 1, 2, 3], [0, 1, 4, 5], [0, 2, 4, 6]]


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ((3,), r"codes \[3\] must be at least 2, all different"),
        ((3, 3), r"codes \[3, 3\] must be at least 2, all different"),
        ((0, 6), r"codes span \[0, 6\] but this codebook holds indices \[0, 5\]"),
        ((-1, 2), r"codes span \[-1, 2\]"),
    ],
)
def test_codes_that_make_no_pair_are_refused(codes, said):
    with pytest.raises(ConfigError, match=said):
        positions_of(TOKENS, codes, 6)


def test_players_that_do_not_fit_are_refused():
    embedded = CODES[TOKENS].permute(0, 3, 1, 2)
    rest = (embedded, CONCEPT, IDS)
    net = Rule(lambda a, *_: a)
    with pytest.raises(ShapeError, match=r"players have shape \(2, 2, 2, 3\) but .* = \(2, m, 3, 3\) is needed"):
        measure_together(net, *rest, torch.zeros(2, 2, 2, 3).bool())
    with pytest.raises(ConfigError, match="players=1 must lie in 2 to 24"):
        measure_together(net, *rest, torch.zeros(2, 1, 3, 3).bool())
    with pytest.raises(ConfigError, match=f"players={MOST + 1} must lie in 2 to 24"):
        measure_together(net, *rest, torch.zeros(2, MOST + 1, 3, 3).bool())
    with pytest.raises(ConfigError, match="a position belongs to two players"):
        measure_together(net, *rest, torch.ones(2, 2, 3, 3).bool())
    players = positions_of(TOKENS, (0, 1), 6)
    with pytest.raises(ConfigError, match="contexts=0 must be at least 1"):
        measure_together(net, *rest, players, contexts=0)
    with pytest.raises(ConfigError, match="at_once=0 must be at least 1"):
        measure_together(net, *rest, players, at_once=0)
    with pytest.raises(ShapeError, match="2 images came with 2 concepts and 1 ids"):
        measure_together(net, embedded, CONCEPT, IDS[:1], players)
    with pytest.raises(ModelError, match="NaN or infinite logits for 2 of 2 images, 'a' first"):
        measure_together(Rule(lambda a, *_: a / 0), *rest, players)
