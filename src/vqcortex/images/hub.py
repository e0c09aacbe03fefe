"""`hf:NAME` and `torchvision:NAME`, data sets that another library finds, fetches and keeps.

Neither library is imported before such a source is opened.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, final

from PIL import Image

from vqcortex.errors import DataError, MissingExtra, UnknownName
from vqcortex.images.source import (
    ImageRecord,
    ImageSource,
    Picture,
    RowNames,
    concepts_of,
    decoding,
    distinct,
    first_line,
    number_of,
    records,
)


@final
class Rows:
    """Rows of a library's own data set.

    Args:
        name: For messages: "'hf:cifar10'".
        image_ids: One per row.
        concepts: Names, in order.
        labels_of: Makes a fresh pass over the labels of all rows, a concept's name or number each.
        picture_of: What a row's picture is: the bytes of a file, its path, or pixels.
    """

    def __init__(
        self,
        name: str,
        image_ids: Sequence[str],
        concepts: tuple[str, ...],
        labels_of: Callable[[], Iterable[Any]],
        picture_of: Callable[[int], bytes | Path | Image.Image],
    ) -> None:
        self.image_ids, self.concepts = image_ids, concepts
        self._name, self._labels_of, self._picture_of = name, labels_of, picture_of

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[ImageRecord]:
        return records(self)

    def labels(self) -> Iterator[int]:
        number = {name: place for place, name in enumerate(self.concepts)}
        labels = iter(self._labels_of())
        for row in range(len(self)):
            with decoding(self._place(row)):
                concept = number_of(next(labels), number)
            yield concept

    def pictures(self, rows: Iterable[int]) -> Iterator[Picture]:
        for row in rows:
            with decoding(self._place(row)):
                held = self._picture_of(row)
            yield Picture(self._place(row), held)

    def _place(self, row: int) -> str:
        return f"row {row} of {self._name}"


def open_hf(place: str, split: str) -> ImageSource:
    """A data set of the Hugging Face hub, or a local folder that `datasets.load_dataset` understands."""
    datasets = _extra("datasets", "hf")
    try:
        rows = datasets.load_dataset(place, split=split)
    except Exception as error:  # what the library raises has no common ancestor
        raise DataError(
            f"cannot load 'hf:{place}', split {split!r}: {first_line(error)}; check the name and the network"
        ) from error
    image, label = _hf_columns(datasets, rows.features, place)
    concepts = tuple(getattr(rows.features[label], "names", ())) or concepts_of(rows.unique(label))
    rows = rows.cast_column(image, datasets.Image(decode=False))
    only_labels = rows.select_columns([label])

    def labels_of() -> Iterator[Any]:
        return (cells[label] for cells in only_labels)

    def picture_of(row: int) -> bytes | Path:
        cell = rows[row][image] or {}
        return cell.get("bytes") or Path(cell.get("path") or "")

    return Rows(f"'hf:{place}'", RowNames(split, len(rows)), concepts, labels_of, picture_of)


def _hf_columns(datasets: Any, features: Any, place: str) -> tuple[str, str]:
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels += [name for name in ("label", "labels") if name in features]
    if not images or not labels:
        raise DataError(
            f"'hf:{place}' has the columns {', '.join(features)}; wanted are an Image, and a ClassLabel or "
            "a column called label; choose another set, or write those columns to a file and read it as parquet:"
        )
    return images[0], labels[0]


def open_torchvision(place: str, split: str) -> ImageSource:
    """A class of `torchvision.datasets`, kept below $TORCHVISION_DATASETS or ~/.cache/torchvision."""
    found = _torchvision_class(place)
    choices = _torchvision_choices(found, place, split)
    root = Path(os.environ.get("TORCHVISION_DATASETS") or "~/.cache/torchvision").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        rows = found(str(root), **choices)
    except Exception as error:  # each class raises what it likes
        raise DataError(
            f"cannot load 'torchvision:{place}', split {split!r}: {first_line(error)}; "
            f"put its files below {str(root)!r}, or set TORCHVISION_DATASETS to the folder that has them"
        ) from error
    names = getattr(rows, "classes", None) or concepts_of(map(int, getattr(rows, "targets", ())))
    concepts = distinct(str(one[0] if isinstance(one, tuple) else one) for one in names)
    targets = _plain_targets(rows)

    def labels_of() -> Iterator[Any]:
        if targets is not None:
            return iter(targets)
        labels = (rows[row][1] for row in range(len(rows)))
        return (label if isinstance(label, str) else int(label) for label in labels)

    def picture_of(row: int) -> Any:
        return rows[row][0]

    return Rows(f"'torchvision:{place}'", RowNames(split, len(rows)), concepts, labels_of, picture_of)


def _plain_targets(rows: Any) -> list[int] | None:
    """The labels of all rows where the class keeps them as one number per row; None: a row must be read for its own."""
    try:
        targets = [int(one) for one in rows.targets]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return targets if len(targets) == len(rows) else None


def _torchvision_class(name: str) -> Callable[..., Any]:
    known = _extra("torchvision.datasets", "vision")
    if name not in known.__all__:
        near = get_close_matches(name, known.__all__, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownName(f"torchvision.datasets has no {name!r}; known: CIFAR10, FashionMNIST, MNIST, ...{hint}")
    return getattr(known, name)


def _torchvision_choices(found: Callable[..., Any], place: str, split: str) -> dict[str, Any]:
    """The arguments this class takes: some say `train`, some `split`, some cannot download."""
    taken = inspect.signature(found).parameters
    if "train" in taken and split == "validation":
        raise DataError(f"'torchvision:{place}' has no 'validation' split; write one of: train, test")
    wanted = {"train": split == "train", "split": {"validation": "val"}.get(split, split), "download": True}
    return {name: value for name, value in wanted.items() if name in taken}


def _extra(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(
            f"this image source needs {package}; install it with: pip install 'vqcortex[{extra}]'"
        ) from error
