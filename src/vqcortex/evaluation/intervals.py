"""How sure a mean over images is: percentile bootstrap, many measurements at once.

Source:
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.config import raise_all
from vqcortex.errors import DataError
from vqcortex.seeds import generator_for

AT_ONCE = 4_000_000  # draws held in memory: 32 MB of indices


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How intervals are made.

    Args:
        resamples: Bootstrap samples, at least 2.
        level: Share of them inside the interval, between 0 and 1.
        seed: Of the draws; the same draws serve every measurement of one group of images.
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def checked(self) -> Resampling:
        """Return self, or raise one ConfigError that lists everything wrong."""
        raise_all(self.problems())
        return self

    def problems(self) -> Iterator[str]:
        """Everything wrong, in words."""
        if self.resamples < 2:
            yield f"resamples={self.resamples} must be at least 2"
        if not 0 < self.level < 1:
            yield f"level={self.level} must be between 0 and 1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over images and what resampling the images does to it.

    Args:
        value: The mean.
        low: Lower end; None when there is one image only, which says nothing of the spread.
        high: Upper end; None as for `low`.
        images: Images averaged over.
    """

    value: float
    low: float | None
    high: float | None
    images: int


def intervals(values: Float[Tensor, "v b"], settings: Resampling | None = None) -> list[Interval]:
    """One interval per row; the images are resampled alike in all rows.

    The order of images matters to the draws: sort them (by id) where it may differ.

    Raises:
        DataError: There are no images, or a value is NaN or infinite.
    """
    settings = (settings or Resampling()).checked()
    images = values.shape[1]
    if not images:
        raise DataError("an interval over 0 images does not exist; give at least 1")
    if not values.isfinite().all():
        raise DataError("values hold NaN or infinity, whose mean says nothing; find out which image it comes from")
    exact = values.cpu().double()
    first = exact[:, :1]  # measured from the first image, so that equal values give an interval of exactly no width
    away = exact - first
    means = (first[:, 0] + away.mean(1)).tolist()
    if images == 1:
        return [Interval(value=mean, low=None, high=None, images=1) for mean in means]
    ordered = resampled_means(away, settings).sort(1).values + first
    low, high = (quantile(ordered, (1 + side * settings.level) / 2).tolist() for side in (-1, 1))
    return [
        Interval(value=mean, low=least, high=most, images=images)
        for mean, least, most in zip(means, low, high, strict=True)
    ]


def resampled_means(values: Float[Tensor, "v b"], settings: Resampling) -> Float[Tensor, "v s"]:
    """Means of s resamples of the images, float64; a resample is a row of counts, so one product does all."""
    images = values.shape[1]
    rng = generator_for(settings.seed, images, "bootstrap")
    step = max(1, AT_ONCE // images)
    parts = []
    for done in range(0, settings.resamples, step):
        rows = min(step, settings.resamples - done)
        drawn = torch.randint(images, (rows, images), generator=rng)
        times = torch.zeros(rows, images, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        parts.append(values.double() @ times.T / images)
    return torch.cat(parts, 1)


def quantile(ordered: Float[Tensor, "v s"], share: float) -> Float[Tensor, " v"]:
    """Linear between the two nearest; torch.quantile refuses more than 16 million numbers."""
    spot = share * (ordered.shape[1] - 1)
    below = min(int(spot), ordered.shape[1] - 2)
    return torch.lerp(ordered[:, below], ordered[:, below + 1], spot - below)


def interval(values: Float[Tensor, " b"], settings: Resampling | None = None) -> Interval:
    """Mean of one measurement with its interval; see `intervals`."""
    return intervals(values[None], settings)[0]


def paired_difference(
    ours: Float[Tensor, " b"], other: Float[Tensor, " b"], settings: Resampling | None = None
) -> Interval:
    """Mean of ours minus other on the same images, in the same order, with its interval."""
    return interval(ours.double() - other.double(), settings)


def ratio_intervals(
    ours: Float[Tensor, "v b"], other: Float[Tensor, "v b"], settings: Resampling | None = None
) -> list[Interval | None]:
    """Mean of ours over mean of other, row by row, with the interval when the images of both are resampled together.

    None where the interval of the other's mean reaches down to 0, or there is one image only: it would say nothing.

    Raises:
        DataError: There are no images, or a value is NaN or infinite.
    """
    settings = (settings or Resampling()).checked()
    bottoms = intervals(other, settings)
    if ours.shape[1] == 1:
        return [None] * len(ours)
    means = resampled_means(other, settings)
    sampled = (resampled_means(ours, settings) / means).sort(1).values
    low, high = (quantile(sampled, (1 + side * settings.level) / 2).tolist() for side in (-1, 1))
    values = [one.value for one in intervals(ours, settings)]
    return [
        Interval(value=value / bottom.value, low=least, high=most, images=ours.shape[1])
        if bottom.low is not None and bottom.low > 0
        else None
        for value, bottom, least, most in zip(values, bottoms, low, high, strict=True)
    ]
