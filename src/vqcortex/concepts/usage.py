"""Which codes a data set uses, and how evenly: counts per level, perplexity, dead codes.

Counting is in steps, so that it runs over any number of images in flat memory and in any order: `count_codes` counts
one batch, `+` adds counts up, `measure_usage` reads the sum. Only codes that occur take memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.adapters.protocol import Level, split_levels
from vqcortex.errors import ConfigError, ModelError, TokenError
from vqcortex.results import Column, Table

ALL = "all"
# Spans of code ids up to this are counted in an array with a place per id (8 MB), wider ones by sorting.
_DENSE = 1 << 20
# Rows of the table of codes up to which dead codes are listed in it.
LISTED = 100_000


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CodeCounts:
    """How often codes occur; those that never do are left out.

    Args:
        codes: Ids, ascending.
        tokens: Positions that hold each, at least 1.
        images: Images that hold each at least once, at least 1.
    """

    codes: Int[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    images: Int[Tensor, " n"]

    def __add__(self, other: CodeCounts) -> CodeCounts:
        codes, place = torch.cat([self.codes, other.codes]).unique(return_inverse=True)
        tokens, images = torch.zeros_like(codes), torch.zeros_like(codes)
        tokens.index_add_(0, place, torch.cat([self.tokens, other.tokens]))
        images.index_add_(0, place, torch.cat([self.images, other.images]))
        return CodeCounts(codes=codes, tokens=tokens, images=images)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UsageCounts:
    """Counts of some images; counts of disjoint images add up.

    Args:
        images: Images counted.
        levels: One per level of the model, in its order.
    """

    images: int
    levels: tuple[CodeCounts, ...]

    def __add__(self, other: UsageCounts) -> UsageCounts:
        pairs = zip(self.levels, other.levels, strict=True)
        return UsageCounts(images=self.images + other.images, levels=tuple(one + two for one, two in pairs))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LevelUsage:
    """How a level uses the codes that may stand in it.

    Args:
        name: The level's; "all" for all levels together.
        ranges: Ids that may stand in it, half-open and disjoint, ascending.
        images: Images counted.
        codes: Live codes (those that occur), the most used first, the lower id first where they tie.
        counts: Tokens of each.
        images_with: Images that hold each; None for several levels together, where it is not counted.
        entropy: Of the share of each code among the tokens, as counted (plug-in estimate), in nats.
        half: Fewest codes that hold at least half of all tokens.
        gini: Gini coefficient of the counts of all codes, dead ones included: 0 if all are used alike,
            1 - 1/size if one code holds every token.
    """

    name: str
    ranges: tuple[tuple[int, int], ...]
    images: int
    codes: Int[Tensor, " n"]
    counts: Int[Tensor, " n"]
    images_with: Int[Tensor, " n"] | None
    entropy: float
    half: int
    gini: float

    @property
    def size(self) -> int:
        """Codes that may stand in it."""
        return sum(past - first for first, past in self.ranges)

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return int(self.counts.sum())

    @property
    def live(self) -> int:
        """Codes that occur."""
        return len(self.codes)

    @property
    def dead(self) -> int:
        """Codes that never occur."""
        return self.size - self.live

    @property
    def perplexity(self) -> float:
        """exp(entropy), 1 to `size`: so many codes, all used alike, would have the same entropy."""
        return min(max(math.exp(self.entropy), 1.0), float(self.size))

    @property
    def corrected_perplexity(self) -> float:
        """exp(entropy + (live - 1) / (2 tokens)), at most `size`.

        Counted shares are more uneven than those behind them, so the plug-in entropy is too low; the added term is
        the first-order correction for independent tokens. Tokens of one image are not independent, so that the truth
        may lie higher still.

        Source:
            Miller 1955, Note on the bias of information estimates.
        """
        raised = self.entropy + (self.live - 1) / (2 * self.tokens)
        return min(max(math.exp(raised), 1.0), float(self.size))

    @property
    def top_share(self) -> float:
        """Share of all tokens that the most used code holds."""
        return int(self.counts[0]) / self.tokens

    def dead_codes(self, most: int | None = None) -> list[int]:
        """The first `most` codes that never occur, ascending; None: all."""
        found: list[int] = []
        for first, past in self.ranges:
            left = self.dead if most is None else most - len(found)
            # Of so many ids at most `live` are live: enough dead ones are among them.
            ids = torch.arange(first, min(past, first + self.live + left))
            found += ids[~torch.isin(ids, self.codes)][:left].tolist()
        return found


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How a data set uses a codebook.

    Args:
        levels: Per level of the model, in its order.
        all: All levels together; codes of a codebook that levels share are counted once. Equal to the level where there
            is one.
    """

    levels: tuple[LevelUsage, ...]
    all: LevelUsage


def no_counts(levels: Sequence[Level]) -> UsageCounts:
    """Counts of no image: what a sum begins with."""
    none = torch.zeros(0, dtype=torch.int64)
    return UsageCounts(images=0, levels=tuple(CodeCounts(codes=none, tokens=none, images=none) for _ in levels))


