"""Whether a map finds the positions that are known to matter: in a planted world, under a known object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError
from vqcortex.evaluation.arms import places
from vqcortex.evaluation.metrics.agreement import mean_ranks
from vqcortex.evaluation.metrics.protocol import Reads, check_maps


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LocalisationAUROC:
    """Chance that a position that matters scores above one that does not; equal scores count half."""

    better: ClassVar[Literal["higher"]] = "higher"
    unit: ClassVar[str] = "probability, 0 to 1; 0.5 by chance"
    source: ClassVar[str] = "Mann and Whitney 1947, the statistic U over its largest value"
    reads: ClassVar[Reads] = "mask"

    def __call__(self, scores: Float[Tensor, "b h w"], relevant: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        count = checked_count(scores, relevant)
        above = (mean_ranks(scores) * relevant.flatten(1)).sum(1) - count * (count - 1) / 2
        return (above / (count * (relevant[0].numel() - count))).float()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LocalisationPrecision:
    """Share of positions that matter among the best n, n being how many matter; ties go in reading order."""

    better: ClassVar[Literal["higher"]] = "higher"
    unit: ClassVar[str] = "share, 0 to 1"
    source: ClassVar[str] = "R-precision: Manning et al. 2008, Introduction to Information Retrieval, section 8.4"
    reads: ClassVar[Reads] = "mask"

    def __call__(self, scores: Float[Tensor, "b h w"], relevant: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        count = checked_count(scores, relevant)
        found = (places(scores) < count[:, None, None]) & relevant
        return found.flatten(1).sum(1).float() / count


def checked_count(scores: Float[Tensor, "b h w"], relevant: Bool[Tensor, "b h w"]) -> Int[Tensor, " b"]:
    """How many positions matter in each image.

    Raises:
        ConfigError: In some image none does, or all do: then nothing can be found.
    """
    check_maps(scores, relevant, "the mask")
    count, cells = relevant.flatten(1).sum(1), relevant[0].numel()
    pointless = ((count == 0) | (count == cells)).nonzero()[:, 0].tolist()
    if pointless:
        raise ConfigError(
            f"the mask marks {int(count[pointless[0]])} of {cells} positions of image number {pointless[0]} "
            f"({len(pointless)} such images), where nothing can be found; leave these images out"
        )
    return count
