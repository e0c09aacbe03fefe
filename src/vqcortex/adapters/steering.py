"""What pushes the draws of a generator: a bias on the logits of the next code, fixed or by what was drawn before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError, ShapeError
from vqcortex.files import hash_of_bytes


@runtime_checkable
class Steering(Protocol):
    """Says what to add to the logits of the next code. Equal identities push alike."""

    @property
    def identity(self) -> str:
        """A hash of everything that decides the bias."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Codes, rows and columns of the models that it fits: (k, h, w)."""
        ...

    def bias(self, drawn: Int[Tensor, "b p"], places: Int[Tensor, " p"], place: int) -> Float[Tensor, "#b k"]:
        """The bias in nats, minus infinity for what must not be drawn, where `drawn` is.

        Args:
            drawn: Codes that stand already, in the order in which they were drawn; none or more.
            places: Where: row * w + column of each.
            place: Where the next one will stand.
        """
        ...


@final
@dataclass(frozen=True, slots=True)
class FixedBias:
    """The same bias for every image.

    Args:
        table: What is added to the logits of every code at every position, in nats: (k, h, w).

    Raises:
        ShapeError: The table has not three dimensions.
        ConfigError: It holds NaN or plus infinity.
    """

    table: Tensor
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        if self.table.ndim != 3:
            raise ShapeError(
                f"a code bias has shape {tuple(self.table.shape)}; give one number per code and position: (k, h, w)"
            )
        held = self.table.detach().cpu().double().contiguous()
        if held.isnan().any() or held.isposinf().any():
            raise ConfigError(
                "a code bias holds NaN or plus infinity; give finite numbers, or minus infinity to forbid"
            )
        object.__setattr__(self, "table", held)
        object.__setattr__(self, "identity", hash_of_bytes(held.numpy().tobytes()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, h, w)."""
        k, h, w = self.table.shape
        return k, h, w

    def bias(self, drawn: Int[Tensor, "b p"], places: Int[Tensor, " p"], place: int) -> Float[Tensor, "1 k"]:
        return self.table.flatten(1)[:, place].to(drawn.device)[None]


@final
@dataclass(frozen=True, slots=True)
class Steerings:
    """Everything that pushes one model's draws; none or more, which add up.

    Args:
        parts: In the order in which they were given; fixed ones that follow each other are one.
    """

    parts: tuple[Steering, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def identity(self) -> str:
        """A hash of them all."""
        return hash_of_bytes(" ".join(one.identity for one in self.parts).encode())

    def plus(
        self, new: Steering, k: int, grid: tuple[int, int], drawable: Int[Tensor, " u"] | None = None
    ) -> Steerings:
        """These and one more.

        Args:
            new: One more.
            k: Codes of the model.
            grid: Of the model.
            drawable: Codes that it can draw; None: all.

        Raises:
            ShapeError: It is not of (k, h, w).
            ConfigError: What is fixed leaves no code at a position.
        """
        if new.shape != (k, *grid):
            raise ShapeError(f"a code bias has shape {new.shape} but this model needs {(k, *grid)}: (k, h, w)")
        parts = self.parts
        if isinstance(new, FixedBias):
            if parts and isinstance(last := parts[-1], FixedBias):
                parts, new = parts[:-1], FixedBias(last.table + new.table)
            _check_leaves_some(new.table if drawable is None else new.table[drawable.cpu()])
        return Steerings((*parts, new))

    def bias(self, drawn: Int[Tensor, "b p"], places: Int[Tensor, " p"], place: int) -> Float[Tensor, "#b k"]:
        """As that of a steering, of all together; there is at least one."""
        first, *others = (one.bias(drawn, places, place) for one in self.parts)
        return sum(others, start=first)

    def along(self, drawn: Int[Tensor, "b n"], places: Int[Tensor, " n"]) -> Float[Tensor, "b n k"]:
        """What was added before each of the codes drawn, in the order of drawing."""
        found = [self.bias(drawn[:, :at], places[:at], int(place)) for at, place in enumerate(places)]
        return torch.stack([one.expand(len(drawn), -1) for one in found], 1)


def _check_leaves_some(table: Float[Tensor, "k h w"]) -> None:
    if (empty := table.isneginf().all(0)).any():
        row, column = empty.nonzero()[0].tolist()
        raise ConfigError(f"a code bias leaves no code at position ({row}, {column}); leave at least one finite there")
