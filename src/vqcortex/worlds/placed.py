"""One code makes the concept in one half of the grid, and says nothing in the other."""

from __future__ import annotations

from vqcortex.worlds.protocol import Kind
from vqcortex.worlds.single import holds, present

PLACED = Kind(
    name="placed",
    description="One code makes the concept in the upper half of the grid (left half of a row), nowhere else.",
    causal=1,
    present=present,
    holds=holds,
    is_placed=True,
)
