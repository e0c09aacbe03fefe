"""Random draws that belong to an image, not to a batch.

A result must not depend on batch size, order, worker count or engine, so every draw comes from a generator that is
a function of (seed, image id, purpose) and of nothing else.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def number_for(seed: int, *names: object) -> int:
    """Return a 63-bit number that depends on the seed and the names, and on nothing else."""
    text = ":".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the names (an image id, say), and on nothing else."""
    import torch

    return torch.Generator().manual_seed(number_for(seed, *names))