def check_levels(levels: Sequence[Level]) -> None:
    """Return quietly if usage can be told apart by level.

    Raises:
        ModelError: No level, a level without codes, or two of one name.
    """
    names = [one.name for one in levels]
    if not levels:
        raise ModelError("the model has no levels; an adapter gives at least 1, with vqcortex.adapters.one_level")
    for one in levels:
        if not 0 <= one.codes[0] < one.codes[1]:
            raise ModelError(
                f"level {one.name!r} has codes={one.codes}; a level holds at least 1 code, as (first, past the last) "
                "from 0; mend the adapter"
            )
    twice = [name for name in names if names.count(name) > 1 or (name == ALL and len(names) > 1)]
    if twice:
        raise ModelError(f"level name {twice[0]!r} is taken ({', '.join(names)}, {ALL}); give each level its own")


def count_codes(tokens: Int[Tensor, "b h w"], levels: Sequence[Level]) -> UsageCounts:
    """Count the codes of a batch, level by level.

    Args:
        tokens: Grids as the model's adapter lays them out.
        levels: The model's.
    Raises:
        TokenError: A code stands in a level that is not its own.
        ShapeError: Several levels, and grids of another length than theirs together.
    """
    parts = [tokens] if len(levels) == 1 else split_levels(tokens, levels)
    counted = (_count(part.flatten(1), level) for part, level in zip(parts, levels, strict=True))
    return UsageCounts(images=len(tokens), levels=tuple(counted))


