"""Token clusters: codes that matter for the same concepts, and how far each group survives other images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from vqcortex.concepts.saliency import check_concepts
from vqcortex.config import raise_all
from vqcortex.errors import ConfigError, TokenError
from vqcortex.seeds import number_for

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST_TREE = 4096  # codes; a tree needs the distance of every pair, 67 MB here, and is built for every resample
STARTS, ROUNDS = 8, 100  # of k-means


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CodeClusters:
    """Codes grouped by the concepts they matter for; clusters are numbered from the largest.

    Args:
        labels: Cluster of every code, -1 for codes seen less than `least` times, (k,).
        size: Codes per cluster, (v,).
        stability: Mean over bootstrap resamples of the best Jaccard overlap with a cluster found again, 0 to
            1, (v,); Hennig calls below 0.5 dissolved and from 0.75 stable. NaN without resamples.
        profile: Mean profile of the cluster's codes: P(concept | code), rows add up to 1, (v, c).
        resamples: Bootstrap resamples behind `stability`.
    """

    labels: Int[Tensor, " k"]
    size: Int[Tensor, " v"]
    stability: Float[Tensor, " v"]
    profile: Float[Tensor, "v c"]
    resamples: int

    @property
    def top_concept(self) -> Int[Tensor, " v"]:
        """The concept that each cluster matters for most."""
        return self.profile.argmax(1)


def cluster_codes(
    codes: Int[Tensor, "b n"],
    concept: Int[Tensor, " b"],
    *,
    k: int,
    concepts: int,
    clusters: int,
    resamples: int = 100,
    seed: int = 0,
    grouping: str = "jensen-shannon",
    least: int = 1,
) -> CodeClusters:
    """Group codes by their concept profile, and say how stable each group is when other images are drawn.

    Images are resampled within each concept, profiles and clusters are made again, and every original cluster
    looks for its likest new one. A code that a resample lost counts against its cluster.

    Args:
        codes: The image tokens of each image, as `pooling.best_tokens` returns them.
        k: Codes in the codebook.
        concepts: How many concepts there are.
        clusters: Clusters wanted, 1..number of codes seen; fewer are found when profiles coincide.
        resamples: Bootstrap resamples, 0 or more; 0: no stability.
        grouping: Average linkage on Jensen-Shannon or cosine distances of profiles (at most 4,096 codes), or
            k-means on square roots of profiles (Hellinger distance; any number of codes).
        least: Image tokens a code needs to have a profile, at least 1.

    Raises:
        ConfigError: More clusters than codes seen, too many codes for a tree, or a setting out of range.
        TokenError: A code is outside 0..k-1.

    Source:
        Hennig 2007, Cluster-wise assessment of cluster stability, section 2 (bootstrap, Jaccard). We resample
        the images that make the profiles, not the codes that are clustered.
    """
    _check(codes, concept, k, concepts, clusters, resamples, grouping, least)
    tokens, labels = codes.cpu().long().numpy(), concept.cpu().long().numpy()
    presence = _presence(tokens, k)

    def grouped(weights: Floats, of: int, name: object) -> tuple[Ints, Floats]:
        counts = _weighted_counts(presence, labels, weights, concepts)
        return _group(counts, weights, labels, of, grouping, least, number_for(seed, "k-means", name))

    found, profile = grouped(np.ones(len(tokens)), clusters, "all")
    overlap = [_best_jaccard(found, grouped(_resampled(labels, seed, r), clusters, r)[0]) for r in range(resamples)]
    count = int(found.max()) + 1
    return CodeClusters(
        labels=torch.from_numpy(found),
        size=torch.from_numpy(np.bincount(found[found >= 0], minlength=count)),
        stability=torch.from_numpy(np.mean(overlap, axis=0) if overlap else np.full(count, np.nan)),
        profile=torch.from_numpy(np.stack([profile[found == one].mean(0) for one in range(count)])),
        resamples=resamples,
    )


def concept_profile(
    codes: Int[Tensor, "b n"], concept: Int[Tensor, " b"], *, k: int, concepts: int
) -> Float[Tensor, "k c"]:
    """Return P(concept | code is an image token), each concept counting alike however many images it has.

    Rows add up to 1; the rows of codes that are nowhere an image token are 0.
    """
    labels = concept.cpu().long().numpy()
    weights = np.ones(len(labels))
    counts = _weighted_counts(_presence(codes.cpu().long().numpy(), k), labels, weights, concepts)
    return torch.from_numpy(_profile(counts, weights, labels))


def _presence(codes: Ints, k: int) -> sparse.csr_array:
    """How often each image (row) has each code (column) among its image tokens."""
    ends = np.arange(len(codes) + 1) * codes.shape[1]
    return sparse.csr_array((np.ones(codes.size), codes.ravel(), ends), shape=(len(codes), k))


def _weighted_counts(presence: sparse.csr_array, labels: Ints, weights: Floats, concepts: int) -> Floats:
    """Image tokens per concept and code when image i is drawn weights[i] times, (c, k)."""
    images = len(labels)
    drawn = sparse.csr_array((weights, (labels, np.arange(images))), shape=(concepts, images))
    return np.asarray((drawn @ presence).toarray())


def _profile(counts: Floats, weights: Floats, labels: Ints) -> Floats:
    """From counts (c, k) to P(concept | code), (k, c)."""
    images = np.bincount(labels, weights, minlength=len(counts))
    rates = (counts / np.maximum(images, 1)[:, None]).T
    return np.asarray(rates / np.maximum(rates.sum(1, keepdims=True), np.finfo(float).tiny))


def _group(
    counts: Floats, weights: Floats, labels: Ints, clusters: int, grouping: str, least: int, seed: int
) -> tuple[Ints, Floats]:
    """Cluster of every code, or -1, and every code's profile."""
    profile = _profile(counts, weights, labels)
    live = np.flatnonzero(counts.sum(0) >= least)
    found = np.full(len(profile), -1, np.int64)
    if grouping != "k-means" and len(live) > LARGEST_TREE:
        raise ConfigError(
            f"{len(live)} codes are seen but grouping={grouping!r} serves at most {LARGEST_TREE}; "
            "use grouping='k-means', or a larger least"
        )
    found[live] = _from_largest(GROUPINGS[grouping](profile[live], min(clusters, len(live)), seed))
    return found, profile


