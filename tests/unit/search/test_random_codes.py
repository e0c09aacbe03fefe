from __future__ import annotations

import torch
from torch import nn

from vqcortex.search.random_codes import RandomCodes

TOKENS = torch.zeros(2, 20, 20, dtype=torch.long)
FREE = torch.ones(20, 20, dtype=torch.bool)


def test_every_live_code_comes_up_about_equally_often():
    alive = torch.arange(10) >= 5
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    trace = RandomCodes(restarts=10, alive=alive)(
        net, torch.randn(10, 2), TOKENS, FREE, torch.tensor([0, 1]), ["a", "b"]
    )
    counts = trace.tokens.flatten().bincount(minlength=10)
    assert (counts[:5] == 0).all()
    assert ((counts[5:] / 1600 - 1).abs() < 0.1).all()


def test_the_trace_holds_the_start_and_the_draw():
    codebook = torch.arange(6.0).view(3, 2)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    trace = RandomCodes()(net, codebook, TOKENS, FREE, torch.tensor([0, 1]), ["a", "b"])
    assert trace.steps == (0, 1)
    before = codebook[0].softmax(0)
    torch.testing.assert_close(trace.probability[0, :, 0], before)
