"""What an evaluation measured, image by image, before anything is averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError, DataError, ShapeError, TokenError

Level = Literal["image", "concept", "codebook"]
Masking = Literal["positions", "by_id", "area_matched", "search"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One way of taking tokens away (or, at codebook level, of putting others in).

    Args:
        arm: What chose the tokens.
        masking: "positions": exactly n in every arm; "by_id": every cell that shares an id with a
            chosen one, as published; "area_matched": as many per image in each arm; "search": replaced.
        fill: What was put in their place; "none" at codebook level.
        chosen: Positions chosen per image (n); None where the number differs from image to image.
    """

    arm: str
    masking: Masking
    fill: str
    chosen: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Measurements of b images under q conditions by j judges, float32, on the CPU.

    Args:
        level: "image", "concept" or "codebook".
        conditions: q, in the order of the first axis.
        judges: j names.
        image_ids: b names.
        concept: Concept measured (the target at codebook level), (b,).
        source: Concept a codebook search started from, (b,); None at the other levels.
        positions: h*w of the grid.
        before: Probability of `concept` in the untouched image, (j, b).
        metrics: Name to values, (q, j, b); the names are explained in `tables.METRICS`.
        touched: Positions hidden, or tokens changed (mean over restarts), (q, b).
    """

    level: Level
    conditions: tuple[Condition, ...]
    judges: tuple[str, ...]
    image_ids: tuple[str, ...]
    concept: Int[Tensor, " b"]
    source: Int[Tensor, " b"] | None = None
    positions: int
    before: Float[Tensor, "j b"]
    metrics: Mapping[str, Float[Tensor, "q j b"]]
    touched: Float[Tensor, "q b"]


def join_evidence(parts: Sequence[Evidence]) -> Evidence:
    """One evidence over all the images of the parts, which share everything else.

    Raises:
        DataError: There is no part.
        ConfigError: Two parts were measured differently.
    """
    if not parts:
        raise DataError("there are no images to measure; pass at least one")
    first = parts[0]
    for other in parts[1:]:
        check_alike(first, other)
    sources = [part.source for part in parts if part.source is not None]
    return Evidence(
        level=first.level,
        conditions=first.conditions,
        judges=first.judges,
        image_ids=tuple(name for part in parts for name in part.image_ids),
        concept=torch.cat([part.concept for part in parts]),
        source=torch.cat(sources) if sources else None,
        positions=first.positions,
        before=torch.cat([part.before for part in parts], -1),
        metrics={name: torch.cat([part.metrics[name] for part in parts], -1) for name in first.metrics},
        touched=torch.cat([part.touched for part in parts], -1),
    )


def check_alike(first: Evidence, other: Evidence) -> None:
    """Return if two parts can be joined."""
    for field in ("level", "judges", "positions", "conditions"):
        one, two = getattr(first, field), getattr(other, field)
        if one != two:
            raise ConfigError(f"evidence with {field} {two} cannot be joined to {one}; measure both alike")
    if set(first.metrics) != set(other.metrics) or (first.source is None) != (other.source is None):
        raise ConfigError("evidence of different metrics cannot be joined; measure both alike")


def slices(count: int, batch: int) -> Iterator[slice]:
    """Consecutive slices of at most `batch` images."""
    if batch < 1:
        raise ConfigError(f"batch={batch} must be at least 1")
    return (slice(start, start + batch) for start in range(0, count, batch))


def check_images(tokens: Int[Tensor, "b h w"], image_ids: Sequence[str], codes: int, **per_image: Tensor) -> None:
    """Return if there are images, one id and one value each, and every token has a code."""
    count = len(tokens)
    if not count:
        raise DataError("there are no images to measure; pass at least one")
    lengths = {"image_ids": len(image_ids)} | {name: len(value) for name, value in per_image.items()}
    for name, length in lengths.items():
        if length != count:
            raise ShapeError(f"{name} has {length} entries for {count} grids; give one per grid")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= codes:
        raise TokenError(
            f"tokens span [{low}, {high}] but this codebook holds indices [0, {codes - 1}]; "
            "were they written with another model?"
        )


def check_names(kind: str, names: Sequence[str]) -> None:
    """Return if there is a name and none twice."""
    if not names:
        raise ConfigError(f"there is no {kind} to measure; give at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{kind} {twice[0]!r} is given twice; name each once")
