"""Cliff's delta of counts, of all codes at once: how often an image of one group holds more than one of the other.

Counts of tokens are small whole numbers, so a histogram of images per count says everything: no pair is ever formed,
and 10,000 x 10,000 images cost as much as their counting.

Source:
    Cliff 1993, "Dominance statistics: ordinal analyses to answer ordinal questions", Psychological Bulletin 114,
    equations for d and its unbiased variance; Feng and Cliff 2004, Journal of Modern Applied Statistical Methods 3(2),
    the asymmetric interval; Mann and Whitney 1947 with the correction for ties, the test. Where we differ from Yang et
    al. 2025, arXiv:2506.00698, published code: the whole delta, not half of it; an interval and a test with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from scipy.stats import norm
from torch import Tensor

from vqcortex.errors import ConfigError, DataError, TokenError

AT_ONCE = 2_000_000  # tokens sorted together: 16 MB


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Cliff's delta of m measurements.

    Args:
        delta: Share of pairs in which ours is larger minus share in which theirs is, -1 to 1.
        low: Lower end of its interval.
        high: Upper end.
        p: Two-sided p-value of "neither tends to be larger", from ranks.
    """

    delta: Float[Tensor, " m"]
    low: Float[Tensor, " m"]
    high: Float[Tensor, " m"]
    p: Float[Tensor, " m"]


def live_codes(*grids: Int[Tensor, "_ h w"]) -> Int[Tensor, " m"]:
    """Codes that occur in any of the groups, ascending.

    Raises:
        TokenError: A token is below 0.
    """
    codes = torch.cat([one.unique() for one in grids]).unique().long().cpu()
    if len(codes) and codes[0] < 0:
        raise TokenError(f"tokens begin at {int(codes[0])} but codes are numbered from 0; was the store written by us?")
    return codes


