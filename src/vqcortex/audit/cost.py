"""What a repair costs: how far the pictures moved, and how varied they still are, in a judge's features.

Source:
    Heusel et al. 2017, arXiv:1706.08500 (Frechet distance between features). Where we differ: the features are those of
    the judges at hand, not of Inception, so figures compare within one study and with nothing else.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.errors import DataError


def frechet_distance(ours: Float[Tensor, "n f"], theirs: Float[Tensor, "m f"]) -> float:
    """Squared distance of means plus that of covariances, at least 0; in squared units of the features.

    Raises:
        DataError: A side has fewer than 2 images.
    """
    if min(len(ours), len(theirs)) < 2:
        raise DataError(f"a distance of {len(ours)} and {len(theirs)} images does not exist; give at least 2 of each")
    a, b = ours.double().cpu(), theirs.double().cpu()
    away = (a.mean(0) - b.mean(0)).square().sum()
    one, other = torch.cov(a.T).view(a.shape[1], -1), torch.cov(b.T).view(b.shape[1], -1)
    # The trace of the root of a product of two covariances is that of a symmetric matrix.
    root = _root(one)
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return float((away + one.trace() + other.trace() - 2 * cross).clamp(min=0))


def diversity(features: Float[Tensor, "n f"]) -> float:
    """Mean distance between two different images, in units of the features; 0 where all are alike.

    Raises:
        DataError: Fewer than 2 images.
    """
    if len(features) < 2:
        raise DataError(f"{len(features)} image(s) have no diversity; give at least 2")
    return float(torch.pdist(features.double().cpu()).mean())


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
