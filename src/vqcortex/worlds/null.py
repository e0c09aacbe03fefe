"""No signal: the concept is a coin."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.worlds.protocol import Kind


def present(wanted: bool, m: int, source: torch.Generator) -> list[bool]:
    """Nothing is planted."""
    return [False] * m


def holds(stands: Bool[Tensor, "b m"]) -> Bool[Tensor, " b"]:
    """Never: there is no rule."""
    return torch.zeros(len(stands), dtype=torch.bool)


NULL = Kind(
    name="null", description="Concepts are drawn by a coin: no code makes any.", causal=0, present=present, holds=holds
)
