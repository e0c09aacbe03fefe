"""Plain convolutional extractors: the published networks 1 (8 convolutions) and 2 (10).

Source:
    Yang et al. 2025 (CORTEX), arXiv:2506.00698, published code, classification networks 1 and 2. Where we differ: sizes
    are settings and shrink with the grid; poolings keep the odd row and column of an odd grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.extractors.protocol import (
    Architecture,
    check_embedded,
    halved,
    halvings_for,
    hidden_for,
    width_for,
    wrong_dropout,
    wrong_numbers,
)

STAGE = 4  # convolutions between two poolings


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlainConvSettings:
    """Sizes of a plain convolutional extractor.

    Args:
        channels: d, numbers per code.
        grid: Rows and columns of a token grid, (h, w).
        concepts: c, logits per image.
        width: Feature channels of every convolution.
        depth: Convolutions in all, in stages of four; the last stage has what is left.
        halvings: How often the grid is halved in all: after each of the first two stages, the first one first.
        hidden: Sizes of the fully connected layers before the last.
        dropout: Rate after each of them, in [0, 1).
    """

    channels: int
    grid: tuple[int, int]
    concepts: int
    width: int = 512
    depth: int = 8
    halvings: int = 2
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5

    @property
    def final_grid(self) -> tuple[int, int]:
        """Rows and columns after the last stage."""
        return halved(self.grid[0], self.halvings), halved(self.grid[1], self.halvings)

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """Convolutions and halvings after them, stage by stage."""
        counts = [min(STAGE, self.depth - start) for start in range(0, self.depth, STAGE)]
        early = self.halvings if len(counts) == 1 else -(-self.halvings // 2)
        halvings = [early, self.halvings - early, *[0] * len(counts)]
        return tuple(zip(counts, halvings, strict=False))

    def problems(self) -> Iterator[str]:
        """What is wrong with the sizes, one line each."""
        yield from wrong_numbers(width=(self.width, 1), depth=(self.depth, 1), halvings=(self.halvings, 0))
        yield from wrong_numbers(hidden=(min(self.hidden, default=1), 1))
        yield from wrong_dropout(self.dropout)


class Convolution(nn.Module):
    """3x3 convolution, batch-norm, ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n p q"]:
        return torch.relu(self.norm(self.conv(x)))


class Connected(nn.Module):
    """Linear layer, batch-norm, ReLU, dropout."""

    def __init__(self, before: int, after: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.norm = nn.BatchNorm1d(after)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b m"]) -> Float[Tensor, "b n"]:
        return self.drop(torch.relu(self.norm(self.linear(x))))


@final
class PlainConv(nn.Module):
    """Stages of 3x3 convolutions with poolings between them, then fully connected layers."""

    def __init__(self, settings: PlainConvSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.stages, before = nn.ModuleList(), s.channels
        for count, _ in s.stages:
            self.stages.append(nn.ModuleList(Convolution(s.width if i else before, s.width) for i in range(count)))
            before = s.width
        sizes = [s.width * math.prod(s.final_grid), *s.hidden]
        self.hidden = nn.ModuleList(
            Connected(size, after, s.dropout) for size, after in zip(sizes, s.hidden, strict=False)
        )
        self.head = nn.Linear(sizes[-1], s.concepts)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        """Return one logit per concept."""
        check_embedded(embedded, self.settings)
        x = embedded
        for stage, (_, halvings) in zip(self.stages, self.settings.stages, strict=True):
            for convolution in stage:  # type: ignore[attr-defined]
                x = convolution(x)
            for _ in range(halvings):
                x = self.pool(x)  # (b, m, p, q)
        x = torch.flatten(x, 1)
        for layer in self.hidden:
            x = layer(x)  # (b, m)
        return self.head(x)


def default_settings(
    d: int, grid: tuple[int, int], concepts: int, *, depth: int, hidden: tuple[int, ...]
) -> PlainConvSettings:
    """Return the published sizes for 16x16 grids, smaller ones for smaller grids (rule: protocol.py)."""
    width = width_for(grid)
    return PlainConvSettings(
        channels=d,
        grid=grid,
        concepts=concepts,
        width=width,
        depth=depth,
        halvings=halvings_for(grid),
        hidden=tuple(hidden_for(size, width) for size in hidden),
    )


CONV8 = Architecture(
    settings=PlainConvSettings,
    network=PlainConv,
    default_settings=partial(default_settings, depth=8, hidden=(4096, 4096)),
)
CONV10 = Architecture(
    settings=PlainConvSettings,
    network=PlainConv,
    default_settings=partial(default_settings, depth=10, hidden=(4096, 2048)),
)
