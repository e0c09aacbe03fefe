"""Importance of every position of an image for a concept: one number per position, higher is more.

A method is added by writing its file and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vqcortex.registry import Registry

if TYPE_CHECKING:
    from vqcortex.attribution.protocol import Method


class _Methods(Registry["Callable[..., Method]"]):
    """The table below, and any algorithm of Captum under "captum:NAME", which is not listed."""

    def __getitem__(self, name: str) -> Callable[..., Method]:
        if name.startswith("captum:"):
            from vqcortex.attribution.captum_bridge import captum_method

            return captum_method(name.removeprefix("captum:"))
        return super().__getitem__(name)


METHODS: Registry[Callable[..., Method]] = _Methods("attribution method")
METHODS.add("tis", "vqcortex.attribution.tis:Tis")
METHODS.add("gradient", "vqcortex.attribution.tis:Gradient")
METHODS.add("gradient_x_embedding", "vqcortex.attribution.gradient_x_embedding:GradientXEmbedding")
METHODS.add("noisy_gradient_x_embedding", "vqcortex.attribution.gradient_x_embedding:NoisyGradientXEmbedding")
METHODS.add("integrated_gradients", "vqcortex.attribution.integrated:IntegratedGradients")
METHODS.add("occlusion", "vqcortex.attribution.occlusion:Occlusion")
METHODS.add("shapley", "vqcortex.attribution.shapley:Shapley")
METHODS.add("banzhaf", "vqcortex.attribution.banzhaf:Banzhaf")
METHODS.add("greedy_removal", "vqcortex.attribution.greedy:GreedyRemoval")
METHODS.add("attention_rollout", "vqcortex.attribution.rollout:AttentionRollout")
METHODS.add("ensemble", "vqcortex.attribution.ensemble:Ensemble")
