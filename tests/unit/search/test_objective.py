from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.errors import ConfigError
from vqcortex.search.objective import Together, value_of

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 4.0]])
CONCEPT = torch.tensor([0, 1])


def test_each_objective_is_what_its_name_says():
    assert value_of(LOGITS, CONCEPT).tolist() == [3, 4]
    assert value_of(LOGITS, CONCEPT, "margin").tolist() == [1, 0]
    expected = LOGITS.softmax(1)[[0, 1], CONCEPT].log()
    torch.testing.assert_close(value_of(LOGITS, CONCEPT, "log_probability"), expected)


def test_members_asked_together_give_the_mean_of_their_log_probabilities():
    torch.manual_seed(0)
    members = [nn.Sequential(nn.Flatten(), nn.Linear(8, 3)) for _ in range(2)]
    embedded = torch.randn(4, 2, 2, 2)
    expected = sum(one(embedded).log_softmax(1) for one in members) / 2
    torch.testing.assert_close(Together(members)(embedded), expected)


def test_a_pattern_that_one_member_alone_believes_gains_little():
    fooled, sober = nn.Flatten(), nn.Flatten()
    both = Together([fooled, sober])
    embedded = torch.tensor([[[[20.0]], [[0.0]]]])
    assert both(embedded).softmax(1)[0, 0] == pytest.approx(fooled(embedded).softmax(1)[0, 0].item())
    sober = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    nn.init.eye_(sober[1].weight)
    sober[1].weight.data.neg_()
    assert Together([fooled, sober])(embedded).softmax(1)[0, 0].item() == pytest.approx(0.5)


def test_nobody_cannot_be_asked():
    with pytest.raises(ConfigError, match="0 extractors were given to be asked together; at least 1 is needed"):
        Together([])
