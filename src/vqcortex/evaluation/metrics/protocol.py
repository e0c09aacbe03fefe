"""What every metric owes its caller, and the four ways in which one is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.errors import ConfigError, DataError, ShapeError
from vqcortex.evaluation.curves import Curves
from vqcortex.results import Better

Reads = Literal["curves", "method", "maps", "mask"]
Score = Callable[
    [Float[Tensor, "b d h w"], Int[Tensor, " b"], Sequence[str]],
    Float[Tensor, "b h w"],
]
"""A method with its extractor: from codes, concepts and image ids to maps."""


@runtime_checkable
class Metric(Protocol):
    """A frozen settings object that can be called; how, depends on what it reads.

    Attributes:
        better: Which way is better.
        unit: Of its values, and their range.
        source: Paper and section.
        reads: "curves": a `CurveMetric`; "method": a `MethodMetric`; "maps": a `MapMetric`; "mask": a `MaskMetric`.
    """

    better: ClassVar[Better]
    unit: ClassVar[str]
    source: ClassVar[str]
    reads: ClassVar[Reads]


@runtime_checkable
class CurveMetric(Metric, Protocol):
    """What judges say while positions are hidden, as one number per arm, fill, judge and image."""

    def __call__(self, curves: Curves) -> Float[Tensor, "a f j b"]: ...


@runtime_checkable
class MethodMetric(Metric, Protocol):
    """A method asked again, or its maps held against what the extractor does."""

    def __call__(
        self,
        score: Score,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, " b"]: ...


@runtime_checkable
class MapMetric(Metric, Protocol):
    """How alike two maps of the same image are: over seeds, extractors or methods."""

    def __call__(self, first: Float[Tensor, "b h w"], second: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]: ...


@runtime_checkable
class MaskMetric(Metric, Protocol):
    """Whether a map finds positions that are known to matter."""

    def __call__(self, scores: Float[Tensor, "b h w"], relevant: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]: ...


def check_maps(maps: Tensor, other: Tensor, what: str) -> None:
    """Return if maps and what they are held against have one shape, and no map holds NaN."""
    if maps.shape != other.shape:
        raise ShapeError(
            f"maps have shape {tuple(maps.shape)} but {what} {tuple(other.shape)}; give one of each per image"
        )
    if maps.isnan().any():
        raise ConfigError("maps hold NaN, which has no rank; check the extractor's weights")


def check_lengths(embedded: Tensor, concept: Tensor, image_ids: Sequence[str]) -> None:
    """Return if there are images, with one concept and one id each."""
    if not len(embedded):
        raise DataError("there are no images to measure; pass at least one")
    if not len(embedded) == len(concept) == len(image_ids):
        raise ShapeError(
            f"{len(embedded)} images came with {len(concept)} concepts and {len(image_ids)} ids; "
            "one concept and one id per image are needed"
        )


def checked_maps(maps: Tensor, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
    """The maps of a method, one finite number per position."""
    wanted = (len(embedded), *embedded.shape[2:])
    if tuple(maps.shape) != wanted:
        raise ShapeError(f"the method gave maps of shape {tuple(maps.shape)} but {wanted} is needed")
    if not maps.isfinite().all():
        raise ConfigError("the method's maps hold NaN or infinity; check the extractor's weights")
    return maps.detach()


def concept_logits(
    extractor: nn.Module, grids: Iterable[Float[Tensor, "r d h w"]], concept: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Each image's logit for its concept, float64; the images come in parts, one forward each.

    Raises:
        ConfigError: The extractor has no logit for a concept.
    """
    logits = torch.cat([extractor(part) for part in grids]).double()
    low, high = int(concept.min()), int(concept.max())
    if low < 0 or high >= logits.shape[1]:
        raise ConfigError(
            f"concepts span [{low}, {high}] but this extractor has logits [0, {logits.shape[1] - 1}]; "
            "was it trained on another list of concepts?"
        )
    return logits.gather(1, concept.to(logits.device)[:, None])[:, 0]
