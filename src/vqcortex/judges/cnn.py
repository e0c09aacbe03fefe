"""A plain convolutional image classifier: judge A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.judges.resize import squared


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CNNSettings:
    """Sizes of the convolutional judge.

    Args:
        channels: Image channels it sees, 1 (grey: colours are averaged) or 3.
        concepts: Classes.
        width: Feature channels of the first stage; doubled at each of the two poolings.
        side: Height and width in pixels that images are brought to first, at least 4; 0: they are seen as they are.
    """

    channels: int = 1
    concepts: int = 10
    width: int = 32
    side: int = 0


def stage(before: int, after: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch-norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


@final
class CNN(nn.Module):
    """Three convolutional stages, global average pooling, one linear layer."""

    def __init__(self, settings: CNNSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.features = nn.Sequential(
            nn.Conv2d(s.channels, s.width, 3, stride=1, padding=1, bias=False),
            nn.BatchNorm2d(s.width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            stage(s.width, 2 * s.width),
            nn.MaxPool2d(2),
            stage(2 * s.width, 4 * s.width),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(4 * s.width, s.concepts))

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Logits of images in [0, 1]."""
        x = squared(pixels, self.settings.side) if self.settings.side else pixels
        x = x.mean(1, keepdim=True) if self.settings.channels == 1 else x
        logits: Tensor = self.head(torch.flatten(self.features(x * 2 - 1).mean((2, 3)), 1))
        return logits


def build(settings: dict[str, int]) -> CNN:
    """Make one from the settings in judges.json."""
    return CNN(CNNSettings(**settings))
