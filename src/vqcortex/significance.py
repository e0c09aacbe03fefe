"""How surely a mean differs from nothing, and what many such questions asked at once cost.

Source:
    Phipson and Smyth 2010, "Permutation p-values should never be zero", Statistical Applications in Genetics and
    Molecular Biology 9(1), equation 2; Holm 1979, Scandinavian Journal of Statistics 6, 65-70; Benjamini and Hochberg
    1995, Journal of the Royal Statistical Society B 57, 289-300.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.stats import false_discovery_control
from torch import Tensor

from vqcortex.errors import ConfigError, DataError
from vqcortex.seeds import generator_for

AT_ONCE = 4_000_000  # signs held in memory: 32 MB
NEAR = 1e-12  # sums nearer than this share of the largest possible one are equal: rounding must not decide


def sign_flip_p(differences: Float[Tensor, "v b"], *, draws: int = 9999, seed: int = 0) -> Float[Tensor, " v"]:
    """Two-sided p-values of "the differences of a pair are as likely to be -x as x", one per row, float64.

    The observed signs count as one draw, so a p-value is at least 1 / (draws + 1). Rows share their draws. The order
    of the b images matters to the draws: sort them by id where it may differ.

    Args:
        differences: Paired differences over the same b images, at least 1.
        draws: Random signs, at least 1.
        seed: Of the draws.

    Raises:
        ConfigError: draws is below 1.
        DataError: There are no images, or a difference is NaN or infinite.

    Example:
        >>> sign_flip_p(torch.tensor([[1.0] * 12, [1.0, -1.0] * 6]), draws=999).round(decimals=3).tolist()
        [0.001, 1.0]
    """
    if draws < 1:
        raise ConfigError(f"draws={draws} must be at least 1")
    images = differences.shape[1]
    if not images or not differences.isfinite().all():
        raise DataError("a test needs at least 1 image and finite differences; find out which image has none")
    values = differences.cpu().double()
    least = values.sum(1).abs() - NEAR * values.abs().sum(1)
    beaten = torch.zeros(len(values), dtype=torch.float64)
    source, step = generator_for(seed, images, "signs"), max(1, AT_ONCE // images)
    for done in range(0, draws, step):
        signs = torch.randint(2, (images, min(step, draws - done)), generator=source).double().mul_(2).sub_(1)
        beaten += ((values @ signs).abs() >= least[:, None]).sum(1)
    return (1 + beaten) / (1 + draws)


def holm(p: Sequence[float]) -> list[float]:
    """P-values such that rejecting those up to alpha errs anywhere with probability alpha at most.

    Example:
        >>> [round(one, 3) for one in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, most = [0.0] * len(p), 0.0
    for place, number in enumerate(order):
        most = max(most, min(1.0, (len(p) - place) * p[number]))
        adjusted[number] = most
    return adjusted


def false_discovery(p: Sequence[float]) -> list[float]:
    """P-values such that of those up to alpha a share of alpha at most is false, on average.

    Example:
        >>> [round(one, 3) for one in false_discovery([0.01, 0.04, 0.03])]
        [0.03, 0.04, 0.04]
    """
    return [float(one) for one in false_discovery_control(list(p))] if p else []