def _tree(profile: Floats, clusters: int, metric: Literal["jensenshannon", "cosine"]) -> Ints:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    if len(profile) < 2:
        return np.zeros(len(profile), np.int64)
    # Rounding can leave equal profiles a hair below or above zero apart; they must tie.
    apart = np.nan_to_num(pdist(profile, metric)).round(12)
    clusters = min(clusters, len(np.unique(profile.round(12), axis=0)))
    return np.asarray(fcluster(linkage(apart, "average"), clusters, "maxclust"), np.int64)


def _k_means(profile: Floats, clusters: int, seed: int) -> Ints:
    rng, points = np.random.default_rng(seed), np.sqrt(profile)
    tries = [_one_k_means(points, clusters, rng) for _ in range(STARTS)]
    return min(tries, key=lambda one: one[0])[1]


def _one_k_means(points: Floats, clusters: int, rng: np.random.Generator) -> tuple[float, Ints]:
    """Sum of squared distances and labels from one start, spread as by k-means++."""
    centres = _spread_centres(points, clusters, rng)
    labels = np.full(len(points), -1)
    for _ in range(ROUNDS):
        away = _squared(points, centres)
        if np.array_equal(nearest := away.argmin(1), labels):
            break
        labels = nearest
        size = np.bincount(labels, minlength=len(centres))[:, None]
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, points)
        centres = np.where(size > 0, sums / np.maximum(size, 1), centres)
    return float(away.min(1).sum()), labels


def _spread_centres(points: Floats, clusters: int, rng: np.random.Generator) -> Floats:
    centres = points[[rng.integers(len(points))]]
    while len(centres) < clusters:
        away = _squared(points, centres).min(1)
        if away.sum() == 0:  # fewer distinct profiles than clusters
            break
        centres = np.vstack([centres, points[rng.choice(len(points), p=away / away.sum())]])
    return centres


def _squared(points: Floats, centres: Floats) -> Floats:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(points, centres, "sqeuclidean"))


GROUPINGS: Mapping[str, Callable[[Floats, int, int], Ints]] = {
    "jensen-shannon": lambda profile, clusters, seed: _tree(profile, clusters, "jensenshannon"),
    "cosine": lambda profile, clusters, seed: _tree(profile, clusters, "cosine"),
    "k-means": _k_means,
}


def _from_largest(labels: Ints) -> Ints:
    """Number the clusters from 0: the largest first, then the one whose first member comes first."""
    _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(first), np.int64)
    place[np.lexsort((first, -size))] = np.arange(len(first))
    return place[inverse.ravel()]


def _resampled(labels: Ints, seed: int, resample: int) -> Floats:
    """How often a bootstrap resample draws each image; every concept keeps its number of images."""
    rng = np.random.default_rng(number_for(seed, "resample", resample))
    weights = np.zeros(len(labels))
    for one in np.unique(labels):
        mine = np.flatnonzero(labels == one)
        weights[mine] = np.bincount(rng.integers(len(mine), size=len(mine)), minlength=len(mine))
    return weights


def _best_jaccard(old: Ints, new: Ints) -> Floats:
    """Overlap of every old cluster with its likest new one: codes in both over codes in either."""
    rows, columns = int(old.max()) + 1, int(new.max()) + 1
    both = (old >= 0) & (new >= 0)
    shared = np.bincount(old[both] * columns + new[both], minlength=rows * columns).reshape(rows, columns)
    either = _sizes(old, rows)[:, None] + _sizes(new, columns)[None] - shared
    return np.asarray((shared / either).max(1))


def _sizes(labels: Ints, clusters: int) -> Ints:
    return np.bincount(labels[labels >= 0], minlength=clusters)


def _check(
    codes: Tensor,
    concept: Tensor,
    k: int,
    concepts: int,
    clusters: int,
    resamples: int,
    grouping: str,
    least: int,
) -> None:
    check_concepts(concept, len(codes), concepts)
    low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    if low < 0 or high >= k:
        raise TokenError(
            f"codes span [{low}, {high}] but this codebook holds indices [0, {k - 1}]; "
            "was the store written with another model?"
        )
    raise_all(_problems(codes, clusters, resamples, grouping, least))


def _problems(codes: Tensor, clusters: int, resamples: int, grouping: str, least: int) -> list[str]:
    counts = np.unique(codes.cpu().numpy(), return_counts=True)[1]
    live = int((counts >= least).sum())
    found = []
    if not 1 <= clusters <= live:
        found.append(f"clusters={clusters} must be 1 to {live}, the codes seen at least {least} times")
    if resamples < 0:
        found.append(f"resamples={resamples} must be 0 or more; 100 is a good number")
    if least < 1:
        found.append(f"least={least} must be at least 1")
    if grouping not in GROUPINGS:
        found.append(f"grouping={grouping!r} must be one of {', '.join(GROUPINGS)}")
    return found
