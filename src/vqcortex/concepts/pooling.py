"""Concept tokens: the codes found most often among the most important positions of a concept's images.

Counts are enough for everything here, intervals included, so memory grows neither with the images nor with
resamples: every shard yields a `PoolCounts`, and these add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import ceil
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import bdtr, bdtrik
from torch import Tensor

from vqcortex.concepts.saliency import check_concepts, rank_positions
from vqcortex.errors import ConfigError, ShapeError, TokenError
from vqcortex.results import Column, Table

PUBLISHED_POSITIONS = (1, 5, 10, 20)
PUBLISHED_KEEP = 100
DENSE = 8  # bins per key up to which counting in a dense table beats sorting


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounts:
    """How often every code is found where it matters, per concept; counts of several shards add up with `+`.

    Args:
        positions: Numbers n of best positions looked at, rising.
        cells_per_image: h*w.
        images: Images per concept, (c,).
        cells: For every n, among the n best positions of all images, those that hold the code, (c, k).
        having: For every n, images with the code at one or more of their n best positions, (c, k).
        total: For every n, the sum of `cells` over concepts, (p, k).
        everywhere: Positions of whole grids that hold the code, (c, k).
    """

    positions: tuple[int, ...]
    cells_per_image: int
    images: Int[Tensor, " c"]
    cells: tuple[sparse.csr_array, ...]
    having: tuple[sparse.csr_array, ...]
    total: Int[Tensor, "p k"]
    everywhere: sparse.csr_array

    def __add__(self, other: PoolCounts) -> PoolCounts:
        mine, theirs = _kind(self), _kind(other)
        if mine != theirs:
            raise ConfigError(
                f"counts over (positions, h*w, concepts, codes) {mine} and {theirs} do not add up; "
                "count every shard with the same settings"
            )
        return PoolCounts(
            positions=self.positions,
            cells_per_image=self.cells_per_image,
            images=self.images + other.images,
            cells=tuple(a + b for a, b in zip(self.cells, other.cells, strict=True)),
            having=tuple(a + b for a, b in zip(self.having, other.having, strict=True)),
            total=self.total + other.total,
            everywhere=self.everywhere + other.everywhere,
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptTokens:
    """The codes that make a concept, in order: count, then lift, then code id.

    Args:
        concept: Index of the concept.
        n: Best positions looked at per image.
        images: Images of the concept.
        codes: The codes, (v,).
        counts: Best positions that hold the code, over all images of the concept, (v,).
        share: Share of the concept's images with the code at one or more of their n best positions, 0 to 1,
            (v,).
        low: Lower end of the 95 % bootstrap interval of `share` over images, (v,).
        high: Upper end, (v,).
        lift: How many times likelier the code is at a best position of this concept than at one of the other
            concepts, (v,); NaN where no other concept has images.
        frequency: Share of all positions of the concept's images that hold the code, 0 to 1, (v,).
    """

    concept: int
    n: int
    images: int
    codes: Int[Tensor, " v"]
    counts: Int[Tensor, " v"]
    share: Float[Tensor, " v"]
    low: Float[Tensor, " v"]
    high: Float[Tensor, " v"]
    lift: Float[Tensor, " v"]
    frequency: Float[Tensor, " v"]


def count_image_tokens(
    tokens: Int[Tensor, "b h w"],
    importance: Float[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    *,
    k: int,
    concepts: int,
    positions: Sequence[int] = PUBLISHED_POSITIONS,
) -> PoolCounts:
    """Return the counts of one shard; the order of images and their split into shards change nothing.

    Args:
        importance: Higher is more; ties go to the position that comes first, row by row.
        k: Codes in the codebook.
        concepts: How many concepts there are.
        positions: Numbers n of best positions to look at, each 1..h*w, in any order.

    Raises:
        ConfigError: An n is outside 1..h*w, or a concept outside 0..concepts-1.
        TokenError: A token is outside 0..k-1.
    """
    wanted = _checked_positions(positions, tokens.shape[1], tokens.shape[2])
    _check_tokens(tokens, k)
    check_concepts(concept, len(tokens), concepts)
    best = best_tokens(tokens, importance, wanted[-1]).numpy()
    grids, labels = tokens.flatten(1).cpu().numpy(), concept.cpu().numpy()
    band = np.searchsorted(wanted, np.arange(wanted[-1]), side="right")  # of a rank: which n sees it first
    pairs = (band * concepts + labels[:, None]) * k + best
    shape = (len(wanted), concepts, k)
    return PoolCounts(
        positions=wanted,
        cells_per_image=grids.shape[1],
        images=torch.from_numpy(np.bincount(labels, minlength=concepts)),
        cells=tuple(accumulate(_count(pairs.ravel(), shape))),
        having=tuple(accumulate(_count(pairs[_is_first_in_row(best)], shape))),
        total=torch.from_numpy(
            np.bincount((band * k + best).ravel(), minlength=len(wanted) * k).reshape(-1, k).cumsum(0)
        ),
        everywhere=_count_grids(grids, labels, concepts, k),
    )


def best_tokens(tokens: Int[Tensor, "b h w"], importance: Float[Tensor, "_ _ _"], n: int) -> Int[Tensor, "b n"]:
    """Return the tokens at the n most important positions of each image, best first, on the CPU."""
    if tokens.shape != importance.shape:
        raise ShapeError(
            f"tokens {tuple(tokens.shape)} and importance {tuple(importance.shape)} must have one shape; "
            "were both made from the same store?"
        )
    # 64 bits whatever the store holds: sums with concepts and ranks follow.
    return tokens.flatten(1).cpu().gather(1, rank_positions(importance, n)).long()


def concept_tokens(pool: PoolCounts, concept: int, n: int, keep: int | None = PUBLISHED_KEEP) -> ConceptTokens:
    """Return the codes found most often at the n best positions of a concept's images.

    The interval of the share is that of the percentile bootstrap over images with endlessly many resamples:
    drawing N images with replacement, of which a share p has the code, gives a Binomial(N, p) number of
    images that have it, so the quantiles are read off that distribution, with no random draws. Like every
    bootstrap it is too short where the share is 0 or 1. For the lift, half an occurrence and half a
    non-occurrence are added on both sides, so that a code that no other concept has gets a finite lift.

    Args:
        concept: Index of the concept.
        n: One of `pool.positions`.
        keep: Codes kept, at least 1; None: every code that was found.

    Raises:
        ConfigError: The concept has no images, or `n` was not counted, or `keep` is below 1.

    Source:
        Yang et al. 2025, arXiv:2506.00698, concept tokens (n in 1, 5, 10, 20; the 100 most frequent). Share,
        interval, lift and frequency are ours; equal counts are settled by lift, then code id, not by order of
        appearance.
    """
    at = _checked_request(pool, concept, n, keep)
    images = int(pool.images[concept])
    codes, counts = _row(pool.cells[at], concept)
    lift = _lift(pool, at, images, codes, counts)
    order = np.lexsort((codes, -np.nan_to_num(lift), -counts))[:keep]
    codes, counts, lift = codes[order], counts[order], lift[order]
    having = _counts_of(codes, pool.having[at], concept)
    ends = np.array([_bootstrap_interval(one, images) for one in having.tolist()]).reshape(-1, 2)
    return ConceptTokens(
        concept=concept,
        n=n,
        images=images,
        codes=torch.from_numpy(codes),
        counts=torch.from_numpy(counts),
        share=torch.from_numpy(having / images),
        low=torch.from_numpy(ends[:, 0]),
        high=torch.from_numpy(ends[:, 1]),
        lift=torch.from_numpy(lift),
        frequency=torch.from_numpy(_counts_of(codes, pool.everywhere, concept) / (images * pool.cells_per_image)),
    )


def all_concept_tokens(pool: PoolCounts, n: int, keep: int | None = PUBLISHED_KEEP) -> list[ConceptTokens]:
    """Return `concept_tokens` of every concept that has images, made in one pass over all counts.

    The same values, many times faster where there are many concepts.

    Args:
        n: One of `pool.positions`.
        keep: Codes kept per concept, at least 1; None: every code that was found.

    Raises:
        ConfigError: No concept has images, or `n` was not counted, or `keep` is below 1.
    """
    images = pool.images.numpy()
    at = _checked_request(pool, int(images.argmax()), n, keep)
    rows, codes, counts = _most_frequent(pool, at, keep)
    bounds, mine = np.searchsorted(rows, np.arange(len(images) + 1)), images[rows]
    having = _looked_up(pool.having[at], bounds, codes)
    low, high = _intervals(having, mine)
    frequency = _looked_up(pool.everywhere, bounds, codes) / (mine * pool.cells_per_image)
    columns = {
        "codes": codes, "counts": counts, "share": having / mine, "low": low, "high": high,
        "lift": _lift(pool, at, mine, codes, counts), "frequency": frequency,
    }  # fmt: skip
    parts = {name: torch.from_numpy(column).split(np.diff(bounds).tolist()) for name, column in columns.items()}
    return [
        ConceptTokens(concept=one, n=n, images=int(images[one]), **{name: part[one] for name, part in parts.items()})
        for one in np.flatnonzero(images).tolist()
    ]


def _most_frequent(
    pool: PoolCounts, at: int, keep: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Concept, code and count of the codes kept, concept by concept, in order of count, then lift, then code.

    Of two codes with one count the rarer one over all concepts has the larger lift. So a place among all codes by
    rarity settles ties, and one plain sort of whole numbers, made of concept, count and place, does for everything.
    """
    cells, order = pool.cells[at], _from_rarest(pool, at)
    k, ends, place = len(order), cells.indptr.astype(np.int64), np.empty_like(order)
    place[order] = np.arange(k)
    sizes, most = np.diff(ends), int(cells.data.max(initial=0))
    above = np.repeat(np.arange(len(sizes)) * (most + 1) + most, sizes) - cells.data
    keys = np.sort(above * k + place[cells.indices])
    if keep is not None:
        keys = keys[np.arange(len(keys)) - np.repeat(ends[:-1], sizes) < keep]
    above, places = np.divmod(keys, k)
    rows, below = np.divmod(above, most + 1)
    return rows, order[places], most - below


