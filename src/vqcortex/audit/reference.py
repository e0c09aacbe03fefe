"""The published effect size, quirk and all, for comparison only; `audit.effect` is what the audit believes."""

from __future__ import annotations

from jaxtyping import Real
from torch import Tensor

from vqcortex.audit.effect import cliffs_delta


def published_half_delta(ours: Real[Tensor, " n"], theirs: Real[Tensor, " m"]) -> float:
    """Half of Cliff's delta, -0.5 to 0.5, as the published code returns it; it takes paired counts as independent.

    Raises:
        DataError: As `cliffs_delta`.

    Source:
        Yang et al. 2025, arXiv:2506.00698, published code, cliff_delta.

    Example:
        >>> import torch
        >>> published_half_delta(torch.tensor([3, 4]), torch.tensor([1, 2]))
        0.5
    """
    return float(cliffs_delta(ours, theirs).delta[0]) / 2
