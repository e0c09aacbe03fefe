"""What every grid of tokens must satisfy, and the smallest number type that holds one."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from vqcortex.errors import ConfigError, TokenError

ID_TYPES = (np.uint8, np.uint16, np.uint32)


def check_tokens(tokens: Int[Tensor, "*axes"], k: int) -> None:
    """Return quietly when every token lies in 0..k-1.

    Args:
        tokens: Any number of axes; an empty tensor is fine.
        k: Codes in the codebook.

    Raises:
        TokenError: A token is outside the codebook.
    """
    if tokens.numel() == 0:
        return
    low, high = (int(edge) for edge in tokens.aminmax())
    if low < 0 or high >= k:
        raise TokenError(
            f"tokens span [{low}, {high}] but this codebook holds indices [0, {k - 1}]; "
            "was the store written with another adapter?"
        )


def smallest_id_type(k: int) -> np.dtype[Any]:
    """The narrowest unsigned type that holds 0..k-1: uint8 up to 256 codes, uint16 up to 65,536, else uint32.

    Raises:
        ConfigError: `k` is below 1 or above 2**32.
    """
    for kind in ID_TYPES:
        if 1 <= k <= np.iinfo(kind).max + 1:
            return np.dtype(kind)
    raise ConfigError(
        f"k={k} codes cannot be stored; a codebook holds 1 to {2**32} codes; check the adapter's codebook"
    )
