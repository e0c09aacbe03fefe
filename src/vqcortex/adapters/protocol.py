"""What every vector-quantized model owes the rest of vqcortex, whatever its family.

Pixels at this border are float, RGB, in [0, 1]; a family's own range stays inside its file. Everything after `embed`
is differentiable, so attribution and search work on any model.

A model with one grid of tokens has that grid as its `grid`. A model with several (two scales, many scales, residual
stages) lays them out as one row, coarse to fine, each read row by row: its `grid` is (1, n), its `levels` say which
part of the row is which, and `address` turns a position into (level, row, column). So a token grid is (b, h, w) and
codes are (b, d, h, w) for every model, and nothing downstream needs to know how many levels there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.adapters.steering import Steering
from vqcortex.errors import ConfigError, ModelError, ShapeError

# What a model may be able to do; `Adapter.abilities` holds those it is.
ENCODE, DECODE, GENERATE, LOGITS = "encode", "decode", "generate", "logits"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One grid of an image's tokens.

    Args:
        name: "tokens" where there is but one; "top", "scale 3", "stage 2".
        grid: Its rows and columns, (h, w).
        codes: The codebook rows that may stand in it, half-open: (first, past the last).
    """

    name: str
    grid: tuple[int, int]
    codes: tuple[int, int]

    @property
    def length(self) -> int:
        """Positions it has, h*w."""
        return self.grid[0] * self.grid[1]


@runtime_checkable
class Adapter(Protocol):
    """One vector-quantized model.

    Attributes:
        name: What `load_model` opens it with: "zoo:fashion", "taming:/models/vqgan".
        family: The name in the FAMILIES registry.
        identity: SHA-256 over everything that decides its numbers; two models with one identity are one model.
        grid: Rows and columns of a token grid, (h, w), for images of `size`; (1, n) with several levels.
        size: Height and width of its images in pixels, (H, W).
        levels: Its grids, coarse to fine; one for most.
        concepts: What `generate` can be asked for, in order; empty when it cannot generate.
        abilities: Which of "encode", "decode", "generate", "logits" it has.
        k: Codes in the codebook, all levels together.
        d: Numbers per code.
        codebook: The codes as used for look-up when decoding, (k, d).
        device: Where its tensors live.
    """

    name: str
    family: str

    @property
    def identity(self) -> str: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def concepts(self) -> tuple[str, ...]: ...
    @property
    def abilities(self) -> frozenset[str]: ...
    @property
    def k(self) -> int: ...
    @property
    def d(self) -> int: ...
    @property
    def codebook(self) -> Float[Tensor, "k d"]: ...
    @property
    def device(self) -> torch.device: ...

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        """Tokens of images in [0, 1]; the same whatever else is in the batch."""
        ...

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Codes of a grid, channels first."""
        ...

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        """The token whose code lies nearest, at every position."""
        ...

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1] from codes; differentiable, any real numbers are allowed in."""
        ...

    def to(self, device: str) -> Adapter:
        """Move to a device and return self."""
        ...


@runtime_checkable
class Generator(Adapter, Protocol):
    """A model that also draws grids of a concept."""

    def generate(self, concept: Int[Tensor, " b"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "b h w"]:
        """One grid per image id, a function of (concept, image id, seed) alone."""
        ...


@runtime_checkable
class Likely(Generator, Protocol):
    """A generator that says how likely it draws what."""

    def log_probabilities(self, tokens: Int[Tensor, "b h w"], concept: Int[Tensor, " b"]) -> Float[Tensor, "b k h w"]:
        """Log-probability of every code at every position, given the concept and the tokens drawn before it, in nats.

        At temperature 1, without cuts (top k, top p) and without guidance; minus infinity for what is never drawn.
        Summed over the codes that stand there it is the log-likelihood of the grid.
        """
        ...


@runtime_checkable
class Steerable(Generator, Protocol):
    """A generator whose draws can be pushed towards some codes and away from others."""

    def with_steering(self, steering: Steering) -> Steerable:
        """The same model, drawing with a bias on the logits of every next code.

        Steerings of a steered model add up. The new model has an identity of its own, shares its weights with this
        one, and encodes and decodes alike.

        Raises:
            ShapeError: The steering is of another (k, h, w).
            ConfigError: A fixed bias leaves no code at a position.
        """
        ...

    def with_code_bias(self, bias: Float[Tensor, "k h w"]) -> Steerable:
        """`with_steering` by one bias for all images, in nats; minus infinity: the code is never drawn there.

        Raises:
            ShapeError: The bias is not (k, h, w).
            ConfigError: It holds NaN or plus infinity, or leaves no code at a position.
        """
        ...


def one_level(grid: tuple[int, int], k: int) -> tuple[Level, ...]:
    """The levels of a model that has but one grid."""
    return (Level(name="tokens", grid=grid, codes=(0, k)),)


def address(levels: Sequence[Level], position: tuple[int, int]) -> tuple[int, int, int]:
    """Where a position of the laid-out grid really is.

    Args:
        levels: A model's levels.
        position: (row, column) in the model's `grid`, from 0.
    Returns:
        (level, row, column), from 0.
    Raises:
        ConfigError: The position lies outside the grid.
    """
    row, column = position
    if len(levels) == 1:
        h, w = levels[0].grid
        if 0 <= row < h and 0 <= column < w:
            return 0, row, column
    elif row == 0 and column >= 0:
        for number, level in enumerate(levels):
            if column < level.length:
                return number, *divmod(column, level.grid[1])
            column -= level.length
    grid = levels[0].grid if len(levels) == 1 else (1, sum(level.length for level in levels))
    raise ConfigError(f"position {position} lies outside the {grid[0]}x{grid[1]} grid; count rows and columns from 0")


def join_levels(parts: Sequence[Tensor]) -> Tensor:
    """Lay out the grids (..., h, w) of several levels as one row (..., 1, n), in the order given."""
    return torch.cat([part.flatten(-2) for part in parts], -1)[..., None, :]


def split_levels(row: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """The grids (..., h, w) of the levels from one row (..., 1, n): the inverse of `join_levels`.

    Raises:
        ShapeError: The row is not as long as the levels together.
    """
    wanted = sum(level.length for level in levels)
    if row.shape[-2:] != (1, wanted):
        raise ShapeError(
            f"a row of {len(levels)} levels has shape {tuple(row.shape)} but (..., 1, {wanted}) is needed: "
            "the levels' grids one after the other"
        )
    parts = row[..., 0, :].split([level.length for level in levels], -1)
    return [part.unflatten(-1, level.grid) for part, level in zip(parts, levels, strict=True)]


def allowed_cells(levels: Sequence[Level], k: int) -> Bool[Tensor, "k h w"] | None:
    """Which code may stand at which position; None where every code may stand everywhere.

    Args:
        levels: A model's levels.
        k: Codes of all its codebooks.
    """
    if all(level.codes == (0, k) for level in levels):
        return None
    code = torch.arange(k)
    parts = [
        ((code >= level.codes[0]) & (code < level.codes[1]))[:, None, None].expand(k, *level.grid) for level in levels
    ]
    return parts[0].clone() if len(parts) == 1 else join_levels(parts)


def check_ability(name: str, abilities: frozenset[str], wanted: str, instead: str) -> None:
    """Return quietly if a model can do what is asked of it.

    Raises:
        ModelError: It cannot; `instead` is the next step.
    """
    if wanted not in abilities:
        can = ", ".join(sorted(abilities)) or "nothing"
        raise ModelError(f"model {name!r} cannot {wanted}, its files hold no such half; it can: {can}; {instead}")
