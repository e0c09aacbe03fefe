"""Gradient times embedding: to first order, what a position's code adds to the concept's logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.baselines import Baseline, DrawnCodes, baseline_grid, completeness_gap, expected
from vqcortex.attribution.gradient import mean_gradient
from vqcortex.attribution.tis import noise_problems, passes_of
from vqcortex.config import raise_all


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientXEmbedding:
    """Sum over channels of gradient x (embedding - baseline): an estimate in logits, signed.

    For an extractor that is linear in the embedding the scores of an image add up to its logit minus the
    logit of a grid filled with the baseline, exactly.

    Args:
        baseline: The code (d,) that stands for "nothing here", such as the mean code; None: zero. Of codes drawn
            by use the expected code is taken: the score is linear in the baseline, so that is their mean exactly.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = "Shrikumar et al. 2016, arXiv:1605.01713; with a baseline, its first-order form"

    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        return 1, 1

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        moved = _moved(embedded, self.baseline)
        return (mean_gradient(extractor, embedded, concept, image_ids) * moved).sum(1)

    def gap(
        self,
        scores: Float[Tensor, "b h w"],
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, " b"]:
        """By how much the scores fail to add up, in logits: see `protocol.ReportsGap`."""
        start = expected(self.baseline)
        return completeness_gap(scores, extractor, embedded, concept, image_ids, baseline=start)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyGradientXEmbedding:
    """As `GradientXEmbedding`, with the gradient averaged over noisy copies of the embedding.

    Args:
        draws: Noisy copies per image, at least 1.
        noise: Standard deviation as a fraction of each image's own value range, 0 or more.
        seed: Draws depend on this and on the image id, never on the batch.
        baseline: As for `GradientXEmbedding`.
        sampling: "plain", "antithetic" or "quasi": see `noise.unit_noises`.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = (
        "Shrikumar et al. 2016, arXiv:1605.01713, on gradients of Smilkov et al. 2017, arXiv:1706.03825"
    )

    draws: int = 20
    noise: float = 0.2
    seed: int = 0
    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)
    sampling: str = "plain"

    def __post_init__(self) -> None:
        raise_all(noise_problems(self.draws, self.noise, self.sampling))

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        return passes_of(self.draws, self.noise)

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        gradient = mean_gradient(
            extractor,
            embedded,
            concept,
            image_ids,
            draws=self.draws,
            noise=self.noise,
            seed=self.seed,
            sampling=self.sampling,
        )
        return self.from_gradient(gradient, embedded)

    def from_gradient(
        self, gradient: Float[Tensor, "b d h w"], embedded: Float[Tensor, "b d h w"]
    ) -> Float[Tensor, "b h w"]:
        """The scores, given the mean gradient: see `protocol.score_together`."""
        return (gradient * _moved(embedded, self.baseline)).sum(1)

    def gap(
        self,
        scores: Float[Tensor, "b h w"],
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, " b"]:
        """By how much the scores fail to add up, in logits: see `protocol.ReportsGap`."""
        start = expected(self.baseline)
        return completeness_gap(scores, extractor, embedded, concept, image_ids, baseline=start)


def _moved(embedded: Float[Tensor, "b d h w"], baseline: Baseline) -> Float[Tensor, "b d h w"]:
    """The embedding, measured from the baseline."""
    if baseline is None:
        return embedded
    return embedded - baseline_grid(expected(baseline), 0, embedded, ())
