"""A judge whose answer can be worked out by hand: the share of the pixels that have a colour."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter


@dataclass(frozen=True)
class Share:
    """Probability of a colour = share of the pixels nearest to it."""

    colours: torch.Tensor
    name: str = "share"

    def __call__(self, pixels):
        away = (pixels[:, None] - self.colours[None, :, :, None, None]).square().sum(2)  # (b, c, H, W)
        nearest = torch.nn.functional.one_hot(away.argmin(1), len(self.colours))
        return nearest.float().mean((1, 2)).log()


@pytest.fixture
def toy():
    return ToyAdapter(grid=(3, 4))


@pytest.fixture
def share(toy):
    return Share(toy.codebook)


@pytest.fixture
def images(toy):
    """Tokens, concept and ids of six images."""
    ids = [f"image-{i}" for i in range(6)]
    concept = torch.tensor([1, 2, 4, 5, 6, 7])
    return toy.generate(concept, ids, seed=3), concept, ids
