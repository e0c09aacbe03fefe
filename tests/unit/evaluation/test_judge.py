from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from vqcortex.errors import ConfigError, ModelError
from vqcortex.evaluation.judge import Judge, ask, log_odds_of, probability_of

PIXELS = torch.zeros(1, 3, 4, 4)


class Says:
    """Answers with given numbers."""

    name = "parrot"

    def __init__(self, numbers):
        self.numbers = numbers

    def __call__(self, pixels):
        return torch.tensor(self.numbers)


def test_a_probability_and_its_log_odds_are_those_of_the_textbook():
    answer = ask(Says([[math.log(0.75), math.log(0.25)]]), PIXELS)
    assert probability_of(answer, torch.tensor([0])).item() == pytest.approx(0.75)
    assert log_odds_of(answer, torch.tensor([0])).item() == pytest.approx(math.log(3))
    assert log_odds_of(answer, torch.tensor([1])).item() == pytest.approx(-math.log(3))


def test_log_odds_stay_exact_where_the_probability_rounds_to_one():
    answer = torch.tensor([[0.0, -40.0, -41.0]], dtype=torch.float64).log_softmax(1)
    expected = 40 - math.log(1 + math.exp(-1))
    assert log_odds_of(answer, torch.tensor([0])).item() == pytest.approx(expected, abs=1e-5)


def test_absolute_certainty_has_finite_log_odds():
    answer = ask(Says([[0.0, -torch.inf]]), PIXELS)
    assert probability_of(answer, torch.tensor([1])).item() == 0
    assert log_odds_of(answer, torch.tensor([0])).item() == 104
    assert log_odds_of(answer, torch.tensor([1])).item() == -104


def test_logits_are_refused_as_log_probabilities():
    with pytest.raises(ModelError, match=r"judge 'parrot' gives probabilities that sum to 8.389, not 1; end it with"):
        ask(Says([[2.0, 0.0]]), PIXELS)


def test_nan_is_refused():
    with pytest.raises(ModelError, match="judge 'parrot' answers NaN"):
        ask(Says([[torch.nan, 0.0]]), PIXELS)


def test_a_judge_of_one_concept_is_refused():
    with pytest.raises(ModelError, match="knows 1 concept"):
        ask(Says([[0.0]]), PIXELS)


@pytest.mark.parametrize("concept", [-1, 2])
def test_a_concept_the_judge_does_not_know_is_refused(concept):
    answer = torch.tensor([[0.5, 0.5]]).log()
    with pytest.raises(ConfigError, match=r"concepts span .* but this judge knows 0 to 1"):
        probability_of(answer, torch.tensor([concept]))


def test_anything_with_a_name_and_a_call_is_a_judge():
    assert isinstance(Says([[0.0]]), Judge)
    assert not isinstance(SimpleNamespace(name="mute"), Judge)
