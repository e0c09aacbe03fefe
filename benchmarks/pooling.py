"""Concept pooling: from a score per position to the tokens of every concept, ours and a loop over Python lists.

The loop does what the published analysis does, in our own words: a list of scores per image, read from text, an argsort
for every n, a counter per concept, the 100 most frequent kept.
"""

from __future__ import annotations

import ast
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from common import Comparison, in_turns, random_tokens
from torch import Tensor

from vqcortex.concepts.pooling import ConceptTokens, PoolCounts, all_concept_tokens, count_image_tokens
from vqcortex.pipelines.loaded import Scored, read_scores, write_scores

POSITIONS, KEEP = (1, 5, 10, 20), 100
SHIFT = 37  # codes between the most frequent ones of a concept and of the next


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the problem.

    Args:
        images: In all, alike for every concept.
        looped: Images of the first concepts that the loop is timed on; its time is scaled up to all of them.
        shard: Images per score file, as a study keeps them.
    """

    images: int = 50_000
    grid: tuple[int, int] = (16, 16)
    k: int = 16_384
    concepts: int = 1_000
    looped: int = 500
    shard: int = 2_000


FULL = Sizes()
SMALL = Sizes(images=60, grid=(5, 5), k=16, concepts=6, looped=20, shard=25)


@final
@dataclass(frozen=True, slots=True)
class Case:
    """Images sorted by concept, as a generated store holds them, with random tokens and scores."""

    tokens: Tensor
    importance: Tensor
    concept: Tensor

    def first(self, images: int) -> Case:
        """The same with fewer images."""
        return Case(self.tokens[:images], self.importance[:images], self.concept[:images])


def case_of(sizes: Sizes, *, even: bool = False) -> Case:
    """Draw tokens and scores; scores are of the size of real gradients, which makes their text as long as real.

    Args:
        even: All codes alike, the worst case for counting; otherwise half of a concept's tokens come from a sixteenth
            of the codes, another sixteenth for another concept.
    """
    shape, rng = (sizes.images, *sizes.grid), torch.Generator().manual_seed(4)
    scores = torch.randn(shape, generator=rng) * 1e-3
    concept = torch.arange(sizes.images) * sizes.concepts // sizes.images
    skewed = (torch.rand(shape, generator=rng) ** 4 * sizes.k).long() + SHIFT * concept[:, None, None]
    return Case(random_tokens(sizes.images, sizes.grid, sizes.k) if even else skewed % sizes.k, scores, concept)


def pool(case: Case, sizes: Sizes) -> list[ConceptTokens]:
    """Ours, from memory: counts, then the tokens of every concept for every n, with lift, share and interval."""
    return lists_of(count(case, sizes), sizes)


def pool_files(folder: Path, case: Case, sizes: Sizes) -> list[ConceptTokens]:
    """Ours as a study runs it: score files read and counted one by one, counts added up."""
    starts = range(0, sizes.images, sizes.shard)
    return lists_of(reduce(add, (_count_file(folder, case, sizes, start) for start in starts)), sizes)


def _count_file(folder: Path, case: Case, sizes: Sizes, start: int) -> PoolCounts:
    rows = slice(start, start + sizes.shard)
    importance = read_scores(folder / f"{start}.parquet", sizes.grid).importance["tis"]
    return count(Case(case.tokens[rows], importance, case.concept[rows]), sizes)


def write_files(folder: Path, case: Case, sizes: Sizes) -> None:
    """Write the scores as a study does."""
    for start in range(0, sizes.images, sizes.shard):
        maps = case.importance[start : start + sizes.shard]
        names = tuple(f"{start + row:06d}" for row in range(len(maps)))
        scored = Scored(image_ids=names, importance={"tis": maps}, probability=torch.ones(len(maps)))
        write_scores(scored, folder / f"{start}.parquet")


def count(case: Case, sizes: Sizes) -> PoolCounts:
    """How often every code stands at a position that matters."""
    return count_image_tokens(
        case.tokens, case.importance, case.concept, k=sizes.k, concepts=sizes.concepts, positions=POSITIONS
    )


def lists_of(counts: PoolCounts, sizes: Sizes) -> list[ConceptTokens]:
    """The tokens of every concept, for every n."""
    return [one for n in POSITIONS for one in all_concept_tokens(counts, n, KEEP)]


def loop(
    tokens: Sequence[list[int]], scores: Sequence[Any], concept: Sequence[int], read: Callable[[Any], list[float]]
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The loop: (code, count) of the most frequent tokens, by (n, concept).

    Args:
        tokens: A list of codes per image.
        scores: A list of scores per image, or its text.
        concept: Of every image.
        read: From an entry of `scores` to a list.
    """
    counts: dict[tuple[int, int], Counter[int]] = {(n, one): Counter() for n in POSITIONS for one in set(concept)}
    for image, entry in enumerate(scores):
        values, codes = np.array(read(entry)), tokens[image]
        for n in POSITIONS:
            best = np.argsort(values)[-n:][::-1]
            counts[n, concept[image]].update([codes[position] for position in best])
    return {key: found.most_common(KEEP) for key, found in counts.items()}


def loops(case: Case) -> dict[str, Callable[[], object]]:
    """The loop over scores that are lists already, and over lists that are read from text first."""
    tokens, concept = case.tokens.flatten(1).tolist(), case.concept.tolist()
    lists: list[list[float]] = case.importance.flatten(1).tolist()
    texts = [str(one) for one in lists]
    return {
        "lists": lambda: loop(tokens, lists, concept, list),
        "texts": lambda: loop(tokens, texts, concept, ast.literal_eval),
    }


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file."""
    with tempfile.TemporaryDirectory() as folder:
        works = works_of(sizes, Path(folder))
        for work in works.values():
            work()
        found = in_turns(works, repeats)
    scaled = {name: found[name].times(sizes.images / sizes.looped) for name in ("texts", "lists")}
    shape = f"{sizes.images:,} images x {sizes.grid[0] * sizes.grid[1]} positions, {sizes.concepts:,} concepts"
    return [
        Comparison(
            work=f"pooling {shape}, {work}",
            rival="a loop over lists read from text" if theirs == "texts" else "a loop over lists in memory",
            unit="s",
            ours=found[ours],
            theirs=scaled[theirs],
            at_least=at_least,
            note=f"the loop timed on {sizes.looped} images and scaled up",
        )
        for work, ours, theirs, at_least in (
            ("scores in a Parquet file", "file", "texts", 100),
            (f"scores in files of {sizes.shard:,} images, as in a study", "shards", "texts", None),
            ("scores in a Parquet file, all codes alike", "even", "texts", None),
            ("scores in memory", "memory", "lists", None),
            ("scores in memory, counts alone", "counts", "lists", None),
        )
    ]


def works_of(sizes: Sizes, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, with its files written into the folder."""
    case, even, whole = case_of(sizes), case_of(sizes, even=True), replace(sizes, shard=sizes.images)
    write_files(folder / "shards", case, sizes)
    write_files(folder / "file", case, whole)
    return {
        "file": lambda: pool_files(folder / "file", case, whole),
        "shards": lambda: pool_files(folder / "shards", case, sizes),
        "even": lambda: pool_files(folder / "file", even, whole),
        "memory": lambda: pool(case, sizes),
        "counts": lambda: count(case, sizes),
        **loops(case.first(sizes.looped)),
    }
