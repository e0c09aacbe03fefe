"""How far restarts of a search agree on the codes they choose."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError
from vqcortex.results import Trace


def pairwise_jaccard(tokens: Int[Tensor, "r n"]) -> float:
    """Mean over pairs of restarts of |A and B| / |A or B|, for the sets A, B of codes that each chose; 0 to 1.

    Args:
        tokens: The chosen codes of r restarts, at least 2, at n positions, at least 1.

    Raises:
        ConfigError: There are fewer than 2 restarts, or no position.

    Example:
        >>> pairwise_jaccard(torch.tensor([[1, 1, 2], [2, 3, 3]]))
        0.3333333333333333
    """
    _check_pairs(tokens)
    _, codes = torch.unique(tokens, return_inverse=True)
    chosen = torch.zeros(len(tokens), int(codes.max()) + 1, dtype=torch.float64, device=tokens.device)
    chosen.scatter_(1, codes, 1.0)
    common = chosen @ chosen.T
    sizes = common.diagonal()
    return _mean_over_pairs(common / (sizes[:, None] + sizes - common))


def pairwise_jaccard_cells(tokens: Int[Tensor, "r n"]) -> float:
    """The same for the sets of (position, code) cells, so that a code counts only where it stands; 0 to 1.

    Example:
        >>> pairwise_jaccard_cells(torch.tensor([[1, 1, 2], [1, 3, 3]]))
        0.2
    """
    _check_pairs(tokens)
    common = (tokens[:, None] == tokens).sum(2, dtype=torch.float64)
    return _mean_over_pairs(common / (2 * tokens.shape[1] - common))


def search_stability(trace: Trace) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Agreement of the restarts of each image at the free positions: (sets of codes, sets of cells).

    Raises:
        ConfigError: The search had fewer than 2 restarts.
    """
    chosen = trace.tokens[:, :, trace.free]  # (b, r, n)
    codes = [pairwise_jaccard(one) for one in chosen]
    cells = [pairwise_jaccard_cells(one) for one in chosen]
    return torch.tensor(codes, dtype=torch.float32), torch.tensor(cells, dtype=torch.float32)


def _check_pairs(tokens: Tensor) -> None:
    restarts, places = tokens.shape
    if restarts < 2 or places < 1:
        raise ConfigError(
            f"stability was asked of {restarts} restart(s) at {places} position(s); "
            "at least 2 restarts and 1 position are needed, so search with restarts=2 or more"
        )


def _mean_over_pairs(agreement: Float[Tensor, "r r"]) -> float:
    first, second = torch.triu_indices(len(agreement), len(agreement), offset=1)
    return float(agreement[first, second].mean())