def _from_rarest(pool: PoolCounts, at: int) -> NDArray[np.int64]:
    """All codes, the rarest over all concepts first, then by id; by id alone where there is no lift."""
    has_lift = int((pool.images > 0).sum()) > 1
    return np.argsort(pool.total[at].numpy(), kind="stable") if has_lift else np.arange(pool.total.shape[1])


def _looked_up(counts: sparse.csr_array, bounds: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts of codes that are known to be there; those of concept i lie between bounds i and i + 1."""
    at, narrow = np.empty(len(codes), np.int64), codes.astype(counts.indices.dtype)
    ends, edges = counts.indptr.tolist(), bounds.tolist()
    for concept in np.flatnonzero(np.diff(bounds)).tolist():
        mine = slice(edges[concept], edges[concept + 1])
        at[mine] = ends[concept] + counts.indices[ends[concept] : ends[concept + 1]].searchsorted(narrow[mine])
    return counts.data[at].astype(np.int64)


def _intervals(having: NDArray[np.int64], images: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends, each case worked out once."""
    wide = int(images.max(initial=0)) + 1
    cases, which = np.unique(having * wide + images, return_inverse=True)
    ends = np.array([_bootstrap_interval(*divmod(one, wide)) for one in cases.tolist()]).reshape(-1, 2)
    return ends[which, 0], ends[which, 1]


COLUMNS = {
    "concept": Column(unit="name", meaning="The concept."),
    "n": Column(unit="positions", meaning="Most important positions looked at per image."),
    "rank": Column(unit="rank, from 1", meaning="Place among the concept's tokens by count, then lift."),
    "code": Column(unit="code id", meaning="The code."),
    "count": Column(unit="positions", meaning="Best positions that hold the code, over all images of the concept."),
    "share": Column(unit="share, 0 to 1", meaning="Images of the concept with the code at a best position."),
    "share_low": Column(unit="share, 0 to 1", meaning="Lower end of its 95 % bootstrap interval over images."),
    "share_high": Column(unit="share, 0 to 1", meaning="Upper end of its 95 % bootstrap interval over images."),
    "lift": Column(unit="ratio", meaning="Likelihood at a best position, against the other concepts' images."),
    "frequency": Column(unit="share, 0 to 1", meaning="Positions of the concept's images that hold the code."),
    "images": Column(unit="images", meaning="Images of the concept."),
}


def tokens_table(found: Iterable[ConceptTokens], names: Sequence[str]) -> Table:
    """Return concept tokens as the rows of one table; `names` are the concepts' names, in order."""
    return Table("concept_tokens", COLUMNS, [row for one in found for row in _rows_of(one, names[one.concept])])


def _rows_of(found: ConceptTokens, name: str) -> list[dict[str, Any]]:
    values = (found.codes, found.counts, found.share, found.low, found.high, found.lift, found.frequency)
    keys = ("code", "count", "share", "share_low", "share_high", "lift", "frequency")
    same = {"concept": name, "n": found.n, "images": found.images}
    lists = zip(*(value.tolist() for value in values), strict=True)
    return [
        {**same, "rank": rank, **dict(zip(keys, row, strict=True))} | _no_nan(row[5])
        for rank, row in enumerate(lists, start=1)
    ]


def _no_nan(lift: float) -> dict[str, float | None]:
    return {"lift": None if np.isnan(lift) else lift}


def _is_first_in_row(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a code stands for the first time in its row: only there does an image begin to have it."""
    ranks = codes.shape[1]
    ordered = np.sort(codes * ranks + np.arange(ranks), axis=1)
    is_new = np.ones(codes.shape, bool)
    is_new[:, 1:] = ordered[:, 1:] // ranks != ordered[:, :-1] // ranks
    found = np.empty(codes.shape, bool)
    np.put_along_axis(found, ordered % ranks, is_new, axis=1)
    return found


def _count(keys: NDArray[np.int64], shape: tuple[int, int, int]) -> Iterator[sparse.csr_array]:
    """Counts (c, k) per band, from keys (band * c + concept) * k + code."""
    bands, concepts, k = shape
    if bands * concepts * k <= DENSE * len(keys):
        dense = np.bincount(keys, minlength=bands * concepts * k)
        seen = np.flatnonzero(dense)
        counts = dense[seen]
    else:
        seen, counts = np.unique(keys, return_counts=True)
    ends = np.searchsorted(seen, np.arange(bands * concepts + 1) * k)
    for band in range(bands):
        mine = ends[band * concepts : (band + 1) * concepts + 1]
        span = slice(mine[0], mine[-1])
        yield sparse.csr_array((counts[span], seen[span] % k, mine - mine[0]), shape=(concepts, k))


def _count_grids(grids: NDArray[Any], labels: NDArray[Any], concepts: int, k: int) -> sparse.csr_array:
    """Counts of whole grids, (c, k), a concept at a time: that stays in the cache, the grids together do not."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    codes, counts = np.empty((2, grids.size), np.int32)  # room for the worst case; what is never written costs nothing
    sizes, end = np.zeros(concepts, np.int32 if grids.size < 2**31 else np.int64), 0
    for concept, mine in zip(present, np.split(order, starts[1:]), strict=False):  # no image: no concept, one split
        dense = np.bincount(grids[mine].ravel(), minlength=k)
        seen = np.flatnonzero(dense != 0)  # booleans are searched much faster than numbers
        here = slice(end, end + len(seen))
        codes[here], counts[here] = seen, dense[seen]
        sizes[concept], end = len(seen), here.stop
    ends = np.append(0, sizes.cumsum()).astype(sizes.dtype)
    return sparse.csr_array((counts[:end], codes[:end], ends), shape=(concepts, k))


def _row(counts: sparse.csr_array, concept: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes that a concept has, rising, and their counts."""
    span = slice(counts.indptr[concept], counts.indptr[concept + 1])
    return counts.indices[span].astype(np.int64), counts.data[span].astype(np.int64)


def _counts_of(codes: NDArray[np.int64], counts: sparse.csr_array, concept: int) -> NDArray[np.int64]:
    """Counts of codes that the concept is known to have."""
    known, found = _row(counts, concept)
    return found[np.searchsorted(known, codes)]


def _lift(
    pool: PoolCounts, at: int, images: int | NDArray[np.int64], codes: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Lift of codes; `images` of their concept, one number for all or one per code."""
    n, others = pool.positions[at], int(pool.images.sum()) - images
    if not np.any(others):
        return np.full(len(codes), np.nan)
    elsewhere = pool.total[at].numpy()[codes] - counts
    here = (counts + 0.5) / (n * images + 1)
    there = (elsewhere + 0.5) / (n * others + 1)
    return np.asarray(here / there)


@lru_cache(maxsize=1 << 16)
def _bootstrap_interval(having: int, images: int) -> tuple[float, float]:
    """Ends of the interval of a share of images; the same few shares come up for code after code."""
    return _binomial_quantile(0.025, having, images) / images, _binomial_quantile(0.975, having, images) / images


def _binomial_quantile(level: float, having: int, images: int) -> int:
    """Smallest number of images that a resample stays at or below with probability `level` or more."""
    share = having / images
    if having in (0, images):  # nothing to draw: every resample has the same number
        return having
    guess = ceil(bdtrik(level, images, share))
    return guess - 1 if guess and bdtr(guess - 1, images, share) >= level else guess


def _kind(pool: PoolCounts) -> tuple[object, ...]:
    return (pool.positions, pool.cells_per_image, *pool.everywhere.shape)


def _checked_positions(positions: Sequence[int], h: int, w: int) -> tuple[int, ...]:
    wanted = tuple(sorted(set(positions)))
    if not wanted or wanted[0] < 1 or wanted[-1] > h * w:
        raise ConfigError(
            f"positions={','.join(map(str, positions))} must be whole numbers from 1 to {h * w}, the "
            f"positions of a {h}x{w} grid; leave out what lies outside"
        )
    return wanted


def _check_tokens(tokens: Tensor, k: int) -> None:
    if not tokens.numel():
        return
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= k:
        raise TokenError(
            f"tokens span [{low}, {high}] but this codebook holds indices [0, {k - 1}]; "
            "was the store written with another model?"
        )


def _checked_request(pool: PoolCounts, concept: int, n: int, keep: int | None) -> int:
    if not 0 <= concept < len(pool.images):
        raise ConfigError(f"concept={concept} is not one of [0, {len(pool.images) - 1}]; choose one of those")
    if not int(pool.images[concept]):
        raise ConfigError(
            f"concept {concept} has no images among the {int(pool.images.sum())} counted; at least 1 is "
            "needed; add images of it to the store or leave it out"
        )
    if n not in pool.positions:
        known = ", ".join(map(str, pool.positions))
        raise ConfigError(f"n={n} was not counted; counted: {known}; choose one of those or count again")
    if keep is not None and keep < 1:
        raise ConfigError(f"keep={keep} must be at least 1; None keeps every code found")
    return pool.positions.index(n)
