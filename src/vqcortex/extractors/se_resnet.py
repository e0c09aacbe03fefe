"""A residual extractor with squeeze-and-excitation: the published network 3 (2 in its DALL-E mini folder).

Source:
    Yang et al. 2025 (CORTEX), arXiv:2506.00698, published code, classification network 3; He et al. 2016,
    arXiv:1512.03385 (blocks); Hu et al. 2018, arXiv:1709.01507 (squeeze-and-excitation). Where we differ: sizes are
    settings and shrink with the grid; a grid too small for two strides has one, in the second stage, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.extractors.protocol import (
    Architecture,
    check_embedded,
    halvings_for,
    hidden_for,
    width_for,
    wrong_dropout,
    wrong_numbers,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SEResNetSettings:
    """Sizes of a residual extractor.

    Args:
        channels: d, numbers per code.
        grid: Rows and columns of a token grid, (h, w).
        concepts: c, logits per image.
        width: Feature channels of every block.
        depth: Residual blocks in all, in two stages; the first has the odd one.
        strides: Stride of the first block of each stage.
        reduction: How many times narrower the squeeze is than `width`.
        hidden: Size of the fully connected layer after global average pooling.
        dropout: Rate after it, in [0, 1).
    """

    channels: int
    grid: tuple[int, int]
    concepts: int
    width: int = 512
    depth: int = 6
    strides: tuple[int, ...] = (2, 2)
    reduction: int = 16
    hidden: int = 2048
    dropout: float = 0.4

    @property
    def stages(self) -> tuple[int, int]:
        """Residual blocks per stage."""
        return -(-self.depth // 2), self.depth // 2

    def problems(self) -> Iterator[str]:
        """What is wrong with the sizes, one line each."""
        yield from wrong_numbers(width=(self.width, 1), depth=(self.depth, 2))
        yield from wrong_numbers(strides=(min(self.strides, default=0), 1), hidden=(self.hidden, 1))
        yield from wrong_dropout(self.dropout)
        if len(self.strides) != 2:
            yield f"strides={self.strides} must have one number for each of the two stages"
        if not 1 <= self.reduction <= self.width:
            yield f"reduction={self.reduction} must lie in 1..width, 1..{self.width}"


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate in [0, 1] computed from all channels' means."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, width // reduction)
        self.excite = nn.Linear(width // reduction, width)

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b m p q"]:
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))  # (b, m)
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """Two 3x3 convolutions added to a shortcut (a 1x1 convolution where shapes change), then gated.

    The gate acts on the sum, as in the published code; Hu et al. gate the branch alone.
    """

    def __init__(self, before: int, after: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.gate = SqueezeExcitation(after, reduction)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.extend([nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)])

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n r s"]:
        y = torch.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return torch.relu(self.gate(y + self.shortcut(x)))


@final
class SEResNet(nn.Module):
    """Residual blocks with squeeze-and-excitation, global average pooling, one hidden layer."""

    def __init__(self, settings: SEResNetSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.stages, before = nn.ModuleList(), s.channels
        for count, stride in zip(s.stages, s.strides, strict=True):
            first = Block(before, s.width, stride, s.reduction)
            rest = (Block(s.width, s.width, 1, s.reduction) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before = s.width
        self.hidden = nn.Linear(s.width, s.hidden)
        self.norm = nn.BatchNorm1d(s.hidden)
        self.drop = nn.Dropout(s.dropout)
        self.head = nn.Linear(s.hidden, s.concepts)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        """Return one logit per concept."""
        check_embedded(embedded, self.settings)
        x = embedded
        for stage in self.stages:
            x = stage(x)  # (b, m, p, q)
        x = self.drop(torch.relu(self.norm(self.hidden(x.mean((2, 3))))))
        return self.head(x)


STRIDES = {0: (1, 1), 1: (1, 2)}


def default_settings(d: int, grid: tuple[int, int], concepts: int) -> SEResNetSettings:
    """Return the published sizes for 16x16 grids, smaller ones for smaller grids (rule: protocol.py)."""
    width = width_for(grid)
    return SEResNetSettings(
        channels=d,
        grid=grid,
        concepts=concepts,
        width=width,
        strides=STRIDES.get(halvings_for(grid), (2, 2)),
        hidden=hidden_for(2048, width),
    )


SE_RESNET = Architecture(settings=SEResNetSettings, network=SEResNet, default_settings=default_settings)
