"""Which codes carry an attribute, and how much more often they stand in neutral images than they would at even rates.

Source:
    Benjamini and Hochberg 1995 (false discoveries over the codebook). Where we differ from Yang et al. 2025,
    arXiv:2506.00698, who count each group's concept tokens in neutral images and compare the two counts: two lists of
    codes need not occur equally often even if the groups do, so every count is held against what even rates would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor

from vqcortex.audit.effect import Effect, check_groups, compare_histograms, count_histogram, delta_of_histograms
from vqcortex.results import Column, Table
from vqcortex.significance import false_discovery

NEGLIGIBLE = 0.147  # smaller deltas are called negligible; Romano et al. 2006


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Carriers:
    """How m codes relate to c groups, and to neutral images.

    Args:
        names: Of the groups.
        codes: Live codes, ascending.
        effects: Of each group's counts against the other groups' together.
        q: P-values of those, corrected for all codes and groups, (c, m).
        shares: Share of each group's images that hold the code, (c, m).
        neutral: Share of neutral images that hold it.
        expected: The same if groups were as frequent as the reference says.
        excess_low: Lower end of the interval of `neutral - expected`.
        excess_high: Upper end.
        excess_q: P-values of "no excess", corrected for all codes.
    """

    names: tuple[str, ...]
    codes: Int[Tensor, " m"]
    effects: tuple[Effect, ...]
    q: Float[Tensor, "c m"]
    shares: Float[Tensor, "c m"]
    neutral: Float[Tensor, " m"]
    expected: Float[Tensor, " m"]
    excess_low: Float[Tensor, " m"]
    excess_high: Float[Tensor, " m"]
    excess_q: Float[Tensor, " m"]

    def of(self, group: int, alpha: float) -> list[int]:
        """Places in `codes` of what carries a group, the largest effect first, then the lower code."""
        effect = self.effects[group].delta
        carries = (self.q[group] <= alpha) & (effect >= NEGLIGIBLE)
        return sorted(carries.nonzero()[:, 0].tolist(), key=lambda at: (-float(effect[at]), at))


def find_carriers(
    groups: Mapping[str, Int[Tensor, "_ h w"]],
    neutral: Int[Tensor, "n h w"],
    codes: Int[Tensor, " m"],
    reference: Float[Tensor, " c"],
    level: float = 0.95,
) -> Carriers:
    """Compare every live code between groups, and between neutral images and what even rates would give.

    Args:
        groups: Attribute images by name, at least two groups of at least 2.
        neutral: Neutral images, at least 2.
        codes: From `live_codes` of all of them.
        reference: Even rates, summing to 1.
        level: Of the intervals.

    Raises:
        ConfigError: Fewer than two groups.
        DataError: A group or the neutral set is empty or has one image.
    """
    check_groups({**groups})
    check_groups({"neutral": neutral, **groups})
    histograms = torch.stack([count_histogram(one, codes) for one in groups.values()])  # (c, m, v)
    everyone = histograms.sum(0)
    effects = tuple(compare_histograms(one, everyone - one, level) for one in histograms)
    pooled = false_discovery([p for one in effects for p in one.p.tolist()])
    shares = torch.stack([_having(one) for one in histograms])
    found = _having(count_histogram(neutral, codes))
    expected = reference @ shares
    images = torch.tensor([len(one) for one in groups.values()], dtype=torch.float64)
    # Half an image on either side: no share is so sure that its error is nothing.
    spread = _variance(found, len(neutral)) + (reference[:, None] ** 2 * _variance(shares, images[:, None])).sum(0)
    z, error = float(norm.ppf((1 + level) / 2)), spread.sqrt()
    p = 2 * norm.sf(((found - expected).abs() / error).numpy())
    return Carriers(
        names=tuple(groups),
        codes=codes,
        effects=effects,
        q=torch.tensor(pooled, dtype=torch.float64).view(len(groups), -1),
        shares=shares,
        neutral=found,
        expected=expected,
        excess_low=found - expected - z * error,
        excess_high=found - expected + z * error,
        excess_q=torch.tensor(false_discovery(p.tolist()), dtype=torch.float64),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ListCounts:
    """Tokens of two groups' lists in neutral images.

    Args:
        one: Tokens of the first group's list in each neutral image.
        other: Tokens of the second group's.
        expected: Cliff's delta of the two if groups were as frequent as the reference says.
    """

    one: Int[Tensor, " n"]
    other: Int[Tensor, " n"]
    expected: float


def count_lists(
    lists: tuple[Sequence[int], Sequence[int]],
    groups: Sequence[Int[Tensor, "_ h w"]],
    neutral: Int[Tensor, "n h w"],
    reference: Float[Tensor, " c"],
) -> ListCounts:
    """Count two lists of codes in neutral images, and what those counts would be at even rates.

    Args:
        lists: Codes of the first and of the second group, without those that they share.
        groups: Attribute images of all groups.
        neutral: Neutral images.
        reference: Even rates of the groups.
    """
    one, other = (_tokens_of(neutral, some) for some in lists)
    cells = neutral.shape[1] * neutral.shape[2] + 1
    even = [
        sum(
            weight * _tokens_of(grids, some).bincount(minlength=cells).double() / len(grids)
            for weight, grids in zip(reference.tolist(), groups, strict=True)
        )
        for some in lists
    ]
    expected = delta_of_histograms(*(torch.as_tensor(some)[None] for some in even))
    return ListCounts(one=one, other=other, expected=float(expected[0]))


def without_shared(lists: Mapping[str, Sequence[int]]) -> tuple[dict[str, list[int]], list[int]]:
    """Lists of codes without those that two or more of them hold, and those, ascending.

    Example:
        >>> without_shared({"a": [3, 1], "b": [1, 2]})
        ({'a': [3], 'b': [2]}, [1])
    """
    times: dict[int, int] = {}
    for some in lists.values():
        for code in set(some):
            times[code] = times.get(code, 0) + 1
    shared = sorted(code for code, number in times.items() if number > 1)
    return {name: [code for code in some if times[code] == 1] for name, some in lists.items()}, shared


COLUMNS = {
    "group": Column(unit="name", meaning="The attribute group that the code speaks for."),
    "rank": Column(unit="rank, from 1", meaning="Place among the codes that carry the group, by effect."),
    "code": Column(unit="code id", meaning="The code."),
    "delta": Column(unit="Cliff's delta, -1 to 1", meaning="Count per image: this group against the others."),
    "delta_low": Column(unit="Cliff's delta, -1 to 1", meaning="Lower end of its 95 % interval."),
    "delta_high": Column(unit="Cliff's delta, -1 to 1", meaning="Upper end of its 95 % interval."),
    "q": Column(unit="p-value", meaning="Of no difference, corrected for every code and group (false discoveries)."),
    "share": Column(unit="share, 0 to 1", meaning="Images of the group that hold the code."),
    "elsewhere": Column(unit="share, 0 to 1", meaning="The same for the other groups, each counting alike."),
    "neutral": Column(unit="share, 0 to 1", meaning="Neutral images that hold it."),
    "expected": Column(unit="share, 0 to 1", meaning="Neutral images that would hold it at even rates."),
    "excess_low": Column(unit="share, -1 to 1", meaning="Lower end of the 95 % interval of neutral less expected."),
    "excess_high": Column(unit="share, -1 to 1", meaning="Upper end of that interval."),
    "excess_q": Column(unit="p-value", meaning="Of no excess, corrected for every code (false discoveries)."),
    "is_concept_token": Column(
        unit="yes or no", meaning="Whether the extractor leans on it: it is among the group's concept tokens."
    ),
    "is_shared": Column(unit="yes or no", meaning="Whether it is a concept token of another group too."),
}


def carriers_table(found: Carriers, lists: Mapping[str, Sequence[int]], alpha: float) -> Table:
    """The codes that carry each group, best first.

    Args:
        found: From `find_carriers`.
        lists: Each group's concept tokens, shared ones included.
        alpha: Share of false discoveries allowed.
    """
    shared, rows = set(without_shared(lists)[1]), []
    for number, name in enumerate(found.names):
        effect = found.effects[number]
        others = [place for place in range(len(found.names)) if place != number]
        for rank, at in enumerate(found.of(number, alpha), start=1):
            code = int(found.codes[at])
            row: dict[str, Any] = {
                "group": name, "rank": rank, "code": code,
                "delta": effect.delta[at], "delta_low": effect.low[at], "delta_high": effect.high[at],
                "q": found.q[number, at], "share": found.shares[number, at],
                "elsewhere": found.shares[others, at].mean(), "neutral": found.neutral[at],
                "expected": found.expected[at], "excess_low": found.excess_low[at],
                "excess_high": found.excess_high[at], "excess_q": found.excess_q[at],
            }  # fmt: skip
            plain = {key: float(value) if isinstance(value, Tensor) else value for key, value in row.items()}
            rows.append({**plain, "is_concept_token": code in lists[name], "is_shared": code in shared})
    return Table("audit_tokens", COLUMNS, rows)


def _having(histogram: Tensor) -> Tensor:
    """Share of images with at least one."""
    return 1 - histogram[:, 0].double() / histogram.sum(1)


def _variance(share: Tensor, images: Tensor | int) -> Tensor:
    smooth = (share * images + 0.5) / (images + 1)
    return smooth * (1 - smooth) / images


def _tokens_of(grids: Tensor, codes: Sequence[int]) -> Tensor:
    """Tokens per image that are one of these codes."""
    return torch.isin(grids.flatten(1).cpu().long(), torch.tensor(list(codes), dtype=torch.int64)).sum(1)
