"""A small convolutional VQ-VAE: the family of the embedded models.

Source:
    van den Oord et al. 2017, arXiv:1711.00937 (the model); Razavi et al. 2019, arXiv:1906.00446, section 3 (codebook by
    exponential moving average). Where we differ: pixel (un)shuffle instead of strided stems, so that the few layers
    at full size stay cheap on a CPU.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

# Squared-distance gap between best and second-best code under which float32 rounding could pick either: those
# images are encoded again in float64, so that a token never depends on the batch it was computed in.
DOUBTFUL_GAP = 1e-3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VQVAESettings:
    """Sizes of a VQ-VAE.

    Args:
        channels: Image channels the network sees, 1 (grey) or 3; colour pixels are averaged for 1.
        side: Image height and width in pixels, a multiple of 4.
        codes: k, entries of the codebook.
        width: d, numbers per code.
        narrow: Feature channels at half size.
        wide: Feature channels at quarter size.
        blocks: Residual blocks at each size.
    """

    channels: int = 1
    side: int = 28
    codes: int = 256
    width: int = 32
    narrow: int = 32
    wide: int = 96
    blocks: int = 2


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))): two 3x3 convolutions at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b m p q"]:
        return x + self.second(F.relu(self.first(F.relu(x))))


@final
class VQVAE(nn.Module):
    """Encoder, codebook and decoder; inputs and outputs are in [-1, 1], one or three channels."""

    codes: Tensor

    def __init__(self, settings: VQVAESettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * s.channels, s.narrow, 3, padding=1),
            Residual(s.narrow),
            nn.Conv2d(s.narrow, s.wide, 4, stride=2, padding=1),
            *(Residual(s.wide) for _ in range(s.blocks)),
            nn.ReLU(),
            nn.Conv2d(s.wide, s.width, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(s.width, s.wide, 3, padding=1),
            *(Residual(s.wide) for _ in range(s.blocks)),
            nn.ReLU(),
            nn.Conv2d(s.wide, 4 * s.narrow, 1),
            nn.PixelShuffle(2),
            *(Residual(s.narrow) for _ in range(s.blocks)),
            nn.ReLU(),
            nn.Conv2d(s.narrow, 4 * s.channels, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("codes", torch.randn(s.codes, s.width))

    def distances(self, latent: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """Squared Euclidean distance of every position's latent to every code."""
        codes = self.codes.to(latent.dtype)
        flat = latent.permute(0, 2, 3, 1)  # (b, h, w, d)
        cross = flat @ codes.T
        distance: Tensor = flat.square().sum(-1, keepdim=True) - 2 * cross + codes.square().sum(1)
        return distance.permute(0, 3, 1, 2)

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Look the codes of a grid up."""
        return F.embedding(tokens, self.codes).permute(0, 3, 1, 2)

    def tokens_of(self, images: Float[Tensor, "b n H W"]) -> Int[Tensor, "b h w"]:
        """Nearest codes of the encoder's output, the same whatever else is in the batch (see DOUBTFUL_GAP)."""
        distance = self.distances(self.encoder(images))
        nearest, tokens = distance.topk(2, dim=1, largest=False)
        gap = (nearest[:, 1] - nearest[:, 0]).flatten(1).amin(1)
        doubtful = (gap < DOUBTFUL_GAP).nonzero().flatten()
        found = tokens[:, 0]
        if len(doubtful) and images.dtype != torch.float64:
            # mkldnn has no float64 convolutions: slower, but only a few images of a batch come here.
            exact = copy.deepcopy(self).double()
            found = found.clone()
            found[doubtful] = exact.distances(exact.encoder(images[doubtful].double())).argmin(1)
        return found
