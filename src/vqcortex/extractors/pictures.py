"""An extractor that looks at pictures: the model's own decoder first, then a small residual network over pixels.

The other architectures learn from scratch what a code looks like; this one is told. What it finds important is what
shows, so its mistakes are others than theirs, which is what an ensemble needs.

It must never: own the decoder. That belongs to the model, is held still, and is no part of the extractor's weights.

Source:
    He et al. 2015, arXiv:1512.03385, for the residual blocks. Looking through the decoder is ours; the published
    extractors read codes only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.errors import ModelError
from vqcortex.extractors.protocol import Architecture, check_embedded, wrong_dropout, wrong_numbers

Decode = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesSettings:
    """Sizes of the extractor that looks at pictures.

    Args:
        channels: d, numbers per code.
        grid: Rows and columns of a token grid, (h, w).
        concepts: c, logits per image.
        width: Feature channels of the first stage; doubled at each further one.
        depth: Stages, each of which halves the picture.
        side: Longest side of a picture in pixels, at least 8; larger ones are reduced first.
        dropout: Rate before the last layer, in [0, 1).
    """

    channels: int
    grid: tuple[int, int]
    concepts: int
    width: int = 32
    depth: int = 3
    side: int = 64
    dropout: float = 0.2

    def problems(self) -> Iterator[str]:
        """What is wrong with the sizes, one line each."""
        yield from wrong_numbers(width=(self.width, 1), depth=(self.depth, 1), side=(self.side, 8))
        yield from wrong_dropout(self.dropout)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one, the first and the last of stride 2."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.beside = nn.Conv2d(before, after, 1, stride=2, bias=False)
        self.beside_norm = nn.BatchNorm2d(after)

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n r s"]:
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.beside_norm(self.beside(x)))


@final
class _Window:
    """A decoder that is looked through: neither copied nor counted with the extractor that does."""

    def __init__(self) -> None:
        self.decode: Decode | None = None

    def __deepcopy__(self, memo: object) -> _Window:
        return self


@final
class Pictures(nn.Module):
    """Decode, halve the picture stage by stage, average, one linear layer."""

    def __init__(self, settings: PicturesSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.window = _Window()
        sizes = [3, *(s.width << number for number in range(s.depth))]
        self.stages = nn.ModuleList(Residual(*pair) for pair in itertools.pairwise(sizes))
        self.drop = nn.Dropout(s.dropout)
        self.head = nn.Linear(sizes[-1], s.concepts)

    def look_through(self, decode: Decode) -> None:
        """Take the decoder of the model whose codes it reads: codes (b, d, h, w) to pixels (b, 3, H, W), 0 to 1."""
        self.window.decode = decode

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        """Return one logit per concept."""
        check_embedded(embedded, self.settings)
        if self.window.decode is None:
            raise ModelError(
                "extractor 'pictures' has no decoder to look through; call look_through(model.decode) with the model "
                "whose codes it reads"
            )
        x = self._reduced(self.window.decode(embedded)) * 2 - 1  # (b, 3, H, W)
        for stage in self.stages:
            x = stage(x)  # (b, m, p, q)
        return self.head(self.drop(x.mean((2, 3))))

    def _reduced(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 P Q"]:
        longest = max(pixels.shape[-2:])
        if longest <= self.settings.side:
            return pixels
        size = [max(1, round(side * self.settings.side / longest)) for side in pixels.shape[-2:]]
        return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


def default_settings(d: int, grid: tuple[int, int], concepts: int) -> PicturesSettings:
    """The same sizes for every grid: pictures are brought to one size."""
    return PicturesSettings(channels=d, grid=grid, concepts=concepts)


PICTURES = Architecture(
    settings=PicturesSettings, network=Pictures, default_settings=default_settings, looks_through_decoder=True
)