def _count(rows: Int[Tensor, "b n"], level: Level) -> CodeCounts:
    first, past = level.codes
    if not rows.numel():
        return no_counts([level]).levels[0]
    low, high = (int(end) for end in rows.aminmax())
    if low < first or high >= past:
        raise TokenError(
            f"tokens of level {level.name!r} span [{low}, {high}] but its codes are [{first}, {past - 1}]; "
            "was the store written with another adapter?"
        )
    # Sorted within each image, so that the first of every run of equal ids is one image that holds it.
    kind = np.int32 if past - first <= 2**31 else np.int64
    ordered = np.sort((rows.cpu() - first).numpy().astype(kind), axis=1)
    is_new = np.ones(ordered.shape, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    codes, counts = _tally(ordered.ravel(), past - first)
    _, images = _tally(ordered[is_new], past - first)
    return CodeCounts(
        codes=torch.from_numpy(codes.astype(np.int64)) + first,
        tokens=torch.from_numpy(counts.astype(np.int64)),
        images=torch.from_numpy(images.astype(np.int64)),
    )


def _tally(ids: np.ndarray, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids that occur, ascending, and how often; ids lie in 0..span-1."""
    if span > _DENSE:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids, minlength=span)
    codes = counts.nonzero()[0]
    return codes, counts[codes]


def measure_usage(counts: UsageCounts, levels: Sequence[Level]) -> Usage:
    """Read counts.

    Raises:
        ConfigError: No image was counted.
        ModelError: See `check_levels`.
    """
    check_levels(levels)
    if not counts.images or not all(len(one.codes) for one in counts.levels):
        raise ConfigError(f"the codes of {counts.images} images were counted; at least 1 image with tokens is needed")
    found = [
        _usage(level.name, (level.codes,), counts.images, one.codes, one.tokens, one.images)
        for level, one in zip(levels, counts.levels, strict=True)
    ]
    if len(found) == 1:
        only = found[0]
        joint = _usage(ALL, only.ranges, only.images, only.codes, only.counts, only.images_with)
    else:
        whole = sum(counts.levels[1:], start=counts.levels[0])
        joint = _usage(ALL, union([one.codes for one in levels]), counts.images, whole.codes, whole.tokens, None)
    return Usage(levels=tuple(found), all=joint)


def union(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Half-open ranges joined where they touch or overlap, ascending.

    Example:
        >>> union([(4, 8), (0, 4), (6, 9), (20, 21)])
        ((0, 9), (20, 21))
    """
    found: list[tuple[int, int]] = []
    for first, past in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(past, found[-1][1]))
        else:
            found.append((first, past))
    return tuple(found)


def _usage(
    name: str,
    ranges: tuple[tuple[int, int], ...],
    images: int,
    codes: Tensor,
    tokens: Tensor,
    images_with: Tensor | None,
) -> LevelUsage:
    # By count, then by id: ids come ascending, and a stable sort keeps them so where counts tie.
    order = tokens.argsort(descending=True, stable=True)
    counts: list[int] = tokens[order].tolist()
    size = sum(past - first for first, past in ranges)
    return LevelUsage(
        name=name, ranges=ranges, images=images, codes=codes[order], counts=tokens[order],
        images_with=None if images_with is None else images_with[order],
        entropy=entropy_of(counts), half=codes_of_half(counts), gini=gini_of(counts, size),
    )  # fmt: skip


def entropy_of(counts: Sequence[int]) -> float:
    """Entropy of the shares of `counts` (each at least 1), in nats; the sum is exact, so order does not matter."""
    total = sum(counts)
    return max(0.0, -math.fsum(one / total * math.log(one / total) for one in counts))


def codes_of_half(counts: Sequence[int]) -> int:
    """Fewest entries that hold at least half of the sum; `counts` come largest first.

    Example:
        >>> codes_of_half([3, 2, 1]), codes_of_half([1, 1, 1, 1])
        (1, 2)
    """
    total, seen = sum(counts), 0
    for number, one in enumerate(counts, 1):
        seen += one
        if 2 * seen >= total:
            return number
    return len(counts)


def gini_of(counts: Sequence[int], size: int) -> float:
    """Gini coefficient of `size` counts of which the largest are given, largest first, and the rest are 0.

    Half the mean absolute difference of two counts drawn at random, over the mean count; in whole numbers until the
    last division, so it is exact.

    Example:
        >>> gini_of([5, 5], 2), gini_of([7], 4)
        (0.0, 0.75)
    """
    total = sum(counts)
    # Ranked from the smallest: the largest has rank `size`. Dead codes add nothing.
    ranked = sum((size - place) * one for place, one in enumerate(counts))
    return (2 * ranked - (size + 1) * total) / (size * total)


USAGE_COLUMNS = {
    "level": Column(unit="name", meaning="The level of the model's tokens; 'tokens' where there is one."),
    "rank": Column(unit="rank, from 1", meaning="Place by count within the level, ties by code id; empty: dead."),
    "code": Column(unit="code id", meaning="The code."),
    "count": Column(unit="tokens", meaning="Positions of the level that hold it, over all images; 0 for a dead code."),
    "share": Column(unit="share, 0 to 1", meaning="Count per token of the level."),
    "images_with_code": Column(unit="images", meaning="Images that hold it in this level at least once."),
}

LEVEL_COLUMNS = {
    "level": Column(unit="name", meaning="The level, or 'all': every level, a shared code counted once."),
    "codes": Column(unit="codes", meaning="Codes that may stand in the level."),
    "images": Column(unit="images", meaning="Images counted."),
    "tokens": Column(unit="tokens", meaning="Tokens counted: images times positions of the level."),
    "live": Column(unit="codes", meaning="Codes that occur at least once in these images."),
    "dead": Column(unit="codes", meaning="Codes that never occur in these images; more images may still use them."),
    "entropy": Column(unit="nats", meaning="Plug-in entropy of the shares of the codes: minus the sum of p ln p."),
    "perplexity": Column(unit="codes", meaning="exp(entropy): so many codes, all used alike, have this entropy."),
    "corrected_perplexity": Column(
        unit="codes",
        meaning="exp(entropy + (live - 1) / (2 tokens)), at most codes: first-order correction of the plug-in's bias "
        "(Miller 1955), for independent tokens.",
    ),
    "perplexity_share": Column(unit="share, 0 to 1", meaning="Perplexity per code: 1 if all codes are used alike."),
    "top_code": Column(unit="code id", meaning="The most used code."),
    "top_share": Column(unit="share, 0 to 1", meaning="Share of the tokens it holds."),
    "half_codes": Column(unit="codes", meaning="Fewest codes that hold at least half of the tokens."),
    "half_share": Column(unit="share, 0 to 1", meaning="half_codes per code of the level."),
    "gini": Column(unit="0 to 1", meaning="Gini coefficient of the counts, dead codes included: 0 is even use."),
}


def usage_table(usage: Usage) -> Table:
    """A row per level and code, the most used first, dead codes last.

    With more than 100,000 codes over all levels only live codes have rows; usage_levels says how many are dead.
    """
    is_whole = sum(one.size for one in usage.levels) <= LISTED
    rows = []
    for one in usage.levels:
        assert one.images_with is not None
        total = one.tokens
        live = zip(one.codes.tolist(), one.counts.tolist(), one.images_with.tolist(), strict=True)
        rows += [
            {
                "level": one.name, "rank": rank, "code": code, "count": count, "share": count / total,
                "images_with_code": images,
            }
            for rank, (code, count, images) in enumerate(live, 1)
        ]  # fmt: skip
        rows += [
            {"level": one.name, "rank": None, "code": code, "count": 0, "share": 0.0, "images_with_code": 0}
            for code in (one.dead_codes() if is_whole else ())
        ]
    return Table("usage", USAGE_COLUMNS, rows)


def levels_table(usage: Usage) -> Table:
    """A row per level, and one for all levels together."""
    rows = [
        {
            "level": one.name, "codes": one.size, "images": one.images, "tokens": one.tokens,
            "live": one.live, "dead": one.dead, "entropy": one.entropy, "perplexity": one.perplexity,
            "corrected_perplexity": one.corrected_perplexity, "perplexity_share": one.perplexity / one.size,
            "top_code": int(one.codes[0]), "top_share": one.top_share,
            "half_codes": one.half, "half_share": one.half / one.size, "gini": one.gini,
        }
        for one in (*usage.levels, usage.all)
    ]  # fmt: skip
    return Table("usage_levels", LEVEL_COLUMNS, rows)
