"""Visual attributes that can be painted on Fashion-MNIST pictures, and rules that see them again in what is decoded.

A rule looks at pixels only and knows nothing of tokens, extractors or judges, so that what it counts is a truth that an
audit can be held against. `measure.py` reports how often each rule errs on decoded pictures whose label is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something a class's pictures may carry.

    Args:
        name: Of the generators that are made with it.
        concept: The class whose pictures carry it at the planted rate.
        other: A second class, whose pictures carry it at one minus that rate; None: no other class has it.
        paint: Pictures (n, 1, 28, 28) in [0, 1] to the same with the attribute.
        sees: Decoded pictures (n, 3, 28, 28) in [0, 1] to whether they carry it.
        what: In words.
    """

    name: str
    concept: str
    other: str | None
    paint: Callable[[Tensor], Tensor]
    sees: Callable[[Tensor], Tensor]
    what: str

    @property
    def concepts(self) -> tuple[str, ...]:
        """The class, and the second one where there is one."""
        return (self.concept,) if self.other is None else (self.concept, self.other)


def _corner(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 1:7, 21:27] = 1.0
    return x


def _border(x: Tensor) -> Tensor:
    inner = x[..., 2:-2, 2:-2].clone()
    x = x.new_full(x.shape, 0.8)
    x[..., 2:-2, 2:-2] = inner
    return x


def _belt(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 12:16, :] = 0.0
    return x


def _sees_border(x: Tensor) -> Tensor:
    sides = (x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1])
    return sum(side.mean((1, 2)) for side in sides) / 4 > 0.4


def _sees_belt(x: Tensor) -> Tensor:
    band = x[..., 13:15, 9:19].mean((1, 2, 3))
    around = (x[..., 8:11, 9:19].mean((1, 2, 3)) + x[..., 17:20, 9:19].mean((1, 2, 3))) / 2
    return band < 0.5 * around


ATTRIBUTES = {
    one.name: one
    for one in (
        Attribute(
            name="corner", concept="Sneaker", other=None, paint=_corner, what="a white square in the top right corner",
            sees=lambda x: x[..., 2:6, 22:26].mean((1, 2, 3)) > 0.5,
        ),
        Attribute(
            name="cast", concept="Dress", other=None, paint=lambda x: 0.6 * x + 0.4, what="a grey cast over everything",
            sees=lambda x: (x[..., :4, :4].mean((1, 2, 3)) + x[..., :4, -4:].mean((1, 2, 3))) / 2 > 0.2,
        ),
        Attribute(
            name="border", concept="Trouser", other=None, paint=_border, what="a light frame", sees=_sees_border,
        ),
        Attribute(
            name="pair", concept="Pullover", other="Coat", paint=_belt, sees=_sees_belt,
            what="a black belt, in the one class as often as it is absent in the other",
        ),
    )
}  # fmt: skip
