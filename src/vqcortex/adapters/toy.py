"""Eight flat colours: a model small enough to reason about, exact in both directions, for tests and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters.family import Family, Spec
from vqcortex.adapters.protocol import DECODE, ENCODE, GENERATE, Level, one_level
from vqcortex.colours import COLOURS, colour_table
from vqcortex.errors import ConfigError
from vqcortex.files import hash_of_bytes
from vqcortex.seeds import generator_for

PATCH = 4
PAINTED = 0.4  # share of positions that `generate` paints in the concept's colour


@final
@dataclass(kw_only=True)
class ToyAdapter:
    """Code i is the colour whose RGB bits are the binary digits of i; a token paints a 4x4 square.

    Concept i means "much of colour i", so which tokens make a concept is known.

    Args:
        grid: Rows and columns, (h, w).
        name: As given to `load_model`.

    Example:
        >>> toy = ToyAdapter(grid=(2, 2))
        >>> toy.encode(toy.decode(toy.embed(torch.tensor([[[0, 1], [6, 7]]])))).tolist()
        [[[0, 1], [6, 7]]]
    """

    grid: tuple[int, int] = (4, 4)
    name: str = "toy"
    family: str = "toy"
    concepts: tuple[str, ...] = COLOURS
    _codes: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._codes = colour_table()

    @property
    def identity(self) -> str:
        return hash_of_bytes(f"toy {self.grid} {self.concepts}".encode())

    @property
    def size(self) -> tuple[int, int]:
        return PATCH * self.grid[0], PATCH * self.grid[1]

    @property
    def levels(self) -> tuple[Level, ...]:
        return one_level(self.grid, self.k)

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE, GENERATE})

    @property
    def k(self) -> int:
        return len(self._codes)

    @property
    def d(self) -> int:
        return self._codes.shape[1]

    @property
    def device(self) -> torch.device:
        return self._codes.device

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return self._codes

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        return self.nearest(F.avg_pool2d(pixels, PATCH))

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return F.embedding(tokens, self._codes).permute(0, 3, 1, 2)

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        away = embedded[:, None] - self._codes[None, :, :, None, None]  # (b, k, d, h, w)
        return away.square().sum(2).argmin(1)

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return F.interpolate(embedded, scale_factor=PATCH, mode="nearest").clamp(0, 1)

    def to(self, device: str) -> ToyAdapter:
        self._codes = self._codes.to(device)
        return self

    def generate(self, concept: Int[Tensor, " b"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "b h w"]:
        grids = []
        for one, name in zip(concept.tolist(), image_ids, strict=True):
            rng = generator_for(seed, name, "toy")
            noise = torch.randint(0, 8, self.grid, generator=rng)
            painted = torch.rand(self.grid, generator=rng) < PAINTED
            grids.append(torch.where(painted, one, noise))
        return torch.stack(grids)

    def log_probabilities(self, tokens: Int[Tensor, "b h w"], concept: Int[Tensor, " b"]) -> Float[Tensor, "b k h w"]:
        chance = torch.full((len(tokens), self.k), (1 - PAINTED) / self.k, device=self.device)
        chance.scatter_add_(1, concept[:, None], torch.full_like(chance[:, :1], PAINTED))
        return chance.log()[:, :, None, None].expand(-1, -1, *self.grid).clone()


def load_toy(spec: Spec) -> ToyAdapter:
    """Open "toy" or "toy:ROWSxCOLUMNS".

    Raises:
        ConfigError: What stands after the colon is not a grid.
    """
    which = spec.place
    if not which:
        return ToyAdapter()
    rows, cross, columns = which.partition("x")
    if not (cross and rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise ConfigError(f"toy grid {which!r} is not ROWSxCOLUMNS; write 'toy:4x4', say")
    return ToyAdapter(grid=(int(rows), int(columns)), name=f"toy:{which}")


FAMILY = Family(
    name="toy",
    title="Eight flat colours, for tests and examples",
    formats="",
    abilities=(ENCODE, DECODE, GENERATE),
    open=load_toy,
)
