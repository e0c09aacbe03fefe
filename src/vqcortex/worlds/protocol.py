"""What a planted world is, and what decides one: a kind, parameters, and nothing of a model but its token grids.

Two concepts: "with" (1), the images for which the world's rule holds, and "without" (0). A rule asks only which of the
causal codes stand in an image; everything else in the image is background, drawn without a look at the concept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vqcortex.config import raise_all

WITHOUT, WITH = 0, 1
CONCEPTS = ("without", "with")
LEAST_IMAGES = 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What can be turned in every world; a world leaves alone what it has no use for.

    Args:
        codes: Causal codes of the worlds that have several, at least 2.
        plant_rate: Share of an image's positions that a planted code takes at most, above 0 and at most 0.5; one at
            least. Images outside the test split have 1 to so many copies of a code, test images one.
        label_noise: Share of images whose concept is turned round, in every split, in [0, 0.5).
        correlation: Share of images outside the test split in which a decoy is there if and only if its concept is, in
            [0.5, 1]; 0.5: independent.
        patch: Side of the square of decoys, in positions, at least 1.
        seed: Decides the codes, the places and every image.
    """

    codes: int = 2
    plant_rate: float = 0.2
    label_noise: float = 0.0
    correlation: float = 0.8
    patch: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """What is wrong, one sentence each."""
        if self.codes < 2:
            yield f"codes={self.codes} must be at least 2; the world 'single' has one"
        if not 0 < self.plant_rate <= 0.5:
            yield f"plant-rate={self.plant_rate} must be above 0 and at most 0.5 of the positions"
        if not 0 <= self.label_noise < 0.5:
            yield f"label-noise={self.label_noise} must lie in [0, 0.5): at 0.5 there is nothing left to learn"
        if not 0.5 <= self.correlation <= 1:
            yield f"correlation={self.correlation} must lie in [0.5, 1]: 0.5 is independent, 1 always together"
        if self.patch < 1:
            yield f"patch={self.patch} must be at least 1"
        if self.seed < 0:
            yield f"seed={self.seed} must be at least 0"

    def most(self, grid: tuple[int, int]) -> int:
        """Positions that a planted code takes at most on a grid of (h, w)."""
        return max(1, round(self.plant_rate * grid[0] * grid[1]))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Decoy:
    """A code that goes with the concept and does not make it.

    Args:
        is_patch: It fills a square at one place of the world; otherwise it is scattered like a causal code.
        follows: "rule": it goes with the rule, so that where labels are noisy the causal codes still know best;
            "label": it goes with the concept that the image is given, noise included.
        in_test: Share of test images that hold it, whatever their concept.
    """

    is_patch: bool
    follows: Literal["rule", "label"]
    in_test: float


Present: TypeAlias = Callable[[bool, int, torch.Generator], list[bool]]
Holds: TypeAlias = Callable[[Bool[Tensor, "b m"]], Bool[Tensor, " b"]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One entry of the WORLDS registry.

    Args:
        name: In the registry.
        description: What is planted, one sentence.
        causal: Number of causal codes; None: as many as the parameters say.
        present: Which of the m causal codes stand in an image: a function of whether the rule is to hold, m, and a
            generator of the image's own.
        holds: Whether the rule holds, from which of the causal codes stand where they count.
        decoy: What goes with the concept without making it; None: nothing does.
        is_placed: The codes count in one half of the grid only; in half of all images they also stand in the other.
        together: How the causal codes act on each other: 1 all are needed, -1 one undoes the other, 0 neither.
    """

    name: str
    description: str
    causal: int | None
    present: Present
    holds: Holds
    decoy: Decoy | None = None
    is_placed: bool = False
    together: Literal[-1, 0, 1] = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Labelled token grids in which the truth is known.

    Args:
        name: In the WORLDS registry.
        description: What was planted, one sentence.
        image_ids: One per image.
        split: "train", "validation" or "test", per image; a function of its id and the seed.
        tokens: The grids.
        concept: 1 "with", 0 "without": what an extractor is told.
        truth: The same before the noise: what the rule says; in a world without causal codes, the concept.
        causal: True where a causal code stands that counts and without which the rule would say otherwise.
        decoy: True where a decoy stands.
        causal_codes: Codes that make the concept "with", (m,); the concept "without" is their absence.
        decoy_codes: Codes that go with it, (u,).
        together: See `Kind`.
    """

    name: str
    description: str
    image_ids: tuple[str, ...]
    split: tuple[str, ...]
    tokens: Int[Tensor, "n h w"]
    concept: Int[Tensor, " n"]
    truth: Int[Tensor, " n"]
    causal: Bool[Tensor, "n h w"]
    decoy: Bool[Tensor, "n h w"]
    causal_codes: Int[Tensor, " m"]
    decoy_codes: Int[Tensor, " u"]
    together: int

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, split: str) -> Int[Tensor, " r"]:
        """Places of the images of a split, in order."""
        return torch.tensor([row for row, one in enumerate(self.split) if one == split], dtype=torch.int64)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of codes that act on each other, smaller code first; empty where every code acts alone."""
        codes = sorted(self.causal_codes.tolist()) if self.together else []
        return tuple((a, b) for place, a in enumerate(codes) for b in codes[place + 1 :])
