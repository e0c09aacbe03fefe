"""The bias does what its formula promises where one position decides, and its strength is found where it does not."""

import math
from dataclasses import replace

import pytest
import torch

from vqcortex.audit.repair import (
    MOST,
    Try,
    balancing_bias,
    best_try,
    code_frequency,
    evidence_kept,
    find_strength,
    group_steering,
    suppressing_bias,
)
from vqcortex.errors import ConfigError, ShapeError

EVEN = torch.tensor([0.5, 0.5], dtype=torch.float64)


def test_frequency_is_per_position_and_never_zero():
    found = code_frequency(torch.tensor([[[0, 1]], [[0, 2]]]), 4)
    assert found.shape == (4, 1, 2)
    assert found[0, 0, 0] > 0.8
    assert (found > 0).all()
    torch.testing.assert_close(found.sum(0), torch.ones(1, 2, dtype=torch.float64))


def test_a_draw_of_one_position_becomes_even():
    frequency = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.1, 0.9]], dtype=torch.float64)[:, :, None, None] + 1e-9
    rates = torch.tensor([0.9, 0.1], dtype=torch.float64)
    drawn = torch.einsum("c,ckhw->khw", rates, frequency)
    steered = (drawn.log() + balancing_bias(frequency, rates, EVEN)).softmax(0)
    torch.testing.assert_close(steered, torch.einsum("c,ckhw->khw", EVEN, frequency), atol=1e-6, rtol=0)


def test_even_rates_need_no_bias_and_none_grows_without_bound():
    frequency = torch.rand(2, 5, 1, 1, dtype=torch.float64)
    assert balancing_bias(frequency, EVEN, EVEN).abs().max() < 1e-12
    strange = torch.tensor([[[[1.0]], [[1e-30]]], [[[1e-30]], [[1.0]]]], dtype=torch.float64)
    assert balancing_bias(strange, torch.tensor([1.0, 0.0], dtype=torch.float64), EVEN).abs().max() <= MOST


def test_what_is_suppressed_is_minus_infinity_and_nothing_else_changes():
    bias = suppressing_bias([2, 0, 2], 4, (1, 2))
    assert bias[[0, 2]].isneginf().all()
    assert (bias[[1, 3]] == 0).all()
    with pytest.raises(ConfigError, match="suppressing 4 of 4 codes leaves none"):
        suppressing_bias([0, 1, 2, 3], 4, (1, 1))


def chain(rate, images, seed):
    """Grids of 1x3 and their group: the middle code is the group's, the last repeats it, the first tells nothing."""
    rng = torch.Generator().manual_seed(seed)
    group = (torch.rand(images, generator=rng) >= rate).long()
    first = torch.randint(3, (images,), generator=rng)
    return torch.stack([first, 3 + group, 3 + group], 1).view(-1, 1, 3), group


def chain_of(seed=0, images=6000):
    tokens, group = chain(0.5, images, seed)
    return [tokens[group == 0], tokens[group == 1]]


def test_a_steered_draw_is_even_where_the_group_is_decided_and_free_everywhere_else():
    rates = torch.tensor([0.9, 0.1], dtype=torch.float64)
    steering = group_steering(chain_of(), 5, rates, EVEN)
    assert steering.shape == (5, 1, 3)
    # Nothing is known yet, and the first code says nothing.
    first = steering.bias(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 0)
    assert (first[:, :3] - first[:, :1]).abs().max() < 0.15
    # The middle one decides: 0.9 and 0.1 become a half each.
    decides = steering.bias(torch.tensor([[1]]), torch.tensor([0]), 1)[0]
    drawn = (torch.tensor([0.9, 0.1], dtype=torch.float64).log() + decides[3:]).softmax(0)
    torch.testing.assert_close(drawn, EVEN, atol=0.03, rtol=0)
    # What is decided is left alone: all codes that can follow get the same bias.
    for group in (0, 1):
        after = steering.bias(torch.tensor([[1, 3 + group]]), torch.tensor([0, 1]), 2)[0]
        assert after[3 + group].item() == pytest.approx(steering.weight[group].item(), abs=0.02)


def test_evidence_that_repeats_itself_counts_less_and_none_that_says_nothing():
    rng = torch.Generator().manual_seed(0)
    groups = []
    for likely in (0.7, 0.3):
        said = (torch.rand(4000, 1, generator=rng) < likely).long()
        groups.append(torch.cat([said.expand(-1, 4), torch.randint(2, (4000, 1), generator=rng)], 1).view(-1, 1, 5))
    evidence = torch.stack([code_frequency(one[:2000], 2) for one in groups]).log()
    kept = evidence_kept([one[2000:] for one in groups], evidence)[0]
    # After two equal codes the third says it again: its own evidence is all there is.
    assert kept[3].item() < 0.1
    assert 0.15 < kept[4].item() < 0.35


def test_strength_scales_the_weights_and_identity_follows():
    steering = group_steering(chain_of(), 5, torch.tensor([0.9, 0.1], dtype=torch.float64), EVEN)
    half = steering.at(0.5)
    torch.testing.assert_close(half.weight, steering.weight / 2)
    assert half.identity != steering.identity == steering.at(1).identity
    nothing = steering.at(0).bias(torch.tensor([[1]]), torch.tensor([0]), 1)
    torch.testing.assert_close(nothing, torch.zeros(1, 5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_parts_of_a_steering_that_do_not_fit_are_refused():
    whole = group_steering(chain_of(), 5, EVEN, EVEN)
    for part, wrong in (("evidence", whole.evidence[0]), ("before", whole.before[0]), ("rates", torch.ones(3))):
        with pytest.raises(ShapeError, match=r"do not fit; give evidence \(c, k, h, w\)"):
            replace(whole, **{part: wrong})
    with pytest.raises(ConfigError, match="weight of a steering holds NaN"):
        replace(whole, weight=torch.full((2,), torch.nan))


def test_a_group_that_never_comes_is_pushed_no_further_than_one_in_a_thousand():
    steering = group_steering(chain_of(), 5, torch.tensor([1.0, 0.0], dtype=torch.float64), EVEN)
    assert steering.weight[1].item() == pytest.approx(math.log(0.5 / 1e-3))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("slope", [-0.8, -2.0, -6.0])
def test_the_strength_is_found_in_few_tries(slope):
    tries = find_strength(lambda strength: sigmoid(2.0 + slope * strength), 0.5, sigmoid(2.0), 4, 0.01)
    assert abs(best_try(tries, 0.5).rate - 0.5) <= 0.01
    assert tries[0].strength == 0
    assert tries[1].strength == 1


def test_a_bias_without_effect_ends_with_the_tries():
    tries = find_strength(lambda strength: 0.9, 0.5, 0.9, 3, 0.01)
    assert len(tries) == 4
    assert best_try(tries, 0.5) == Try(strength=0.0, rate=0.9)