def count_histogram(tokens: Int[Tensor, "n h w"], codes: Int[Tensor, " m"]) -> Int[Tensor, "m v"]:
    """Images that hold each code 0, 1, ..., h*w times.

    Args:
        tokens: The images.
        codes: Ascending; tokens that are none of them are passed over.
    """
    cells = tokens.shape[1] * tokens.shape[2]
    found = torch.zeros(len(codes), cells + 1, dtype=torch.int64)
    for part in tokens.flatten(1).cpu().long().split(max(1, AT_ONCE // max(1, cells))):
        place = torch.searchsorted(codes, part).clamp(max=len(codes) - 1)
        known = codes[place] == part
        image = torch.arange(len(part))[:, None].expand_as(part)
        keys, times = (image * len(codes) + place)[known].unique(return_counts=True)
        found.view(-1).index_add_(0, (keys % len(codes)) * (cells + 1) + times, torch.ones_like(times))
    found[:, 0] = len(tokens) - found[:, 1:].sum(1)
    return found


def compare_histograms(ours: Real[Tensor, "m v"], theirs: Real[Tensor, "m v"], level: float = 0.95) -> Effect:
    """Cliff's delta, its interval and its test, row by row, from images per count.

    Args:
        ours: Images of our group per count; each row holds all of them.
        theirs: Likewise of the other group.
        level: Of the interval, between 0 and 1.

    Raises:
        DataError: A group has fewer than 2 images, which says nothing of its spread.
    """
    a, b = ours.cpu().double(), theirs.cpu().double()
    na, nb = a.sum(1), b.sum(1)
    if len(a) and min(float(na.min()), float(nb.min())) < 2:
        raise DataError(f"groups of {na.min():g} and {nb.min():g} images cannot be compared; give at least 2 of each")
    row, column = _above(b) / nb[:, None], -_above(a) / na[:, None]  # dominance of one image over the other group
    delta = delta_of_histograms(a, b)
    away = (
        nb**2 * (a * (row - delta[:, None]) ** 2).sum(1)
        + na**2 * (b * (column - delta[:, None]) ** 2).sum(1)
        - (na * nb - (a * b).sum(1) - na * nb * delta**2)
    ) / (na * nb * (na - 1) * (nb - 1))
    # The unbiased estimate can fall below what is possible; Cliff's own lower bound stands in.
    variance = torch.maximum(away, (1 - delta**2) / (na * nb - 1))
    low, high = _interval(delta, variance, torch.minimum(na, nb), level)
    return Effect(delta=delta, low=low, high=high, p=_rank_p(a, b, delta))


def delta_of_histograms(ours: Real[Tensor, "m v"], theirs: Real[Tensor, "m v"]) -> Float[Tensor, " m"]:
    """Cliff's delta alone; rows may hold shares or weights instead of numbers of images."""
    a, b = ours.cpu().double(), theirs.cpu().double()
    return (a * _above(b)).sum(1) / (a.sum(1) * b.sum(1))


def cliffs_delta(ours: Real[Tensor, " n"], theirs: Real[Tensor, " m"], level: float = 0.95) -> Effect:
    """Cliff's delta of one measurement in two independent groups.

    Raises:
        DataError: A group has fewer than 2 images, or a value is NaN.

    Example:
        >>> cliffs_delta(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 2])).delta.round(decimals=3).tolist()
        [0.333]
    """
    both = torch.cat([ours.cpu().double(), theirs.cpu().double()])
    if both.isnan().any():
        raise DataError("values hold NaN, which is neither larger nor smaller; find out which image it comes from")
    if not len(both):
        raise DataError("groups of 0 and 0 images cannot be compared; give at least 2 of each")
    place = both.unique(return_inverse=True)[1]
    most = int(place.max()) + 1
    a, b = (one.bincount(minlength=most)[None] for one in place.split([len(ours), len(theirs)]))
    return compare_histograms(a, b, level)


def paired_signs(ours: Real[Tensor, " n"], theirs: Real[Tensor, " n"]) -> Float[Tensor, " n"]:
    """+1, 0 or -1 for every image: which of its two counts is larger. Their mean is the paired dominance, -1 to 1."""
    return (ours.double() - theirs.double()).sign()


def check_groups(groups: dict[str, Int[Tensor, "_ h w"]]) -> None:
    """Return quietly if there is something to compare.

    Raises:
        ConfigError: Fewer than two groups.
        DataError: A group is empty or has one image.
    """
    if len(groups) < 2:
        raise ConfigError(f"{len(groups)} attribute group(s) given; an audit compares at least 2: add to --groups")
    for name, tokens in groups.items():
        if len(tokens) < 2:
            raise DataError(
                f"group {name!r} has {len(tokens)} image(s); at least 2 are needed to say anything, and some hundred "
                "to say it surely"
            )


def _above(histogram: Tensor) -> Tensor:
    """For every count: images with fewer minus images with more."""
    up_to = histogram.cumsum(1)
    return (up_to - histogram) - (up_to[:, -1:] - up_to)


def _interval(delta: Tensor, variance: Tensor, smaller: Tensor, level: float) -> tuple[Tensor, Tensor]:
    z = float(norm.ppf((1 + level) / 2))
    spread = z * (variance * ((1 - delta**2) ** 2 + z**2 * variance)).sqrt()
    bottom = 1 - delta**2 + z**2 * variance
    low, high = (delta - delta**3 - spread) / bottom, (delta - delta**3 + spread) / bottom
    # Where groups do not overlap the variance is 0 and says nothing: the size of the smaller group does.
    nearest = (smaller - z**2) / (smaller + z**2)
    low = torch.where(delta >= 1, nearest, low).where(delta > -1, delta)
    high = torch.where(delta <= -1, -nearest, high).where(delta < 1, delta)
    return low.clamp(-1, 1), high.clamp(-1, 1)


def _rank_p(a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
    """Mann-Whitney in its normal approximation, corrected for ties."""
    na, nb = a.sum(1), b.sum(1)
    n, tied = na + nb, a + b
    variance = na * nb / 12 * ((n + 1) - (tied**3 - tied).sum(1) / (n * (n - 1)))
    z = (delta * na * nb / 2).abs() / variance.clamp(min=1e-300).sqrt()
    p = torch.from_numpy(2 * norm.sf(np.where(variance.numpy() > 0, z.numpy(), 0.0)))
    return p.clamp(max=1.0)
