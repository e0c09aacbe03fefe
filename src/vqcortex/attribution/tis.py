"""Token importance scores: how steeply a concept's logit rises with the code at each position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.gradient import REDUCTIONS, mean_gradient
from vqcortex.attribution.noise import sampling_problems
from vqcortex.config import raise_all


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tis:
    """The token importance score: the gradient averaged over noisy copies, reduced over channels.

    Args:
        draws: Noisy copies per image, at least 1.
        noise: Standard deviation as a fraction of each image's own value range, 0 or more.
        reduce: From d channels to one number: the largest signed value ("max", as published), the mean, the
            largest or mean absolute value, or the Euclidean norm.
        seed: Draws depend on this and on the image id, never on the batch.
        sampling: "plain" as published, "antithetic" or "quasi": see `noise.unit_noises`.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = "Yang et al. 2025, arXiv:2506.00698, token importance score"

    draws: int = 20
    noise: float = 0.2
    reduce: str = "max"
    seed: int = 0
    sampling: str = "plain"

    def __post_init__(self) -> None:
        raise_all([*noise_problems(self.draws, self.noise, self.sampling), *_reduce_problems(self.reduce)])

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
        return REDUCTIONS[self.reduce](gradient)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """The gradient of the concept's logit without noise, reduced over channels.

    Args:
        reduce: As for `Tis`.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = "Simonyan et al. 2013, arXiv:1312.6034, section 3"

    reduce: str = "max"

    def __post_init__(self) -> None:
        raise_all(_reduce_problems(self.reduce))

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        return 1, 1

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        return REDUCTIONS[self.reduce](mean_gradient(extractor, embedded, concept, image_ids))


def passes_of(draws: int, noise: float) -> tuple[int, int]:
    """Forward and backward passes per image; copies without noise are all the same, so one is enough."""
    return (draws, draws) if noise else (1, 1)


def noise_problems(draws: int, noise: float, sampling: str) -> Iterator[str]:
    """What is wrong with the settings of the noise, if anything."""
    if draws < 1:
        yield f"draws={draws} must be at least 1"
    if not 0 <= noise < float("inf"):
        yield f"noise={noise} must be 0 or more; 0.2 is the published value"
    yield from sampling_problems(sampling)


def _reduce_problems(reduce: str) -> Iterator[str]:
    if reduce not in REDUCTIONS:
        yield f"reduce={reduce!r} must be one of {', '.join(REDUCTIONS)}"
