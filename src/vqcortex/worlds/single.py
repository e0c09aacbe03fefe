"""One code makes the concept."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.worlds.protocol import Kind


def present(wanted: bool, m: int, source: torch.Generator) -> list[bool]:
    """The code stands in the images of the concept."""
    return [wanted] * m


def holds(stands: Bool[Tensor, "b m"]) -> Bool[Tensor, " b"]:
    """The code is there."""
    return stands.any(1)


SINGLE = Kind(
    name="single",
    description="One code makes the concept, wherever it stands.",
    causal=1,
    present=present,
    holds=holds,
)
