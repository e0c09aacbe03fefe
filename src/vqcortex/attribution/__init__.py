"""Importance of every position of an image for a concept: one number per position, higher is more.

A method is added by writing its file and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vqcortex.registry import Registry

if TYPE_CHECKING:
    from vqcortex.attribution.protocol import Method

METHODS: Registry[Callable[..., Method]] = Registry("attribution method")
METHODS.add("tis", "vqcortex.attribution.tis:Tis")
METHODS.add("gradient", "vqcortex.attribution.tis:Gradient")
METHODS.add("gradient_x_embedding", "vqcortex.attribution.gradient_x_embedding:GradientXEmbedding")
METHODS.add("noisy_gradient_x_embedding", "vqcortex.attribution.gradient_x_embedding:NoisyGradientXEmbedding")
