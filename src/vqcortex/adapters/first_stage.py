"""What a model that draws tokens leaves to the network that turns them into pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import Level


class OverFirstStage:
    """Everything but drawing, asked of a first stage: a base for adapters of two networks.

    Args:
        first: The first stage, which encodes and decodes.
    """

    def __init__(self, first: NetworkAdapter) -> None:
        self.first, self.recognised = first, first.recognised

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.first.grid

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures, in pixels."""
        return self.first.size

    @property
    def stride(self) -> int | None:
        """Pixels per token side."""
        return self.first.stride

    @property
    def levels(self) -> tuple[Level, ...]:
        """As `Adapter.levels`."""
        return self.first.levels

    @property
    def k(self) -> int:
        """Codes of the codebook."""
        return self.first.k

    @property
    def d(self) -> int:
        """Numbers per code."""
        return self.first.d

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """Its codes."""
        return self.first.codebook

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.first.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type its networks compute in."""
        return self.first.dtype

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        """As `Adapter.encode`."""
        return self.first.encode(pixels)

    def logits(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k h w"]:
        """As `NetworkAdapter.logits`, of the first stage."""
        return self.first.logits(pixels)

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """As `Adapter.embed`."""
        return self.first.embed(tokens)

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        """As `Adapter.nearest`."""
        return self.first.nearest(embedded)

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """As `Adapter.decode`."""
        return self.first.decode(embedded)
