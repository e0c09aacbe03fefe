"""Interchangeable codes: any one of them makes the concept."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.worlds.protocol import Kind


def present(wanted: bool, m: int, source: torch.Generator) -> list[bool]:
    """Exactly one of the codes, so that it is the reason."""
    one = int(torch.randint(m, (), generator=source))
    return [wanted and number == one for number in range(m)]


def holds(stands: Bool[Tensor, "b m"]) -> Bool[Tensor, " b"]:
    """At least one is there."""
    return stands.any(1)


ANY_OF = Kind(
    name="any_of",
    description="Any one of a set of interchangeable codes makes the concept.",
    causal=None,
    present=present,
    holds=holds,
)
