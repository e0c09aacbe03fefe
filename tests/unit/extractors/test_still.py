"""A model comes out of `still` as it went in."""

import pytest
import torch
from torch import nn

from vqcortex.extractors.still import still


def test_inside_it_is_in_eval_mode_without_weight_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with still(model):
        assert not any(module.training for module in model.modules())
        x = torch.ones(1, 2, requires_grad=True)
        model(x).sum().backward()
    assert x.grad is not None
    assert all(weight.grad is None for weight in model.parameters())


def test_mixed_flags_come_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model[0].eval()
    model[0].bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"), still(model):
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == [True, False, True]
    assert [weight.requires_grad for weight in model.parameters()] == [True, False]
