"""Which positions go first: the trivial controls that belong in every table, and hiding exactly n of a score.

Method arms are importance maps and need nothing from here but `hide_top`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters.protocol import Adapter, join_levels
from vqcortex.errors import ConfigError, ShapeError
from vqcortex.evaluation.fills import decoded, level_grids, owners
from vqcortex.evaluation.values import check_images, check_names, slices
from vqcortex.seeds import generator_for


@runtime_checkable
class Arm(Protocol):
    """A score per position that looks at no extractor; higher is hidden first.

    Attributes:
        name: As in the ARMS registry.
    """

    @property
    def name(self) -> str: ...

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Positions in an order drawn per image.

    Args:
        seed: The order depends on this and on the image id.
    """

    seed: int = 0
    name: str = "random"

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        return random_order(tokens, image_ids, self.seed).double()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """Positions nearest to the centre of the image first; minus the squared distance, in positions."""

    name: str = "centre"

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        if len(adapter.levels) == 1:
            near = -_away(tokens.shape[1], tokens.shape[2])
        else:  # in shares of the image, so that positions of different levels compare
            near = join_levels([-_away(*level.grid, unit=True) for level in adapter.levels])
        return near.expand(tokens.shape).to(tokens.device)


def _away(h: int, w: int, unit: bool = False) -> Float[Tensor, "h w"]:
    """Squared distance of each position from the centre, in positions, or with `unit` in shares of the sides."""
    down, across = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (h, w))
    if unit:
        down, across = down / h, across / w
    return down.square()[:, None] + across.square()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """Positions whose pixels are brightest first; mean over the channels and pixels of a position, 0 to 1."""

    name: str = "brightness"

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        # In float64 on the CPU and back to float32: patches of one colour tie exactly, whatever the batch.
        light = decoded(adapter, tokens).cpu().double().mean(1)  # (b, H, W)
        means = []
        for grid in level_grids(tokens, adapter):
            rows, columns = (averaging(n, m) for n, m in zip(grid.shape[1:], light.shape[1:], strict=True))
            means.append((rows @ light @ columns.T).float())
        return (means[0] if len(means) == 1 else join_levels(means)).to(tokens.device)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFrequency:
    """Positions whose code is the most frequent in images of the concept first.

    Args:
        counts: How often each code occurs in each concept, (c, k).
    """

    counts: Int[Tensor, "c k"]
    name: str = "token_frequency"

    def __call__(
        self,
        adapter: Adapter,
        tokens: Int[Tensor, "b h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        codes, concepts = len(adapter.codebook), int(concept.max()) + 1
        if self.counts.shape[1] != codes or len(self.counts) < concepts:
            raise ConfigError(
                f"counts has shape {tuple(self.counts.shape)} but (at least {concepts}, {codes}) is needed; "
                "count the tokens of every concept with the same model"
            )
        return self.counts.to(tokens.device)[concept[:, None, None], tokens].double()


@torch.no_grad()
def score_arms(
    arms: Sequence[Arm],
    adapter: Adapter,
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    *,
    batch: int = 64,
) -> dict[str, Float[Tensor, "b h w"]]:
    """Scores of every control arm by name, a batch of images at a time."""
    check_images(tokens, image_ids, len(adapter.codebook), concept=concept)
    check_names("arm", [arm.name for arm in arms])
    rows = list(slices(len(tokens), batch))
    return {
        arm.name: torch.cat([arm(adapter, tokens[one], concept[one], image_ids[one]) for one in rows]) for arm in arms
    }


def averaging(positions: int, pixels: int) -> Float[Tensor, "positions pixels"]:
    """Matrix that averages the pixels of each position; a position without pixels gets 0."""
    owned = F.one_hot(owners(positions, pixels), positions).T.double()
    return owned / owned.sum(1, keepdim=True).clamp(min=1)


def random_order(tokens: Int[Tensor, "b h w"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "b h w"]:
    """The numbers 0 to h*w - 1 in an order that depends on (seed, image id) alone."""
    cells = tokens.shape[1] * tokens.shape[2]
    orders = [torch.randperm(cells, generator=generator_for(seed, name, "random")) for name in image_ids]
    return torch.stack(orders).reshape(tokens.shape).to(tokens.device)


def places(scores: Float[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """Place of each position in its image's order, 0 first; highest score first, ties in reading order."""
    if scores.isnan().any():
        raise ConfigError("scores hold NaN, which has no rank; check the extractor's weights")
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).reshape(scores.shape)


def hide_top(scores: Float[Tensor, "b h w"], n: int) -> Bool[Tensor, "b h w"]:
    """True at the n positions of every image with the highest scores, exactly n; ties go in reading order.

    Raises:
        ConfigError: n is below 0 or above h*w, or a score is NaN.
    """
    check_count(n, scores.shape[1] * scores.shape[2])
    return places(scores) < n


def check_count(n: int, cells: int) -> None:
    """Return if n positions can be hidden in a grid of so many cells."""
    if not 0 <= n <= cells:
        raise ConfigError(f"n={n} positions cannot be hidden in a grid of {cells}; choose 0 to {cells}")


def check_scores(scores: Tensor, tokens: Int[Tensor, "b h w"], arm: str) -> None:
    """Return if an arm has one score per token."""
    if scores.shape != tokens.shape:
        raise ShapeError(
            f"scores of arm {arm!r} have shape {tuple(scores.shape)} but the tokens {tuple(tokens.shape)}; "
            "give one score per token"
        )
