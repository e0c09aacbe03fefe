"""How far the judge's probability falls when the best positions are hidden, or all the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from jaxtyping import Float
from torch import Tensor

from vqcortex.errors import ConfigError
from vqcortex.evaluation.curves import Curves
from vqcortex.evaluation.metrics.areas import kept_of
from vqcortex.evaluation.metrics.protocol import Reads

UNIT = "probability, -1 to 1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Probability before minus after hiding the best n positions, averaged over some n.

    Args:
        counts: The n to average over, all of them measured; None: every one that was.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    unit: ClassVar[str] = UNIT
    source: ClassVar[str] = "Yang et al. 2025, arXiv:2506.00698, the masking experiments"
    reads: ClassVar[Reads] = "curves"

    counts: tuple[int, ...] | None = None

    def __call__(self, curves: Curves) -> Float[Tensor, "a f j b"]:
        wanted = curves.counts if self.counts is None else self.counts
        if not wanted or (missing := [n for n in wanted if n not in curves.counts]):
            lacking = f"n={missing[0]}" if wanted else "an empty list of n"
            raise ConfigError(f"{lacking} was not measured; measured: {', '.join(map(str, curves.counts))}")
        return _fall(curves, curves.removed[:, :, [curves.counts.index(n) for n in wanted]])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comprehensiveness:
    """Probability before minus after hiding the best n positions, averaged over every n that was measured."""

    better: ClassVar[Literal["higher"]] = "higher"
    unit: ClassVar[str] = UNIT
    source: ClassVar[str] = "DeYoung et al. 2020, arXiv:1911.03429, section 4, aggregated over bins of n"
    reads: ClassVar[Reads] = "curves"

    def __call__(self, curves: Curves) -> Float[Tensor, "a f j b"]:
        return _fall(curves, curves.removed)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sufficiency:
    """Probability before minus with all but the best n positions hidden, averaged over every n that was measured."""

    better: ClassVar[Literal["lower"]] = "lower"
    unit: ClassVar[str] = UNIT
    source: ClassVar[str] = Comprehensiveness.source
    reads: ClassVar[Reads] = "curves"

    def __call__(self, curves: Curves) -> Float[Tensor, "a f j b"]:
        return _fall(curves, kept_of(curves))


def _fall(curves: Curves, after: Float[Tensor, "a f n j b"]) -> Float[Tensor, "a f j b"]:
    """Before minus after, mean over n."""
    return (curves.before.double() - after.double()).mean(2).float()
