from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.reference import published_gradient, published_tis
from vqcortex.errors import ShapeError


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3))
    wide = torch.tensor([1.0, 6.0])[:, None, None, None]
    return net, torch.randn(2, 3, 2, 2) * wide, torch.tensor([0, 2]), torch.randn(5, 2, 3, 2, 2)


def alone(net, embedded, concept, noises, **switches):
    return torch.cat(
        [published_tis(net, embedded[[i]], concept[[i]], noises[:, [i]], draws=5, **switches) for i in range(2)]
    )


def test_company_changes_the_published_score_unless_its_quirk_is_off(case):
    together = published_tis(*case, draws=5)
    assert not torch.allclose(alone(*case)[0], together[0])
    corrected = published_tis(*case, draws=5, batch_noise_scale=False)
    torch.testing.assert_close(alone(*case, batch_noise_scale=False), corrected)


def test_noise_left_out_comes_from_the_global_generator(case):
    net, embedded, concept, _ = case
    torch.manual_seed(7)
    found = published_tis(net, embedded, concept, draws=3)
    torch.manual_seed(7)
    noises = torch.stack([torch.randn(embedded.shape) for _ in range(3)])
    assert torch.equal(found, published_tis(net, embedded, concept, noises, draws=3))


@pytest.mark.parametrize("slow", [False, True])
def test_the_extractor_comes_back_as_it_went_in(case, slow):
    net = case[0].train()
    net[0].bias.requires_grad_(False)
    published_gradient(*case, draws=5, one_backward_per_sample=slow)
    assert net.training
    assert net[2].training
    assert [weight.requires_grad for weight in net.parameters()] == [True, False, True, True]
    assert all(weight.grad is None for weight in net.parameters())


def test_sums_are_float64_and_carry_no_graph(case):
    found = published_gradient(*case, draws=5, one_backward_per_sample=True)
    assert found.dtype == torch.float64
    assert not found.requires_grad


def test_as_many_noises_as_draws_are_needed(case):
    with pytest.raises(ShapeError, match=r"noises has shape \(5, 2, 3, 2, 2\) but 20 draws"):
        published_tis(*case)
