"""Transformer extractors: attention over positions, fixed positions, sizes."""

import math

import pytest
import torch

from vqcortex.extractors.protocol import build_extractor
from vqcortex.extractors.transformer import TRANSFORMER, TRANSFORMER_POSTNORM, sinusoids

BOTH = ("transformer", "transformer_postnorm")


def test_the_published_sizes_are_the_defaults_at_16x16():
    pre, post = (one.default_settings(256, (16, 16), 2) for one in (TRANSFORMER, TRANSFORMER_POSTNORM))
    assert (pre.norm, pre.width, pre.depth, pre.heads, pre.mlp, pre.hidden) == ("pre", 512, 12, 8, 2048, 1024)
    assert (post.norm, post.width, post.depth, post.heads) == ("post", 512, 6, 8)
    assert not pre.attends_over_batch
    assert not post.attends_over_batch


def test_the_published_network_has_as_many_weights_as_published():
    with torch.device("meta"):
        net = build_extractor("transformer", 256, (16, 16), 1000, 0)
    assert sum(weight.numel() for weight in net.parameters()) / 1e6 == pytest.approx(39.67, abs=0.01)


def test_fixed_positions_are_sines_and_cosines():
    table = sinusoids(5, 4)
    expected = [[math.sin(3), math.cos(3), math.sin(3 / 100), math.cos(3 / 100)]]
    torch.testing.assert_close(table[3:4], torch.tensor(expected))
    assert sinusoids(2, 3).shape == (2, 3)


def test_fixed_positions_are_no_weights():
    net = build_extractor("transformer_postnorm", 3, (2, 2), 2, 0)
    assert "positions" not in net.state_dict()
    assert "positions" in build_extractor("transformer", 3, (2, 2), 2, 0).state_dict()


@pytest.mark.parametrize("name", BOTH)
def test_logits_depend_on_where_a_token_lies(name):
    net = build_extractor(name, 3, (2, 3), 4, 0).double().eval()
    embedded = torch.randn(1, 3, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    assert (net(embedded) - net(embedded.flip(3))).abs().max() > 1e-5


def test_attention_over_the_batch_makes_post_norm_logits_blind():
    embedded = torch.randn(4, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    blind = build_extractor("transformer_postnorm", 3, (2, 3), 4, 0, attends_over_batch=True).eval()
    torch.testing.assert_close(blind(embedded), blind(torch.zeros(4, 3, 2, 3)))
    seeing = build_extractor("transformer_postnorm", 3, (2, 3), 4, 0).eval()
    assert (seeing(embedded) - seeing(torch.zeros(4, 3, 2, 3))).abs().max() > 1e-3
