"""What takes the place of hidden tokens: flat pixels after decoding, or other codes before it.

The fill can decide the verdict (black squares on a black background hide nothing), so never report one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import Adapter, split_levels
from vqcortex.errors import ConfigError
from vqcortex.seeds import generator_for

Where = Literal["pixels", "tokens"]
Filler = Callable[[Int[Tensor, " r"], Bool[Tensor, "r h w"]], Float[Tensor, "r 3 H W"]]
"""From numbers of images and what is hidden in each to pictures; an image may come many times."""


@runtime_checkable
class Fill(Protocol):
    """Images whose hidden positions have been filled.

    Attributes:
        name: As in the FILLS registry.
        where: "pixels" when filled after decoding, "tokens" when before.
    """

    @property
    def name(self) -> str: ...

    @property
    def where(self) -> Where: ...

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        hidden: Bool[Tensor, "b h w"],
        image_ids: Sequence[str],
        pixels: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1]; `pixels` are the decoded tokens if the caller has them, else None."""
        ...


@runtime_checkable
class PutsCodes(Protocol):
    """A fill that puts codes in before decoding: the same at a position whatever else is hidden."""

    def codes(self, adapter: Adapter, image_ids: Sequence[str]) -> Float[Tensor, "b d h w"]:
        """What each position of each image would hold if it were hidden."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Black:
    """Black pixels after decoding: the published fill.

    Args:
        level: Brightness of every channel, 0 to 1.
    """

    name: str = "black"
    where: Where = "pixels"
    level: float = 0.0

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        hidden: Bool[Tensor, "b h w"],
        image_ids: Sequence[str],
        pixels: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        return painted(adapter, decoded(adapter, tokens) if pixels is None else pixels, hidden, self.level)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grey:
    """Mid-grey pixels after decoding.

    Args:
        level: Brightness of every channel, 0 to 1.
    """

    name: str = "grey"
    where: Where = "pixels"
    level: float = 0.5

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        hidden: Bool[Tensor, "b h w"],
        image_ids: Sequence[str],
        pixels: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        return painted(adapter, decoded(adapter, tokens) if pixels is None else pixels, hidden, self.level)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeanCode:
    """The average code in token space, then decode.

    Args:
        frequency: How often each code is used, not negative, any scale: (k,) for one mean code, (k, h, w)
            for that of each position. `code_frequency` counts it.
    """

    frequency: Float[Tensor, "k ..."]
    name: str = "mean_code"
    where: Where = "tokens"

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        hidden: Bool[Tensor, "b h w"],
        image_ids: Sequence[str],
        pixels: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        embedded = adapter.embed(tokens)
        return adapter.decode(torch.where(hidden[:, None], self.codes(adapter, image_ids).to(embedded), embedded))

    def codes(self, adapter: Adapter, image_ids: Sequence[str]) -> Float[Tensor, "b d h w"]:
        """The mean code, the same for every image."""
        share = shares(self.frequency, len(adapter.codebook), adapter.grid)  # (k, h or 1, w or 1)
        mean = torch.einsum("kd,khw->dhw", adapter.codebook.double().cpu(), share)
        return mean.to(adapter.codebook).expand(len(image_ids), -1, *adapter.grid)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ResampledCodes:
    """A code drawn by usage for every hidden position, then decode.

    What an image gets depends on (seed, image id, position) alone: the same in every arm and for every n.
    A draw may be the code that stood there.

    Args:
        frequency: How often each code is used, not negative, any scale: (k,) overall, (k, h, w) per position.
        seed: Draws depend on this and on the image id.
    """

    frequency: Float[Tensor, "k ..."]
    seed: int = 0
    name: str = "resampled_codes"
    where: Where = "tokens"

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        hidden: Bool[Tensor, "b h w"],
        image_ids: Sequence[str],
        pixels: Float[Tensor, "b 3 H W"] | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        drawn = self.drawn(len(adapter.codebook), adapter.grid, image_ids).to(tokens.device)
        return decoded(adapter, torch.where(hidden, drawn, tokens))

    def codes(self, adapter: Adapter, image_ids: Sequence[str]) -> Float[Tensor, "b d h w"]:
        """The codes drawn for each image."""
        drawn = self.drawn(len(adapter.codebook), adapter.grid, image_ids)
        return adapter.embed(drawn.to(adapter.codebook.device))

    def drawn(self, codes: int, grid: tuple[int, int], image_ids: Sequence[str]) -> Int[Tensor, "b h w"]:
        """A whole grid of draws per image, on the CPU."""
        share = shares(self.frequency, codes, grid).expand(codes, *grid)
        upto = share.flatten(1).T.contiguous().cumsum(1)  # (h*w, k)
        upto = upto / upto[:, -1:]  # ends at exactly 1, so that codes never used are never drawn
        draws = [
            torch.rand(len(upto), 1, dtype=torch.float64, generator=generator_for(self.seed, name, "fill"))
            for name in image_ids
        ]
        found = torch.searchsorted(upto, torch.cat(draws, 1), right=True)  # (h*w, b)
        return found.T.reshape(-1, *grid)


def filler(
    fill: Fill,
    adapter: Adapter,
    tokens: Int[Tensor, "b h w"],
    image_ids: Sequence[str],
    pixels: Float[Tensor, "b 3 H W"],
) -> Filler:
    """A fill made ready for many maskings of the same images: what depends on the image alone is made once.

    Args:
        pixels: The decoded tokens.
    """
    if not isinstance(fill, PutsCodes):
        return lambda image, hidden: fill(
            adapter, tokens[image], hidden, [image_ids[one] for one in image.tolist()], pixels[image]
        )
    embedded, codes = adapter.embed(tokens), fill.codes(adapter, image_ids)
    return lambda image, hidden: adapter.decode(torch.where(hidden[:, None], codes[image], embedded[image]))


def decoded(adapter: Adapter, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 H W"]:
    """Images of tokens."""
    return adapter.decode(adapter.embed(tokens))


def painted(
    adapter: Adapter, pixels: Float[Tensor, "b 3 H W"], hidden: Bool[Tensor, "b h w"], level: float
) -> Float[Tensor, "b 3 H W"]:
    """The images with the pixels of hidden positions at one brightness; with several levels, of any level."""
    size = (pixels.shape[2], pixels.shape[3])
    covered = [over_pixels(grid, size) for grid in level_grids(hidden, adapter)]
    return pixels.masked_fill(torch.stack(covered).any(0)[:, None], level)


def level_grids(grids: Tensor, adapter: Adapter) -> list[Tensor]:
    """The grids (..., h, w) of a model's levels; the grid itself where there is but one."""
    return [grids] if len(adapter.levels) == 1 else split_levels(grids, adapter.levels)


