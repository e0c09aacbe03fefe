"""Which positions of an image matter most, and where a concept sits on the grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vqcortex.errors import ConfigError, DataError, ShapeError

LOW, HIGH = (
    0.02,
    0.98,
)  # quantiles that become the ends of an activation map: a lone peak does not set the scale
AT_ONCE = 1 << 17  # sort keys made at a time: 1 MB, so that they stay in the cache


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRanking:
    """Positions of each image, the most important first.

    Args:
        rows: Grid row of each, (b, n).
        columns: Grid column of each, (b, n).
        tokens: Token at each, (b, n).
        importance: Its importance, as given, (b, n).
    """

    rows: Int[Tensor, "b n"]
    columns: Int[Tensor, "b n"]
    tokens: Int[Tensor, "b n"]
    importance: Float[Tensor, "b n"]


def rank_tokens(
    importance: Float[Tensor, "b h w"], tokens: Int[Tensor, "b h w"], keep: int | None = None
) -> TokenRanking:
    """Return each image's positions, most important first; ties go to the first, row by row.

    Args:
        keep: Positions kept per image, 1..h*w; None: all.
    """
    where = rank_positions(importance, keep).to(importance.device)
    return TokenRanking(
        rows=where // importance.shape[2],
        columns=where % importance.shape[2],
        tokens=tokens.flatten(1).gather(1, where.to(tokens.device)),
        importance=importance.flatten(1).gather(1, where),
    )


def rank_positions(importance: Float[Tensor, "b h w"], keep: int | None = None) -> Int[Tensor, "b n"]:
    """Return row-major positions (row * w + column), most important first, on the CPU.

    Ties are settled as in `rank_tokens`.

    Args:
        keep: Positions kept per image, 1..h*w; None: all.

    Raises:
        ConfigError: `keep` is outside 1..h*w.
        DataError: The importance holds NaN.
    """
    cells = importance.shape[1] * importance.shape[2]
    keep = cells if keep is None else keep
    if not 1 <= keep <= cells:
        raise ConfigError(
            f"{keep} positions of a {importance.shape[1]}x{importance.shape[2]} grid cannot be kept; "
            f"1 to {cells} can; lower the number"
        )
    values = importance.detach().flatten(1).cpu()
    if bool(values.sum().isnan()) and bool(values.isnan().any()):
        raise DataError("the importance holds NaN, which has no rank; numbers are needed; score the images again")
    return torch.from_numpy(_ranked(values, keep))


def _ranked(values: Float[Tensor, "b v"], keep: int) -> NDArray[np.int64]:
    if values.dtype == torch.float64:
        return np.argsort(-values.numpy(), axis=1, kind="stable")[:, :keep].copy()
    found = np.empty((len(values), keep), np.int64)
    step = max(1, AT_ONCE // values.shape[1])

    def rank_from(start: int) -> None:
        found[start : start + step] = _lowest_keys(values[start : start + step].float().numpy(), keep)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy sorts without holding Python's lock
        list(pool.map(rank_from, range(0, len(values), step)))
    return found


def _lowest_keys(values: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """Rank by whole numbers made of value and position, so that a plain fast sort settles ties."""
    bits = (values + np.float32(0)).view(np.int32)  # adding 0 makes -0 equal to 0
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)  # whole numbers in the order of the floats
    keys = np.invert(bits, dtype=np.int64)  # the largest value gets the lowest key
    keys <<= 32
    keys |= np.arange(values.shape[1])
    if keep < values.shape[1]:
        keys.partition(keep - 1, axis=1)
    return np.sort(keys[:, :keep], axis=1) & 0xFFFFFFFF


def activation_map(importance: Float[Tensor, "b h w"], *, signed: bool = False) -> Float[Tensor, "b h w"]:
    """Return each image's importance on a common scale, for pictures and for averaging.

    A single extreme position does not set the scale: the ends are the 2 % and 98 % quantiles of the image's
    positions, and what lies beyond is cut. Where quantiles coincide (nearly all positions equal), the
    extremes are the ends.

    Args:
        signed: False: [0, 1] from the low end to the high end, whatever the sign. True: [-1, 1], zero stays
            zero and the 98 % quantile of the absolute values becomes 1.

    Returns:
        The maps; an image whose positions are all alike gives zeros.
    """
    flat = importance.flatten(1)
    size = flat.abs() if signed else flat
    order = size.sort(1).values
    low = torch.zeros_like(order[:, :1]) if signed else _quantile(order, LOW)
    high = _quantile(order, HIGH)
    narrow = high <= low
    high = torch.where(narrow, order[:, -1:], high)
    low = low if signed else torch.where(narrow, order[:, :1], low)
    scale = torch.where(high > low, high - low, 1)
    scaled = ((flat - low) / scale).clamp(-1 if signed else 0, 1)
    return scaled.view_as(importance)


def _quantile(order: Float[Tensor, "b v"], share: float) -> Float[Tensor, "b 1"]:
    """Linear interpolation between neighbours; torch.quantile refuses large batches."""
    place = share * (order.shape[1] - 1)
    below = int(place)
    above = min(below + 1, order.shape[1] - 1)
    return torch.lerp(order[:, below : below + 1], order[:, above : above + 1], place - below)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptMaps:
    """Activation maps averaged per concept, as sums that can be added shard by shard.

    Args:
        images: Images per concept, (c,).
        total: Sum of their maps, (c, h, w).
        squares: Sum of the squared maps, (c, h, w).
    """

    images: Int[Tensor, " c"]
    total: Float[Tensor, "c h w"]
    squares: Float[Tensor, "c h w"]

    def __add__(self, other: ConceptMaps) -> ConceptMaps:
        return ConceptMaps(
            images=self.images + other.images,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )

    @property
    def mean(self) -> Float[Tensor, "c h w"]:
        """Mean map per concept; NaN for a concept without images."""
        return self.total / self.images[:, None, None]

    @property
    def error(self) -> Float[Tensor, "c h w"]:
        """Standard error of the mean over images; NaN for a concept with fewer than two images."""
        count = self.images[:, None, None].double()
        spread = (self.squares / count - self.mean.square()).clamp(min=0)
        return (spread / torch.where(count > 1, count - 1, torch.nan)).sqrt()


def sum_maps(maps: Float[Tensor, "b h w"], concept: Int[Tensor, " b"], concepts: int) -> ConceptMaps:
    """Return the sums of one shard's activation maps per concept; add those of all shards up.

    Args:
        concepts: How many concepts there are.

    Raises:
        ConfigError: A concept is outside 0..concepts-1.
        ShapeError: There are not as many concepts as maps.
    """
    check_concepts(concept, len(maps), concepts)
    maps, concept = maps.double().cpu(), concept.cpu()
    empty = torch.zeros(concepts, *maps.shape[1:], dtype=torch.float64)
    return ConceptMaps(
        images=torch.bincount(concept, minlength=concepts),
        total=empty.index_add(0, concept, maps),
        squares=empty.index_add(0, concept, maps.square()),
    )


def check_concepts(concept: Int[Tensor, " b"], images: int, concepts: int) -> None:
    """Return quietly if there is one concept in 0..concepts-1 per image."""
    if len(concept) != images:
        raise ShapeError(f"{images} images came with {len(concept)} concepts; one per image is needed")
    low, high = (int(concept.min()), int(concept.max())) if len(concept) else (0, 0)
    if low < 0 or high >= concepts:
        raise ConfigError(
            f"concepts span [{low}, {high}] but {concepts} concepts are numbered "
            f"[0, {concepts - 1}]; does the list of concepts belong to this store?"
        )
