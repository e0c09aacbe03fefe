"""A compact convolutional transformer: attention over what two small convolutions see.

Source:
    Hassani et al. 2021, arXiv:2104.05704, section 3 (CCT-n/3x2). Without dropout and stochastic depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.judges.resize import squared


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CCTSettings:
    """Sizes of the compact convolutional transformer.

    Args:
        channels: Image channels it sees, 1 (grey: colours are averaged) or 3.
        side: Height and width in pixels that images are brought to first, a multiple of 4.
        width: Channels of a token, an even number.
        layers: Transformer blocks.
        heads: Attention heads, a divisor of `width`.
        ratio: Width of the feed-forward part over `width`.
        concepts: Classes.
        mirrors: Judge an image and its mirror image and average the logits; without effect in training.
    """

    channels: int = 3
    side: int = 32
    width: int = 128
    layers: int = 3
    heads: int = 4
    ratio: int = 2
    concepts: int = 10
    mirrors: bool = False


def halving(before: int, after: int) -> nn.Sequential:
    """A 3x3 convolution, ReLU, and the largest of overlapping 3x3 windows, at half the height and width."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
    )


@final
class CCT(nn.Module):
    """Convolutional tokens, learned positions, pre-norm transformer blocks, a learned weighing of tokens, one layer."""

    def __init__(self, settings: CCTSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.tokens = nn.Sequential(halving(s.channels, s.width // 2), halving(s.width // 2, s.width))
        self.position = nn.Parameter(torch.randn((s.side // 4) ** 2, s.width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                s.width, s.heads, s.ratio * s.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(s.layers)
        )
        self.norm = nn.LayerNorm(s.width)
        self.weigh = nn.Linear(s.width, 1)
        self.head = nn.Linear(s.width, s.concepts)

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Logits of images in [0, 1]."""
        if self.settings.mirrors and not self.training:
            return (self.seen(pixels) + self.seen(pixels.flip(-1))) / 2
        return self.seen(pixels)

    def seen(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Logits of the images as they are."""
        x = squared(pixels, self.settings.side)
        x = x.mean(1, keepdim=True) if self.settings.channels == 1 else x
        x = self.tokens(x * 2 - 1).flatten(2).transpose(1, 2) + self.position  # (b, tokens, m)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: Tensor = self.head((self.weigh(x).softmax(1) * x).sum(1))
        return logits


def build(settings: dict[str, Any]) -> CCT:
    """Make one from the settings in judges.json."""
    return CCT(CCTSettings(**settings))
