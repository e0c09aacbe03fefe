from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.logits import check_finite, concept_logits, evaluated, hidden_logits
from vqcortex.errors import ModelError


class Sum(nn.Module):
    """Logit c is c times the sum."""

    def forward(self, embedded):
        return embedded.sum((1, 2, 3))[:, None] * torch.arange(3, dtype=embedded.dtype)


EMBEDDED = torch.arange(24.0).reshape(2, 3, 2, 2)
CONCEPT = torch.tensor([1, 2])


def test_each_image_is_asked_for_its_concept():
    assert concept_logits(Sum(), EMBEDDED, CONCEPT, at_once=1).tolist() == [66.0, 420.0]


def test_half_precision_is_widened():
    assert concept_logits(Sum(), EMBEDDED.bfloat16(), CONCEPT).dtype == torch.float32


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_hidden_positions_hold_the_fill(at_once):
    hidden = torch.zeros(2, 5, 2, 2, dtype=torch.bool)
    for i in range(4):
        hidden[:, i].view(2, 4)[:, i] = True
    found = hidden_logits(Sum(), EMBEDDED, torch.full_like(EMBEDDED, 0.5), hidden, CONCEPT, at_once)
    each = EMBEDDED.sum((1,)).flatten(1) - 1.5
    wanted = torch.tensor([[1.0], [2.0]]) * (EMBEDDED.sum((1, 2, 3))[:, None] - torch.cat([each, torch.zeros(2, 1)], 1))
    assert torch.equal(found, wanted)


def test_no_masking_is_no_forward():
    found = hidden_logits(Sum(), EMBEDDED, EMBEDDED, torch.zeros(2, 0, 2, 2, dtype=torch.bool), CONCEPT)
    assert found.shape == (2, 0)


def test_inside_there_are_no_gradients_and_the_model_is_in_eval_mode():
    net = nn.Dropout()
    with evaluated(net) as held:
        assert not held.training
        assert not torch.is_grad_enabled()
    assert net.training


def test_the_first_image_that_is_not_finite_is_named():
    values = torch.tensor([[0.0, 1.0], [torch.inf, 0.0], [0.0, torch.nan]])
    with pytest.raises(ModelError, match="infinite logits for 2 of 3 images, 'b' first"):
        check_finite(values, ["a", "b", "c"], "logits")
