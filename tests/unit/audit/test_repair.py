"""The bias does what its formula promises where one position decides, and its strength is found where it does not."""

import math

import pytest
import torch

from vqcortex.audit.repair import (
    MOST,
    Try,
    balancing_bias,
    best_try,
    code_frequency,
    find_strength,
    suppressing_bias,
    undecided,
)
from vqcortex.errors import ConfigError

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


def test_a_group_is_undecided_until_a_token_tells_it():
    groups = [torch.tensor([[[0, 1, 0]]] * 50), torch.tensor([[[0, 2, 0]]] * 50)]
    open_still = undecided(groups, torch.stack([code_frequency(one, 3) for one in groups]))
    assert open_still[0, :2].tolist() == pytest.approx([1, 1])
    assert open_still[0, 2].item() < 0.05


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
