"""`idx:FOLDER`, the four .gz files of MNIST and its relatives."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image

from vqcortex.errors import DataError
from vqcortex.images.source import ImageRecord, Picture, RowNames, existing, records

IDX_STEMS = {"train": "train", "test": "t10k"}
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@final
class IdxSource:
    """Concepts are digits, or garments where the path says fashion."""

    def __init__(self, place: str, split: str) -> None:
        folder = existing(place)
        self._images, self._labels = read_idx(folder, split)
        most = max(10, int(self._labels.max(initial=0)) + 1)
        is_fashion = most == 10 and "fashion" in str(folder.absolute()).lower()
        self.concepts = FASHION if is_fashion else tuple(map(str, range(most)))
        self.image_ids = RowNames(split, len(self._images))

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[ImageRecord]:
        return records(self)

    def labels(self) -> Iterator[int]:
        return map(int, self._labels)

    def pictures(self, rows: Iterable[int]) -> Iterator[Picture]:
        return (Picture(self.image_ids[row], Image.fromarray(self._images[row])) for row in rows)


def read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an MNIST-style folder: images (n, H, W) uint8 and labels (n,) uint8.

    Raises:
        DataError: A file is absent, or is not what its own header says.
    """
    if split not in IDX_STEMS:
        raise DataError(f"split {split!r} is unknown to idx folders; write one of: {', '.join(IDX_STEMS)}")
    images = _idx(folder / f"{IDX_STEMS[split]}-images-idx3-ubyte.gz")
    labels = _idx(folder / f"{IDX_STEMS[split]}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{str(folder)!r} holds images {images.shape} but labels {labels.shape}; fetch both again")
    return images, labels


def _idx(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{str(path)!r} does not exist; an idx folder holds the four .gz files of (Fashion-)MNIST")
    try:
        raw = gzip.decompress(path.read_bytes())
        axes = raw[3]
        shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    except (OSError, EOFError, zlib.error, IndexError, struct.error) as error:
        raise DataError(f"{str(path)!r} is not a whole idx file: {error}; fetch it again") from error
    held, wanted = len(raw) - 4 - 4 * axes, math.prod(shape)
    if held != wanted:
        raise DataError(f"{str(path)!r} holds {held} bytes but its header promises {wanted}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)
