"""Transformer extractors: the published network 4 (pre-norm) and the DALL-E mini folder's network 3 (post-norm).

Source:
    Yang et al. 2025 (CORTEX), arXiv:2506.00698, published code; Dosovitskiy et al. 2021, arXiv:2010.11929 (class
    token); Vaswani et al. 2017, arXiv:1706.03762, section 3.5 (sinusoidal positions). Where we differ: sizes are
    settings and shrink with the grid; the post-norm network attends over positions, while the published one attends
    over the batch axis, so that its logits do not depend on the image at all (`attends_over_batch` repeats that, to
    load its checkpoints for the record).
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
    depth_for,
    width_for,
    wrong_dropout,
    wrong_numbers,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSettings:
    """Sizes of a transformer extractor.

    Args:
        channels: d, numbers per code.
        grid: Rows and columns of a token grid, (h, w).
        concepts: c, logits per image.
        norm: "pre": layer-norm before each half of a block, batch-norm after it, learned positions; "post": layer-norm
            after each half, sinusoidal positions.
        width: Channels of a token.
        depth: Transformer blocks.
        heads: Attention heads, a divisor of `width`.
        mlp: Channels inside a block's MLP.
        hidden: Size of the layer before the last.
        dropout: Rate for token features, in [0, 1); ours, since published weights do not tell. Attention weights are
            not dropped, which keeps attention in one fused kernel.
        attends_over_batch: Repeat the published mistake; only for loading published checkpoints.
    """

    channels: int
    grid: tuple[int, int]
    concepts: int
    norm: str = "pre"
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp: int = 2048
    hidden: int = 1024
    dropout: float = 0.1
    attends_over_batch: bool = False

    def problems(self) -> Iterator[str]:
        """What is wrong with the sizes, one line each."""
        yield from wrong_numbers(width=(self.width, 1), depth=(self.depth, 1), heads=(self.heads, 1))
        yield from wrong_numbers(mlp=(self.mlp, 1), hidden=(self.hidden, 1))
        yield from wrong_dropout(self.dropout)
        if self.norm not in ("pre", "post"):
            yield f"norm={self.norm!r} must be 'pre' or 'post'"
        if self.heads >= 1 and self.width % self.heads:
            yield f"heads={self.heads} must divide width={self.width}"


class TokenNorm(nn.Module):
    """Batch-norm over images and tokens, per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Attention, then an MLP, each added to what came in."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        s = self.settings = settings
        # batch_first=False reads the images of (b, n, m) data as tokens: the published mistake.
        self.attention = nn.MultiheadAttention(s.width, s.heads, batch_first=not s.attends_over_batch)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.mlp = nn.Sequential(
            nn.Linear(s.width, s.mlp),
            nn.GELU(),
            nn.Dropout(s.dropout),
            nn.Linear(s.mlp, s.width),
            nn.Dropout(s.dropout),
        )
        if s.norm == "pre":
            self.attention_scale, self.mlp_scale = TokenNorm(s.width), TokenNorm(s.width)

    def forward(self, x: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
        if self.settings.norm == "post":
            x = self.attention_norm(x + self.attended(x))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention_scale(self.attended(self.attention_norm(x)))
        return x + self.mlp_scale(self.mlp(self.mlp_norm(x)))

    def attended(self, x: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
        """Attention of every token to every token of the same image."""
        return self.attention(x, x, x, need_weights=False)[0]


@final
class Transformer(nn.Module):
    """A class token and one token per position through transformer blocks; the class token is classified."""

    positions: Tensor

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        s = self.settings = settings
        length = s.grid[0] * s.grid[1] + 1
        self.class_token = nn.Parameter(torch.randn(1, 1, s.width) * 0.02)
        self.lift = nn.Sequential(nn.Linear(s.channels, s.width))
        if s.norm == "pre":
            self.lift.extend([nn.LayerNorm(s.width), nn.GELU()])
            self.positions = nn.Parameter(torch.randn(1, length, s.width) * 0.02)
        else:
            self.register_buffer("positions", sinusoids(length, s.width)[None], persistent=False)
        self.drop = nn.Dropout(s.dropout)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width)
        self.hidden = nn.Sequential(
            nn.Linear(s.width, s.hidden), nn.LayerNorm(s.hidden), nn.GELU(), nn.Dropout(s.dropout)
        )
        self.head = nn.Linear(s.hidden, s.concepts)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        """Return one logit per concept."""
        check_embedded(embedded, self.settings)
        x = self.lift(embedded.flatten(2).transpose(1, 2)) * math.sqrt(self.settings.width)  # (b, h*w, m)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)  # (b, n, m)
        x = self.drop(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.hidden(self.norm(x[:, 0])))


def sinusoids(length: int, width: int) -> Float[Tensor, "n m"]:
    """Fixed positions: sines on even channels, cosines on odd ones, wavelengths from 2 pi to 20,000 pi."""
    # On the CPU even where a network is built without weights: these numbers are in no checkpoint.
    place = torch.arange(length, dtype=torch.float64, device="cpu")[:, None]
    even = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
    angle = place * 10_000.0 ** (-even / width)  # (n, m / 2)
    both = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return both[:, :width].to(torch.get_default_dtype())


def default_settings(d: int, grid: tuple[int, int], concepts: int, *, norm: str, depth: int) -> TransformerSettings:
    """Return the published sizes for 16x16 grids, smaller ones for smaller grids (rule: protocol.py)."""
    width = width_for(grid)
    return TransformerSettings(
        channels=d,
        grid=grid,
        concepts=concepts,
        norm=norm,
        width=width,
        depth=depth_for(depth, grid),
        heads=min(8, width // 16),
        mlp=4 * width,
        hidden=2 * width,
    )


TRANSFORMER = Architecture(
    settings=TransformerSettings,
    network=Transformer,
    default_settings=partial(default_settings, norm="pre", depth=12),
)
TRANSFORMER_POSTNORM = Architecture(
    settings=TransformerSettings,
    network=Transformer,
    default_settings=partial(default_settings, norm="post", depth=6),
)
