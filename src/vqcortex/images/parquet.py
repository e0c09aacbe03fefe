"""`parquet:PATH`, Parquet as Hugging Face `datasets` writes it: an image column and a label column."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, final

import pyarrow.parquet as pq

from vqcortex.errors import DataError
from vqcortex.images.source import (
    SPELLINGS,
    ImageRecord,
    Picture,
    RowNames,
    concepts_of,
    decoding,
    existing,
    number_of,
    records,
    short,
)

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")
ROWS_AT_ONCE = 64


@final
@dataclass(frozen=True, slots=True)
class _Group:
    """One row group of one file: what Parquet reads at once at the least.

    Args:
        file: The file.
        number: Of the group, in its file.
        first: Its first row, counted over all files of the split.
        before: Rows of the split before its file.
    """

    file: Path
    number: int
    first: int
    before: int


@final
class ParquetSource:
    """One file, or a folder of shards in which names say the split: train-00000.parquet, test/0.parquet."""

    def __init__(self, place: str, split: str) -> None:
        path = existing(place)
        every, self._files = _shards(path, split)
        self._image, self._label = _columns(self._files[0])
        self.concepts = _named_in(self._files[0], self._label) or concepts_of(
            label for file in every for label in _cells(file, self._label)
        )
        self._groups, rows = _groups(self._files)
        self._starts = [group.first for group in self._groups]
        self.image_ids = RowNames(path.stem if path.is_file() else split, rows)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[ImageRecord]:
        return records(self)

    def labels(self) -> Iterator[int]:
        number = {name: place for place, name in enumerate(self.concepts)}
        for file in self._files:
            for row, label in enumerate(_cells(file, self._label)):
                with decoding(_place(file, row)):
                    concept = number_of(label, number)
                yield concept

    def pictures(self, rows: Iterable[int]) -> Iterator[Picture]:
        for number, wanted in groupby(rows, lambda row: bisect_right(self._starts, row) - 1):
            group = self._groups[number]
            for row, cell in _picked(group, self._image, wanted):
                place = _place(group.file, row - group.before)
                with decoding(place):
                    held = _picture(cell, group.file.parent)
                yield Picture(place, held)


def _shards(path: Path, split: str) -> tuple[list[Path], list[Path]]:
    """(all files, the files of the split); a path to one file is that file, whatever the split."""
    if path.is_file():
        return [path], [path]
    every = sorted(path.rglob("*.parquet"))
    if not every:
        raise DataError(f"{str(path)!r} holds no .parquet file; give a file, or a folder of train*.parquet files")
    of_split = {name: [one for one in every if _is_of(one.relative_to(path), name)] for name in SPELLINGS}
    if of_split[split]:
        return every, of_split[split]
    if split == "train" and not any(of_split.values()):
        return every, every
    raise DataError(f"{str(path)!r} has no {split!r} files, only {every[0].name!r}, ...; name them {split}*.parquet")


def _is_of(path: Path, split: str) -> bool:
    """Whether "train-00000-of-00002.parquet" or "train/0000.parquet" belongs to a split."""
    words = "|".join(SPELLINGS[split])
    return any(re.fullmatch(rf"({words})([^a-zA-Z].*)?", part) for part in (*path.parts[:-1], path.stem))


def _opened(file: Path) -> pq.ParquetFile:
    with decoding(str(file)):
        return pq.ParquetFile(file, buffer_size=1 << 16, pre_buffer=False)


def _groups(files: Iterable[Path]) -> tuple[list[_Group], int]:
    """Row groups that hold rows, in order, and how many rows there are."""
    groups, rows = [], 0
    for file in files:
        before = rows
        with _opened(file) as opened:
            for number in range(opened.metadata.num_row_groups):
                held = opened.metadata.row_group(number).num_rows
                groups += [_Group(file, number, rows, before)] if held else []
                rows += held
    return groups, rows


def _place(file: Path, row: int) -> str:
    return f"row {row} of {str(file)!r}"


def _columns(file: Path) -> tuple[str, str]:
    with _opened(file) as opened:
        names = opened.schema_arrow.names
    image = next((one for one in IMAGE_COLUMNS if one in names), None)
    label = next((one for one in LABEL_COLUMNS if one in names), None)
    if image is None or label is None:
        raise DataError(
            f"{str(file)!r} has the columns {', '.join(names)}; wanted are one of {', '.join(IMAGE_COLUMNS)} "
            f"and one of {', '.join(LABEL_COLUMNS)}; rename them"
        )
    return image, label


def _named_in(file: Path, label: str) -> tuple[str, ...]:
    """The concept names that `datasets` wrote into the file; empty: none."""
    with _opened(file) as opened:
        metadata = opened.schema_arrow.metadata or {}
    try:
        about = json.loads(metadata[b"huggingface"])
        return tuple(map(str, about["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _cells(file: Path, column: str) -> Iterator[Any]:
    with _opened(file) as opened, decoding(str(file)):
        for rows in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
            yield from rows.column(0).to_pylist()


def _picked(group: _Group, column: str, wanted: Iterator[int]) -> Iterator[tuple[int, Any]]:
    """Rows and cells of those rows of a group that are wanted; the others do not leave Arrow's memory."""
    with _opened(group.file) as opened, decoding(str(group.file)):
        at, row = group.first, next(wanted, None)
        for rows in opened.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group.number], columns=[column]):
            while row is not None and row < at + rows.num_rows:
                yield row, rows.column(0)[row - at].as_py()
                row = next(wanted, None)
            at += rows.num_rows


def _picture(cell: Any, folder: Path) -> bytes | Path:
    """What to decode: the bytes of a cell, or a file that it names below the Parquet file's own folder."""
    held, named = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(held, bytes) and held:
        return held
    file = (folder / named).resolve() if isinstance(named, str) and named else None
    if file is None or not file.is_relative_to(folder.resolve()):
        raise DataError(f"its bytes are {short(held)} and its path {short(named)}; mend or drop the row")
    return file
