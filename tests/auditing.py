"""A toy generator whose bias is known: one position tells the group, at a rate that can be set and steered."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch

from vqcortex.adapters.steering import FixedBias, Steerings
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.files import hash_of_bytes
from vqcortex.pipelines.groups import Grids
from vqcortex.seeds import generator_for

MARK, PLAIN = 7, 6


@dataclass
class MarkedToy(ToyAdapter):
    """The toy, with MARK at (0, 0) in a share of its images and PLAIN there in the others.

    Args:
        rate: That share, between 0 and 1.
    """

    rate: float = 0.5
    steerings: Steerings = field(default_factory=Steerings)

    @property
    def identity(self) -> str:
        return hash_of_bytes(f"marked {self.grid} {self.rate} {self.steerings.identity}".encode())

    def generate(self, concept, image_ids, seed):
        logit = math.log(self.rate / (1 - self.rate))
        if self.steerings:
            (bias,) = self.steerings.bias(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 0)
            logit += float(bias[MARK] - bias[PLAIN])
        grids = super().generate(concept, image_ids, seed)
        grids[grids >= PLAIN] = 0
        for grid, name in zip(grids, image_ids, strict=True):
            drawn = torch.rand((), generator=generator_for(seed, name, "mark"))
            grid[0, 0] = MARK if drawn < 1 / (1 + math.exp(-logit)) else PLAIN
        return grids

    def with_steering(self, steering):
        steered = copy.copy(self)
        steered.steerings = self.steerings.plus(steering, self.k, self.grid)
        return steered

    def with_code_bias(self, bias):
        return self.with_steering(FixedBias(bias))


def marked(rate: float, name: str, images: int) -> Grids:
    """Images of red, of which a share is marked."""
    model = MarkedToy(rate=min(max(rate, 1e-12), 1 - 1e-12))
    ids = tuple(f"{name}/{number}" for number in range(images))
    return Grids(tokens=model.generate(torch.zeros(images, dtype=torch.int64), ids, 0).int(), image_ids=ids)
