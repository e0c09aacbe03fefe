"""How alike two explanations of the same images are: over seeds, over extractors, between methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.config import raise_all
from vqcortex.evaluation.arms import hide_top
from vqcortex.evaluation.metrics.protocol import MapMetric, Reads, check_maps
from vqcortex.evaluation.rank_agreement import rank_correlation
from vqcortex.evaluation.values import check_names


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RankAgreement:
    """Rank correlation of two maps of an image; 0 where either is constant, which orders nothing."""

    better: ClassVar[Literal["higher"]] = "higher"
    unit: ClassVar[str] = "rank correlation, -1 to 1"
    source: ClassVar[str] = "Spearman 1904, with mean ranks for ties; Adebayo et al. 2018, arXiv:1810.03292, section 4"
    reads: ClassVar[Reads] = "maps"

    def __call__(self, first: Float[Tensor, "b h w"], second: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        check_maps(first, second, "the other maps")
        check_maps(second, first, "the other maps")
        return rank_correlation(first, second).rho.float()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopOverlap:
    """Positions among the best n of both maps, as a share of those among the best n of either.

    Args:
        share: n as a share of the positions, above 0 and at most 1; rounded, at least 1 position.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    unit: ClassVar[str] = "share, 0 to 1"
    source: ClassVar[str] = "Jaccard 1901"
    reads: ClassVar[Reads] = "maps"

    share: float = 0.1

    def __post_init__(self) -> None:
        raise_all(self._problems())

    def __call__(self, first: Float[Tensor, "b h w"], second: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        check_maps(first, second, "the other maps")
        n = max(1, round(self.share * first[0].numel()))
        one, two = hide_top(first, n).flatten(1), hide_top(second, n).flatten(1)
        return (one & two).sum(1).float() / (one | two).sum(1)

    def _problems(self) -> Iterator[str]:
        if not 0 < self.share <= 1:
            yield f"share={self.share} must be above 0 and at most 1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How alike every two of m methods are.

    Args:
        names: m of them.
        values: Per pair and image, (m, m, b); symmetric.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "m m b"] = field(repr=False)

    @property
    def mean(self) -> Float[Tensor, "m m"]:
        """Over images."""
        return self.values.double().mean(2).float()


def agreement_table(maps: Mapping[str, Float[Tensor, "b h w"]], metric: MapMetric | None = None) -> Agreement:
    """Hold every map against every other.

    Args:
        maps: By name of method, seed or extractor; of the same images in the same order.
        metric: A symmetric one; None: `RankAgreement`.
    """
    names, compare = tuple(maps), metric or RankAgreement()
    check_names("map", names)
    pairs = {(i, j): compare(maps[names[i]], maps[names[j]]) for i in range(len(names)) for j in range(i, len(names))}
    rows = [torch.stack([pairs[min(i, j), max(i, j)] for j in range(len(names))]) for i in range(len(names))]
    return Agreement(names=names, values=torch.stack(rows))


def mean_ranks(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b n"]:
    """Ranks of the positions of each map from 0, lowest first, float64; equal values share their mean rank."""
    values, order = maps.flatten(1).sort(dim=1)
    run = torch.cat([torch.zeros_like(order[:, :1]), (values[:, 1:] != values[:, :-1]).long().cumsum(1)], 1)
    place = torch.arange(values.shape[1], dtype=torch.float64, device=maps.device).expand(values.shape)
    total, count = (torch.zeros_like(place).scatter_add(1, run, each) for each in (place, torch.ones_like(place)))
    return torch.empty_like(place).scatter(1, order, (total / count.clamp(min=1)).gather(1, run))
