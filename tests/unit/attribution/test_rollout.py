from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.rollout import AttentionRollout, attention_kept
from vqcortex.errors import ConfigError
from vqcortex.extractors.protocol import build_extractor

CASE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0]), ["a", "b"]


def extractor(name: str = "transformer", **changed) -> nn.Module:
    sizes = {"width": 16, "heads": 2, "depth": 2, **changed}
    return build_extractor(name, d=3, grid=(4, 4), concepts=3, seed=0, **sizes)


@pytest.mark.parametrize("name", ["transformer", "transformer_postnorm"])
def test_shares_are_positive_and_with_the_class_token_add_up_to_one(name):
    scores = AttentionRollout()(extractor(name), *CASE)
    assert (scores > 0).all()
    assert ((scores.sum((1, 2)) > 0.3) & (scores.sum((1, 2)) < 1 - 0.5**2)).all()


@pytest.mark.parametrize(("depth", "share"), [(1, 1 / 2), (2, 3 / 4), (3, 7 / 8)])
def test_even_attention_gives_every_position_the_same_known_share(depth, share):
    net = extractor(depth=depth)
    for block in net.blocks:
        block.attention.in_proj_weight.data.zero_()
    scores = AttentionRollout()(net, *CASE)
    torch.testing.assert_close(scores, torch.full((2, 4, 4), share / 17))


def test_looking_changes_no_number_and_leaves_no_hook():
    net = extractor().eval()
    with torch.no_grad():
        before = net(CASE[0])
        with attention_kept(net) as kept:
            assert torch.equal(net(CASE[0]), before)
    assert [weights.shape for weights in kept] == [(2, 17, 17)] * 2
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_go_when_the_forward_fails():
    net = extractor()
    with pytest.raises(RuntimeError, match="stop"), attention_kept(net):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in net.modules())


def test_an_extractor_without_attention_is_an_error():
    with pytest.raises(ConfigError, match="needs an extractor with attention, and Sequential has none"):
        AttentionRollout()(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), *CASE)


def test_attention_over_images_is_an_error():
    net = extractor("transformer_postnorm", attends_over_batch=True)
    with pytest.raises(ConfigError, match="attends over the images of a batch"):
        AttentionRollout()(net, *CASE)


def test_attention_without_a_class_token_is_an_error():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

        def forward(self, embedded):
            x = embedded.flatten(2).transpose(1, 2)
            return self.attention(x, x, x)[0].mean(1)

    with pytest.raises(ConfigError, match=r"attention has shape \(2, 16, 16\) but rollout reads \(b, 17, 17\)"):
        AttentionRollout()(Bare(), *CASE)
