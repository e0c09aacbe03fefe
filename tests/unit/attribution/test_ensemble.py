from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.ensemble import Ensemble, scaled
from vqcortex.attribution.gradient_x_embedding import GradientXEmbedding
from vqcortex.errors import ConfigError

CASE = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0]), ["a", "b"]


def net(seed: int, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(seed)
    one = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    one[1].weight.data *= scale
    return one


def test_every_extractor_has_the_same_say_whatever_the_scale_of_its_logits():
    method = GradientXEmbedding()
    found = Ensemble(method=method, extractors=(net(1), net(2)))(net(0), *CASE)
    wanted = sum(scaled(method(net(seed), *CASE)) for seed in range(3)) / 3
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(Ensemble(method=method, extractors=(net(1, 100.0), net(2)))(net(0), *CASE), found)


def test_each_image_is_scaled_by_its_own_spread():
    scores = torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]])
    assert scaled(scores).tolist() == [[[1.0, 3.0]], [[1.0, 3.0]]]


def test_a_flat_map_has_no_say():
    flat = torch.tensor([[[2.0, 2.0 + 2e-7]], [[0.0, 0.0]]])
    assert not scaled(flat).any()


def test_alone_it_keeps_the_order_of_its_method():
    one = Ensemble(method=GradientXEmbedding())(net(0), *CASE).flatten(1)
    assert torch.equal(one.argsort(1), GradientXEmbedding()(net(0), *CASE).flatten(1).argsort(1))


def test_the_same_extractor_twice_is_an_error():
    one, two = net(0), net(1)
    for others in ((one,), (two, two)):
        with pytest.raises(ConfigError, match="an extractor occurs twice in this ensemble"):
            Ensemble(extractors=others)(one, *CASE)


def test_extractors_of_other_concepts_are_an_error():
    torch.manual_seed(0)
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ConfigError, match=r"concepts span \[0, 2\] but this extractor has logits \[0, 1\]"):
        Ensemble(extractors=(other,))(net(0), CASE[0], torch.tensor([2, 0]), CASE[2])
