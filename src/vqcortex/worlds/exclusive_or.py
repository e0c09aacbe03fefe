"""Either code makes the concept, both undo it."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.worlds.protocol import Kind


def present(wanted: bool, m: int, source: torch.Generator) -> list[bool]:
    """One of the two, or else both or none, each as often: neither code says anything by itself."""
    first = bool(torch.randint(2, (), generator=source))
    return [first, first != wanted]


def holds(stands: Bool[Tensor, "b m"]) -> Bool[Tensor, " b"]:
    """An odd number is there."""
    return stands.sum(1) % 2 == 1


EXCLUSIVE_OR = Kind(
    name="exclusive_or",
    description="Either of two codes makes the concept, both together do not; neither says anything by itself.",
    causal=2,
    present=present,
    holds=holds,
    together=-1,
)
