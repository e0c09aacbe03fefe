"""A model with two grids of tokens, small enough to paint by hand, and studies of any model's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters.protocol import DECODE, Adapter, Level, split_levels
from vqcortex.colours import colour_table
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.tokens.store import Manifest, TokenBatch, create_store

TWO = (Level(name="top", grid=(2, 2), codes=(0, 8)), Level(name="bottom", grid=(4, 4), codes=(8, 16)))
SHARED = (Level(name="coarse", grid=(1, 1), codes=(0, 8)), Level(name="fine", grid=(2, 3), codes=(0, 8)))


class LeveledAdapter:
    """Half the colour of each level, added up; code 8 + i of the upper half of the table is the colour of code i."""

    name, family, identity, concepts = "leveled", "leveled", "leveled 1", ()

    def __init__(self, levels: Sequence[Level] = TWO, abilities: Sequence[str] = (DECODE,)) -> None:
        self.levels, self.abilities, self.size = tuple(levels), frozenset(abilities), (24, 24)
        lengths = sum(one.length for one in levels)
        self.grid = levels[0].grid if len(levels) == 1 else (1, lengths)
        self.k, self.d, self.device = max(one.codes[1] for one in levels), 3, torch.device("cpu")
        self.codebook = colour_table().repeat(-(-self.k // 8), 1)[: self.k] / len(self.levels)

    def encode(self, pixels: Tensor) -> Tensor:
        raise AssertionError("not needed")

    nearest = encode

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.codebook).permute(0, 3, 1, 2)

    def decode(self, embedded: Tensor) -> Tensor:
        parts = [embedded] if len(self.levels) == 1 else split_levels(embedded, self.levels)
        return sum(F.interpolate(part, self.size, mode="nearest") for part in parts).clamp(0, 1)

    def to(self, device: str) -> LeveledAdapter:
        return self


def study_of(folder: Path, model: Adapter, shards: Sequence[Tensor], splits: Sequence[str] = ("train",)) -> Study:
    """A study whose store holds these grids; image i of a shard is in split i modulo the number of splits."""

    def fill(place: Path) -> None:
        manifest = Manifest(
            model=model.name,
            identity=model.identity,
            k=model.k,
            d=model.d,
            grid=model.grid,
            concepts=("a", "b"),
            seed=0,
        )
        store = create_store(place, manifest)
        for number, tokens in enumerate(shards):
            store.append(
                TokenBatch(
                    tuple(f"{number}/{one}" for one in range(len(tokens))),
                    torch.arange(len(tokens)) % 2,
                    tuple(splits[one % len(splits)] for one in range(len(tokens))),
                    tokens,
                )
            )

    study = Study(folder)
    run_stage(study, stage_key("tokens", TokensSettings(), TokensSettings, {}), fill)
    return study


def grids_of(levels: Sequence[Level], images: int, seed: int = 0) -> Tensor:
    """Random grids, uneven: low codes of a level are more frequent."""
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for one in levels:
        first, past = one.codes
        draws = torch.rand(images, one.length, generator=rng).pow(3)
        parts.append(first + (draws * (past - first)).long())
    row = torch.cat(parts, 1)
    return row.view(images, *levels[0].grid) if len(levels) == 1 else row[:, None]
