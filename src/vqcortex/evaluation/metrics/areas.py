"""Areas under the curves of removal and of insertion, over the share of positions, from none to all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.errors import ConfigError
from vqcortex.evaluation.curves import Curves
from vqcortex.evaluation.metrics.protocol import Reads

UNIT = "mean probability, 0 to 1"
SOURCE = (
    "Petsiuk et al. 2018, arXiv:1806.07421, section 4.1; by the trapezoidal rule. Where we differ: positions of the "
    "grid, not pixels; the ends are measured too, so that few counts still cover all shares"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionAUC:
    """Area under the judge's probability as positions are hidden, best first, until none is left."""

    better: ClassVar[Literal["lower"]] = "lower"
    unit: ClassVar[str] = UNIT
    source: ClassVar[str] = SOURCE
    reads: ClassVar[Reads] = "curves"

    def __call__(self, curves: Curves) -> Float[Tensor, "a f j b"]:
        before, empty = _ends(curves)
        return _area(curves, before, curves.removed, empty)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InsertionAUC:
    """Area under the judge's probability as positions are put back, best first, into an image that shows none."""

    better: ClassVar[Literal["higher"]] = "higher"
    unit: ClassVar[str] = UNIT
    source: ClassVar[str] = SOURCE
    reads: ClassVar[Reads] = "curves"

    def __call__(self, curves: Curves) -> Float[Tensor, "a f j b"]:
        before, empty = _ends(curves)
        return _area(curves, empty, kept_of(curves), before)


def kept_of(curves: Curves) -> Float[Tensor, "a f n j b"]:
    """The curves of keeping.

    Raises:
        ConfigError: They were not measured.
    """
    if curves.kept is None:
        raise ConfigError("these curves hold no kept positions; measure them with kept=True")
    return curves.kept


def _ends(curves: Curves) -> tuple[Float[Tensor, "a f j b"], Float[Tensor, "a f j b"]]:
    """Probability with nothing and with everything hidden, for every arm."""
    shape = curves.removed[:, :, 0].shape
    return curves.before.expand(shape), curves.empty.expand(shape)


def _area(
    curves: Curves,
    first: Float[Tensor, "a f j b"],
    middle: Float[Tensor, "a f n j b"],
    last: Float[Tensor, "a f j b"],
) -> Float[Tensor, "a f j b"]:
    """Area from share 0 to share 1, by trapezoids."""
    heights = torch.cat([first[:, :, None], middle, last[:, :, None]], 2).double()
    shares = torch.tensor([0, *curves.counts, curves.positions], dtype=torch.float64) / curves.positions
    return torch.trapezoid(heights, shares, dim=2).float()
