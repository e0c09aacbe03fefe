"""Decoder footprint: which pixels a token controls, by swapping it for real and by the decoder's derivative there.

Distances are counted in positions along the longer axis (Chebyshev): 0 is a token's own patch, 1 the patches that
touch it. A region with its footprint is where an edit may be seen; what changes beyond it is a leak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vqcortex.config import raise_all
from vqcortex.editing.protocol import embed
from vqcortex.seeds import generator_for

Decode = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the tokens lie that a footprint is about.

    Args:
        grid: Rows and columns of their grid; of the finest one where a model has several.
        size: Height and width of the images in pixels.
        first: Positions of the laid-out grid before them; 0 where there is one grid.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    first: int = 0

    @property
    def reach(self) -> int:
        """The largest distance there is."""
        return max(self.grid) - 1

    def cells(self) -> Int[Tensor, "2 H W"]:
        """Row and column of the position whose patch each pixel belongs to."""
        rows, columns = (
            torch.arange(pixels) * cells // pixels for pixels, cells in zip(self.size, self.grid, strict=True)
        )
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))

    def distance(self, position: int) -> Int[Tensor, "H W"]:
        """Distance of each pixel from a position of the grid, counted in reading order."""
        at = torch.tensor(divmod(position, self.grid[1]))
        return (self.cells() - at[:, None, None]).abs().amax(0)

    def pixels(self, positions: Bool[Tensor, "b p q"]) -> Bool[Tensor, "b H W"]:
        """The pixels whose own position is marked."""
        row, column = self.cells().to(positions.device)
        return positions[:, row, column]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Share of a token's effect on the picture within each distance, 0 first; the last is 1.

    Args:
        swapped: Of the absolute change of pixels when the token is swapped.
        derivative: Of the absolute derivative of pixels, along random directions of its code.
        swaps: Tokens swapped.
    """

    swapped: Float[Tensor, " r"]
    derivative: Float[Tensor, " r"]
    swaps: int

    def radius(self, keep: float = 0.9) -> int:
        """The smallest distance within which both shares reach `keep`, above 0 and at most 1."""
        raise_all([] if 0 < keep <= 1 else [f"keep={keep} must be above 0 and at most 1"])
        reached = torch.minimum(self.swapped, self.derivative) >= keep - 1e-9
        return int(reached.nonzero()[0, 0])


def measure_footprint(
    decode: Decode,
    codebook: Float[Tensor, "k d"],
    alive: Bool[Tensor, " k"],
    tokens: Int[Tensor, "b h w"],
    image_ids: Sequence[str],
    place: Place,
    *,
    each: int = 4,
    seed: int = 0,
) -> Footprint:
    """Swap some tokens of each image, one at a time, and look which pixels change; the same with derivatives.

    Args:
        decode: Codes (b, d, h, w) to images.
        codebook: The codes as used for look-up.
        alive: True for the codes that are put in.
        tokens: Images to try it in, at least 1.
        image_ids: Draws depend on these.
        place: Where the tokens lie.
        each: Tokens per image, drawn without repeats, at least 1.
        seed: Of the draws.
    """
    raise_all([] if each >= 1 else [f"each={each} must be at least 1"])
    swapped, derivative = (torch.zeros(place.reach + 1, dtype=torch.float64) for _ in range(2))
    live, count = alive.cpu().nonzero()[:, 0], place.grid[0] * place.grid[1]
    swaps = 0
    for grid, name in zip(tokens, image_ids, strict=True):
        source = generator_for(seed, name, "footprint")
        positions = torch.randperm(count, generator=source)[:each]
        codes = live[torch.randint(len(live), (len(positions),), generator=source)]
        ways = torch.randn(len(positions), codebook.shape[1], generator=source)
        distance = torch.stack([place.distance(one) for one in positions.tolist()])
        changed = _swapped(decode, codebook, grid, positions + place.first, codes)
        slope = derivative_along(decode, embed(grid[None], codebook), positions + place.first, ways.to(codebook))
        for total, effect in ((swapped, changed), (derivative, slope)):
            total.index_add_(0, distance.flatten(), effect.cpu().double().flatten())
        swaps += len(positions)
    return Footprint(swapped=_within(swapped), derivative=_within(derivative), swaps=swaps)


@torch.no_grad()
def _swapped(
    decode: Decode, codebook: Tensor, grid: Tensor, positions: Tensor, codes: Tensor
) -> Float[Tensor, "n H W"]:
    """Mean absolute change over the channels when one token is swapped, a swap at a time."""
    grids = grid.flatten().repeat(len(positions) + 1, 1)
    grids[torch.arange(1, len(grids)), positions] = codes.to(grids)
    shown = decode(embed(grids.view(-1, *grid.shape), codebook))
    return (shown[1:] - shown[:1]).abs().mean(1)


def derivative_along(
    decode: Decode, embedded: Float[Tensor, "1 d h w"], positions: Int[Tensor, " n"], ways: Float[Tensor, "n d"]
) -> Float[Tensor, "n H W"]:
    """Absolute derivative of pixels, mean over the channels, as the code at one position moves along a direction."""
    moves = torch.zeros(len(positions), embedded.shape[1], embedded[0, 0].numel()).to(embedded)
    moves[torch.arange(len(positions)), :, positions] = ways
    many = embedded.detach().repeat(len(positions), 1, 1, 1)
    # By two backward passes: the derivative is linear in what the first is fed. Every layer knows two, and of attention
    # that kernel which spells its arithmetic out.
    point = many.requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        shown = decode(point)
        fed = torch.ones_like(shown, requires_grad=True)
        (back,) = torch.autograd.grad(shown, point, fed, create_graph=True)
        (slope,) = torch.autograd.grad(back, fed, moves.view_as(many))
    return slope.abs().mean(1)


def _within(total: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """Shares of the sum up to each distance; all in its own patch where nothing changed at all."""
    whole = total.sum()
    return (total.cumsum(0) / whole).clamp(max=1) if whole > 0 else torch.ones_like(total)


def dilated(free: Bool[Tensor, "b h w"], radius: int) -> Bool[Tensor, "b h w"]:
    """A region and all positions up to `radius` from it, at least 0."""
    raise_all([] if radius >= 0 else [f"radius={radius} must be at least 0"])
    return F.max_pool2d(free[:, None].float(), 2 * radius + 1, 1, radius)[:, 0] > 0
