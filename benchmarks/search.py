"""Codebook search: what one step of one image costs, ours with many images at once, the published one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from common import Comparison, in_turns, random_codebook, random_tokens

from vqcortex.extractors.protocol import build_extractor
from vqcortex.pipelines.search import read_region
from vqcortex.search.reference import PublishedSearch
from vqcortex.search.selection import TokenSelection


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the problem.

    Args:
        images: That ours takes at once.
        steps: Of a timed search; its start and its two measurements of the target's probability count too.
        device: Where it runs.
    """

    d: int = 256
    grid: tuple[int, int] = (16, 16)
    k: int = 16_384
    concepts: int = 1_000
    images: int = 8
    steps: int = 16
    device: str = "cpu"


FULL = Sizes()
SMALL = Sizes(d=4, grid=(4, 4), k=16, concepts=5, images=2, steps=2)


def searches(sizes: Sizes) -> dict[str, Callable[[], object]]:
    """Both searches over the centre of the grid, ready to run."""
    extractor = build_extractor("conv8", sizes.d, sizes.grid, sizes.concepts, 0).eval().to(sizes.device)
    codebook = random_codebook(sizes.k, sizes.d).to(sizes.device)
    tokens = random_tokens(sizes.images, sizes.grid, sizes.k)
    free = read_region("centre", sizes.grid)
    target = torch.arange(sizes.images) % sizes.concepts
    names = [str(image) for image in range(sizes.images)]
    mine = TokenSelection(steps=sizes.steps, record_every=sizes.steps, batch=sizes.images)
    theirs = PublishedSearch(arm="token", steps=sizes.steps, checkpoint_every=sizes.steps)
    return {
        "ours": lambda: mine(extractor, codebook, tokens, free, target, names),
        "published": lambda: theirs(extractor, codebook, tokens[:1], free, target[:1], names[:1]),
    }


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file."""
    works = searches(sizes)
    for work in works.values():
        work()
    found = in_turns(works, repeats)
    side = round(read_region("centre", sizes.grid).sum().item() ** 0.5)
    return [
        Comparison(
            work=f"token selection, one step of one image, {side}x{side} window, k = {sizes.k:,}",
            rival="the published search",
            unit="s",
            ours=found["ours"].times(1 / (sizes.images * sizes.steps)),
            theirs=found["published"].times(1 / sizes.steps),
            at_least=3,
            note=f"ours takes {sizes.images} images at once, the published code knows one; searches of {sizes.steps} "
            "steps, start and end included",
        )
    ]
