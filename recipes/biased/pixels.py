"""Pictures of a class, read once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqcortex.images import open_images, read_idx

HELD_OUT = 5_000  # the last training pictures train no prior: audits use them, and the test pictures


@lru_cache(maxsize=2)
def all_pixels(source: str, split: str) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 28, 28) in [0, 1] and labels (n,), of `idx:FOLDER` or any other image source."""
    scheme, _, where = source.partition(":")
    if scheme == "idx":
        images, labels = read_idx(Path(where), split)
    else:
        records = list(open_images(source, split))
        images = np.stack([np.asarray(record.image.convert("L")) for record in records])
        labels = np.array([record.concept for record in records])
    return torch.from_numpy(images.copy()).float()[:, None] / 255, torch.from_numpy(labels.copy()).long()


def seen(source: str, number: int) -> Tensor:
    """Pictures of class `number` that a prior may learn from."""
    pixels, labels = all_pixels(source, "train")
    return pixels[:-HELD_OUT][labels[:-HELD_OUT] == number]


def unseen(source: str, number: int) -> Tensor:
    """Pictures of class `number` that trained no prior: held-out ones first, then the test pictures."""
    pixels, labels = all_pixels(source, "train")
    held = pixels[-HELD_OUT:][labels[-HELD_OUT:] == number]
    pixels, labels = all_pixels(source, "test")
    return torch.cat([held, pixels[labels == number]])
