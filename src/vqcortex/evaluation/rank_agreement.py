"""How alike two maps order the positions of an image: Spearman's rank correlation, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from vqcortex.errors import DataError

FLAT = 1e-6  # a map whose range is below this share of its largest value orders nothing: what is left is rounding


@final
@dataclass(frozen=True, slots=True)
class RankAgreement:
    """Rank correlation of two maps per image.

    Args:
        rho: Spearman's correlation, -1 to 1, float64; 0 where it is not defined, never NaN.
        is_flat: True where it is not defined, because one of the maps is constant.
    """

    rho: Float[Tensor, " b"]
    is_flat: Bool[Tensor, " b"]


def rank_correlation(one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"]) -> RankAgreement:
    """Compare two maps of the same images; equal values share the mean of their ranks.

    Raises:
        DataError: A map holds NaN or infinity.

    Source:
        Spearman 1904, The American Journal of Psychology 15, 72-101.

    Example:
        >>> rising = torch.arange(4.0).view(1, 2, 2)
        >>> rank_correlation(rising, -rising.exp()).rho.tolist()
        [-1.0]
    """
    maps = [values.detach().flatten(1).double().cpu().numpy() for values in (one, other)]
    if not all(np.isfinite(values).all() for values in maps):
        raise DataError("a map holds NaN or infinity, which has no rank; find out which image it comes from")
    first, second = (_centred_ranks(values) for values in maps)
    size = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    is_flat = np.logical_or(*map(_is_flat, maps)) | (size == 0)
    rho = np.where(is_flat, 0.0, (first * second).sum(1) / np.where(size == 0, 1, size))
    return RankAgreement(torch.from_numpy(rho.clip(-1, 1)), torch.from_numpy(is_flat))


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = rankdata(values, axis=1)
    return np.asarray(ranks - ranks.mean(1, keepdims=True))


def _is_flat(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.ptp(values, axis=1) <= FLAT * np.abs(values).max(1))
