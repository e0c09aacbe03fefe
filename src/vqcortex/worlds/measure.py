"""Marks for scores where the truth is known: do the true positions, or codes, come out on top?

Rows are images with a score per position, or one row with a score per code. Ties count half in the AUROC and go against
the explanation everywhere else: a true one that ties with others comes last among them.

Source:
    Hanley and McNeil 1982, Radiology 143, 29-36 (AUROC as a share of ordered pairs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.errors import DataError
from vqcortex.significance import false_discovery, sign_flip_p
from vqcortex.worlds.protocol import WITH

LEVEL = 0.05
"""Share of false ones among the codes found, on average."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """How well scores find what is true, one number per row.

    Args:
        auroc: Share of (true, other) pairs in which the true one has the larger score.
        precision: Share of true ones among as many best as are true.
        recall: Share of the true ones among the best `top`.
        worst: Rank of the last true one, from 1.
    """

    auroc: Float[Tensor, " b"]
    precision: Float[Tensor, " b"]
    recall: Float[Tensor, " b"]
    worst: Int[Tensor, " b"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Codes whose importance goes with the concept more than chance allows.

    Args:
        tested: Codes that stand in a compared image, ascending.
        p: Of each, two-sided.
        codes: Those found at a false discovery rate of 5 %.
    """

    tested: Int[Tensor, " t"]
    p: Float[Tensor, " t"]
    codes: Int[Tensor, " f"]


def mark(scores: Float[Tensor, "b n"], truth: Bool[Tensor, "b n"], top: int) -> Marks:
    """Return the marks of every row.

    Args:
        scores: Higher is more; minus infinity for "never seen".
        truth: What should come out on top; at least one True and one False per row.
        top: Best ones looked at for the recall, at least 1.

    Raises:
        DataError: A row in which all or none are true, or a score that is NaN.
    """
    true = truth.sum(1)
    if ((true == 0) | (true == truth.shape[1])).any():
        raise DataError("a row in which all or none are true has no marks; leave it out")
    if scores.isnan().any():
        raise DataError("scores hold NaN, which has no rank; find out which method gave it")
    values = scores.double()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    upto = torch.searchsorted(ordered, values, right=True)
    # Ranks from 1, equal scores sharing their mean.
    wins = ((below + upto + 1) / 2 * truth).sum(1) - true * (true + 1) / 2
    ranks = ranks_of(values, truth)
    return Marks(
        auroc=wins / (true * (truth.shape[1] - true)),
        precision=(truth & (ranks <= true[:, None])).sum(1) / true.double(),
        recall=(truth & (ranks <= top)).sum(1) / true.double(),
        worst=(ranks * truth).amax(1),
    )


def ranks_of(scores: Float[Tensor, "b n"], truth: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Places from 1, best first; of equal scores those that are not true come first."""
    by_truth = truth.int().sort(dim=1, stable=True).indices
    order = by_truth.gather(1, scores.gather(1, by_truth).sort(dim=1, descending=True, stable=True).indices)
    places = torch.arange(1, scores.shape[1] + 1).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def mean_per_code(tokens: Int[Tensor, "b h w"], importance: Float[Tensor, "b h w"], k: int) -> Float[Tensor, " k"]:
    """Mean importance of a code over the positions that hold it; minus infinity for a code that is nowhere."""
    flat = tokens.flatten()
    total = torch.zeros(k, dtype=torch.float64).index_add_(0, flat, importance.flatten().double())
    times = flat.bincount(minlength=k)
    return torch.where(times > 0, total / times.clamp(min=1), -torch.inf)


def find_codes(
    tokens: Int[Tensor, "b h w"],
    importance: Float[Tensor, "b h w"],
    truth: Int[Tensor, " b"],
    k: int,
    *,
    draws: int = 9999,
    seed: int = 0,
    level: float = LEVEL,
) -> Found:
    """Test for every code whether its importance goes with the concept, and keep those that pass.

    An image's value for a code is the importance of all positions that hold it. Images with and without the concept are
    compared two by two, in order: if a code's value has nothing to do with the concept, either may be the larger one,
    and the signs of the differences are coins. That holds exactly for images that took no part in training.

    Args:
        tokens: Test images.
        importance: For the concept "with", in images of either concept.
        truth: 1 or 0 per image.
        k: Codes in the codebook.
        draws: Random signs; p-values are 1 / (draws + 1) at least.
        seed: Of the draws.
        level: False discovery rate.

    Raises:
        DataError: No image has, or none lacks, the concept.
    """
    ones, others = (truth == WITH).nonzero()[:, 0], (truth != WITH).nonzero()[:, 0]
    pairs = min(len(ones), len(others))
    if not pairs:
        raise DataError(f"{len(ones)} images with and {len(others)} without the concept make no pair; take more images")
    sums = torch.zeros(len(tokens), k, dtype=torch.float64)
    sums.scatter_add_(1, tokens.flatten(1), importance.flatten(1).double())
    compared = torch.cat([ones[:pairs], others[:pairs]])
    tested = tokens[compared].unique()
    differences = (sums[ones[:pairs]] - sums[others[:pairs]]).T[tested]
    p = sign_flip_p(differences, draws=draws, seed=seed)
    passed = torch.tensor(false_discovery(p.tolist())) <= level
    return Found(tested=tested, p=p, codes=tested[passed])


def rank_list(scores: Float[Tensor, " n"], codes: Sequence[int]) -> list[int]:
    """Ranks, from 1, of these among all; each comes last among its equals."""
    return [int((scores >= scores[code]).sum()) for code in codes]
