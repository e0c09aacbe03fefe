"""Integrated gradients: the gradient followed along straight paths from a baseline's codes to the image's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.baselines import DrawnCodes, baseline_grid, completeness_gap, draws_of
from vqcortex.attribution.gradient import gradient_of_logits
from vqcortex.attribution.logits import check_finite, check_lengths
from vqcortex.config import raise_all
from vqcortex.extractors.still import still

RULES = ("gauss", "midpoint")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradients:
    """Gradient x (embedding - baseline), the gradient averaged along the straight line between the two, in logits.

    With enough nodes the scores of an image add up to its logit minus its baseline's; `gap` tells how nearly they do.

    Args:
        nodes: Points per path where the gradient is taken, at least 1.
        rule: Where they lie: "gauss" (Gauss-Legendre, exact for gradients that are polynomials of degree up to
            2 * nodes - 1 along the path) or "midpoint" (equal steps; steadier where the extractor has kinks).
        baseline: Where paths begin: one code (d,), codes drawn by use (averaged over their draws), or None: zero.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = (
        "Sundararajan et al. 2017, arXiv:1703.01365, section 3; drawn baselines: Erion et al. 2019, arXiv:1906.10670"
    )

    nodes: int = 16
    rule: str = "gauss"
    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        problems = [] if self.nodes >= 1 else [f"nodes={self.nodes} must be at least 1"]
        if self.rule not in RULES:
            problems.append(f"rule={self.rule!r} must be one of {', '.join(RULES)}")
        raise_all(problems)

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        gradients = self.nodes * draws_of(self.baseline)
        return gradients, gradients

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        check_lengths(embedded, concept, image_ids)
        concept, draws = concept.cpu(), draws_of(self.baseline)
        with still(extractor), torch.inference_mode(False), torch.enable_grad():
            embedded = embedded.clone()  # one made under inference_mode could not carry a gradient
            total = torch.zeros_like(embedded[:, 0], dtype=torch.promote_types(embedded.dtype, torch.float32))
            for draw in range(draws):
                start = baseline_grid(self.baseline, draw, embedded, image_ids)
                moved = embedded - start
                for at, weight in path_nodes(self.rule, self.nodes):
                    gradient = gradient_of_logits(extractor, start + at * moved, concept)
                    total += weight / draws * (gradient * moved).sum(1)
        check_finite(total, image_ids, "gradients")
        return total

    def gap(
        self,
        scores: Float[Tensor, "b h w"],
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, " b"]:
        """By how much the scores fail to add up, in logits: see `protocol.ReportsGap`."""
        return completeness_gap(scores, extractor, embedded, concept, image_ids, baseline=self.baseline)


def path_nodes(rule: str, nodes: int) -> list[tuple[float, float]]:
    """Places in (0, 1) and their weights, which add up to 1."""
    if rule == "midpoint":
        return [((i + 0.5) / nodes, 1 / nodes) for i in range(nodes)]
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return [((1 + float(at)) / 2, float(weight) / 2) for at, weight in zip(places, weights, strict=True)]
