"""Codes that make the concept only together."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.worlds.protocol import Kind


def present(wanted: bool, m: int, source: torch.Generator) -> list[bool]:
    """All of them, or else one alone or none, each as often: no code tells the concept by itself for sure."""
    alone = int(torch.randint(m + 1, (), generator=source))
    return [wanted or number == alone for number in range(m)]


def holds(stands: Bool[Tensor, "b m"]) -> Bool[Tensor, " b"]:
    """All are there."""
    return stands.all(1)


PAIR = Kind(
    name="pair",
    description="Codes that make the concept only together; each stands alone in images without it.",
    causal=None,
    present=present,
    holds=holds,
    together=1,
)
