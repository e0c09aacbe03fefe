"""A code that goes with the causal one while an extractor learns, and comes and goes by itself in the test images."""

from __future__ import annotations

from vqcortex.worlds.protocol import Decoy, Kind
from vqcortex.worlds.single import holds, present

CONFOUNDER = Kind(
    name="confounder",
    description="One code makes the concept; another goes with it in training, independent of it in test.",
    causal=1,
    present=present,
    holds=holds,
    decoy=Decoy(is_patch=False, follows="rule", in_test=0.5),
)