def over_pixels(hidden: Bool[Tensor, "b h w"], size: tuple[int, int]) -> Bool[Tensor, "b H W"]:
    """Positions spread over the pixels nearest to them; pixel y belongs to row floor(y * h / H)."""
    rows, columns = (owners(n, pixels, hidden.device) for n, pixels in zip(hidden.shape[1:], size, strict=True))
    return hidden[:, rows][:, :, columns]


def owners(positions: int, pixels: int, device: torch.device | str = "cpu") -> Int[Tensor, " pixels"]:
    """Which row (column) of the grid each row (column) of pixels belongs to."""
    return torch.arange(pixels, device=device) * positions // pixels


def code_frequency(tokens: Int[Tensor, "b h w"], codes: int, by_position: bool = False) -> Float[Tensor, "k ..."]:
    """Share of each code among the tokens, (k,), or at each position, (k, h, w)."""
    grid = (tokens.shape[1], tokens.shape[2])
    cells = grid[0] * grid[1]
    place = torch.arange(cells, device=tokens.device) if by_position else 0
    width = cells if by_position else 1
    counts = torch.bincount((tokens.flatten(1) * width + place).flatten(), minlength=codes * width)
    share = counts.double() / (len(tokens) * cells / width)
    return (share.reshape(codes, *grid) if by_position else share).float().cpu()


def shares(frequency: Float[Tensor, "k ..."], codes: int, grid: tuple[int, int]) -> Float[Tensor, "k p q"]:
    """Frequencies as float64 shares on the CPU that sum to one over codes, (k, 1, 1) or (k, h, w).

    Raises:
        ConfigError: They do not fit codebook or grid, are negative, not finite, or all zero.
    """
    if tuple(frequency.shape) not in {(codes,), (codes, *grid)}:
        raise ConfigError(
            f"frequency has shape {tuple(frequency.shape)} but ({codes},) or {(codes, *grid)} is needed; "
            "count it with code_frequency(tokens, codes) on the same model"
        )
    share = frequency.double().cpu().reshape(codes, *(grid if frequency.ndim == 3 else (1, 1)))
    total = share.sum(0)
    if not share.isfinite().all() or (share < 0).any() or (total == 0).any():
        raise ConfigError(
            "frequency must be finite, not negative, and above 0 for some code at every position; "
            "count it with code_frequency on at least one image"
        )
    return share / total
