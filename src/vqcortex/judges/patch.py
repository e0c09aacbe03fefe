"""A patch classifier with attention and no convolution over neighbours: judge B.

Source:
    Dosovitskiy et al. 2021, arXiv:2010.11929. Smaller, and the mean of all patches is classified, not a class token.
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
class PatchSettings:
    """Sizes of the patch judge.

    Args:
        channels: Image channels it sees, 1 (grey: colours are averaged) or 3.
        side: Height and width in pixels that images are brought to first.
        patch: Patch height and width in pixels, a divisor of `side`.
        concepts: Classes.
        width: Channels of a patch.
        layers: Transformer blocks.
        heads: Attention heads, a divisor of `width`.
        mirrors: Judge an image and its mirror image and average the logits; without effect in training.
    """

    channels: int = 1
    side: int = 28
    patch: int = 4
    concepts: int = 10
    width: int = 96
    layers: int = 4
    heads: int = 4
    mirrors: bool = False


@final
class PatchAttention(nn.Module):
    """Linear patches, learned positions, pre-norm transformer blocks, mean, one linear layer."""

    def __init__(self, settings: PatchSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.patches = nn.Unfold(s.patch, stride=s.patch)
        self.lift = nn.Linear(s.channels * s.patch**2, s.width)
        self.position = nn.Parameter(torch.randn((s.side // s.patch) ** 2, s.width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                s.width, s.heads, 2 * s.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(s.layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(s.width), nn.Linear(s.width, s.concepts))

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Logits of images in [0, 1]."""
        if self.settings.mirrors and not self.training:
            return (self.seen(pixels) + self.seen(pixels.flip(-1))) / 2
        return self.seen(pixels)

    def seen(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Logits of the images as they are."""
        x = squared(pixels, self.settings.side)
        x = x.mean(1, keepdim=True) if self.settings.channels == 1 else x
        x = self.lift(self.patches(x * 2 - 1).transpose(1, 2)) + self.position  # (b, patches, m)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


def build(settings: dict[str, Any]) -> PatchAttention:
    """Make one from the settings in judges.json."""
    return PatchAttention(PatchSettings(**settings))
