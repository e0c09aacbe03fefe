"""The images, all in memory as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqcortex.errors import DataError
from vqcortex.images import open_images
from vqcortex.seeds import generator_for

SIDE = 32
CONCEPTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class Images:
    """A split.

    Args:
        pixels: Bytes, (n, 3, 32, 32).
        labels: (n,), numbers in CONCEPTS.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> Images:
        """Those of the given rows."""
        return Images(pixels=self.pixels[rows], labels=self.labels[rows])

    def apart(self, share: float, seed: int) -> tuple[Images, Images]:
        """Two sets, the second with that share of every class; the seed decides which images.

        Sources are often sorted by class: the last rows are no sample.
        """
        held = torch.zeros(len(self), dtype=torch.bool)
        for label in self.labels.unique().tolist():
            rows = (self.labels == label).nonzero()[:, 0]
            order = torch.randperm(len(rows), generator=generator_for(seed, "cifar10", "held out", label))
            held[rows[order[: round(share * len(rows))]]] = True
        return self.at((~held).nonzero()[:, 0]), self.at(held.nonzero()[:, 0])


def read_images(source: str, split: str) -> Images:
    """Read a split of any image source: torchvision:CIFAR10, hf:NAME, parquet:PATH.

    Raises:
        DataError: There is no such split, it has other than ten classes, an image is broken or of another size; the
            message says which row.
    """
    opened = open_images(source, split)
    if len(opened.concepts) != len(CONCEPTS):  # their names may be numbers, their order is CIFAR-10's everywhere
        raise DataError(
            f"{source!r} ({split}) has {len(opened.concepts)} classes, {', '.join(opened.concepts[:3])}, …; "
            f"CIFAR-10 has {len(CONCEPTS)}: name a source of that set"
        )
    pixels, labels = np.empty((len(opened), 3, SIDE, SIDE), np.uint8), []
    for row, record in enumerate(opened):
        image = np.asarray(record.image.convert("RGB"))
        if image.shape != (SIDE, SIDE, 3):
            raise DataError(
                f"row {row} of {source!r} ({split}) is {image.shape[1]}x{image.shape[0]} pixels; this recipe takes "
                f"{SIDE}x{SIDE} only: resize the images, or drop that row"
            )
        pixels[row] = image.transpose(2, 0, 1)
        labels.append(record.concept)
    return Images(pixels=torch.from_numpy(pixels), labels=torch.tensor(labels))
