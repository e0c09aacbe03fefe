"""What every vector-quantized model owes the rest of vqcortex, whatever its family.

Pixels at this border are float, RGB, in [0, 1]; a family's own range stays inside its file. Everything after `embed`
is differentiable, so attribution and search work on any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Adapter(Protocol):
    """One vector-quantized model.

    Attributes:
        name: What `load_model` was given: "zoo:fashion".
        identity: SHA-256 over everything that decides its numbers; two models with one identity are one model.
        grid: Rows and columns of a token grid, (h, w).
        size: Height and width of its images in pixels, (H, W).
        concepts: What `generate` can be asked for, in order; empty when it cannot generate.
        codebook: The codes as used for look-up, (k, d).
    """

    name: str
    identity: str
    grid: tuple[int, int]
    size: tuple[int, int]
    concepts: tuple[str, ...]

    @property
    def codebook(self) -> Float[Tensor, "k d"]: ...

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        """Tokens of images in [0, 1]; the same whatever else is in the batch."""
        ...

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Codes of a grid, channels first."""
        ...

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        """The token whose code lies nearest, at every position."""
        ...

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1] from codes; differentiable, any real numbers are allowed in."""
        ...

    def to(self, device: str) -> Adapter:
        """Move to a device and return self."""
        ...


@runtime_checkable
class Generator(Adapter, Protocol):
    """A model that also draws grids of a concept."""

    def generate(self, concept: Int[Tensor, " b"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "b h w"]:
        """One grid per image id, a function of (concept, image id, seed) alone."""
        ...
