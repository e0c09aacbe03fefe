"""A patch of one code at one place that gives the label away while an extractor learns, and is absent from test images.

It is the easier thing to learn: it fills always the same square, while the true cause is one of several codes scattered
over the grid. With noisy labels it is also the better one once its correlation is above 1 - label_noise.

Source:
    Geirhos et al. 2020, arXiv:2004.07780, Shortcut learning in deep neural networks.
"""

from __future__ import annotations

from vqcortex.worlds.any_of import holds, present
from vqcortex.worlds.protocol import Decoy, Kind

SHORTCUT = Kind(
    name="shortcut",
    description="Any of a set of codes makes the concept; a patch goes with it in training, never in test.",
    causal=None,
    present=present,
    holds=holds,
    decoy=Decoy(is_patch=True, follows="label", in_test=0.0),
)
