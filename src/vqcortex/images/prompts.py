"""`prompts:PLACE`, pictures with prompts: a table that names or holds them, or a folder with metadata.csv.

The table is as in `vqcortex.prompts`, with one more column: "image" (bytes, or the form that the Hugging Face Image
feature writes) or "file" ("file_name"), a path below the table's folder. A folder is laid out as Hugging Face's
imagefolder with metadata: FOLDER/metadata.csv (.jsonl, .parquet) beside its pictures, or one in each of
FOLDER/train, FOLDER/validation, FOLDER/test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

from vqcortex.errors import DataError
from vqcortex.images.source import ImageRecord, Picture, RowNames, decoding, existing, records, short
from vqcortex.prompts import READERS, Entry, PromptTable, below, concepts_among
from vqcortex.splits import SPELLINGS

PICTURE = ("image", "img", "file", "file_name")


@final
class PromptSource:
    """Rows of one split; concepts are counted over all."""

    def __init__(self, place: str, split: str) -> None:
        tables = _tables(existing(place))
        self._table, self._split = _chosen(tables, split, place), split
        self._column = self._table.column(*PICTURE)
        self.concepts = concepts_among(list(tables.values()))
        self.image_ids: Sequence[str] = self._names()
        if not self.image_ids:
            raise DataError(f"{str(self._table.path)!r} has no rows of split {split!r}; choose another split")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[ImageRecord]:
        return records(self)

    def labels(self) -> Iterator[int]:
        number = {name: place for place, name in enumerate(self.concepts)}
        for entry in self._mine():
            if entry.concept not in number:
                raise DataError(f"{entry.place} has changed since the table was opened; open it again")
            yield number[entry.concept]

    def pictures(self, rows: Iterable[int]) -> Iterator[Picture]:
        for entry in self._table.entries(self._column, self._in_table(rows)):
            with decoding(entry.place):
                held = _held(entry.cell, self._table.folder, entry.place)
            where = f", {str(held)!r}," if isinstance(held, Path) else ""
            yield Picture(f"{entry.place}{where}", held)

    def _mine(self) -> Iterator[Entry]:
        return (entry for entry in self._table.entries() if entry.split in (None, self._split))

    def _in_table(self, rows: Iterable[int]) -> Iterator[int]:
        """Rows of the split as rows of the table."""
        if not self._table.has_splits:
            yield from rows
            return
        mine = enumerate(self._mine())
        for row in rows:
            yield next(entry.index for number, entry in mine if number == row)

    def _names(self) -> Sequence[str]:
        before = self._split if self._table.has_splits else self._table.path.stem
        if "id" not in self._table.columns:
            return RowNames(before, sum(1 for _ in self._mine()))
        found: dict[str, str] = {}
        for entry in self._mine():
            assert entry.name is not None
            if entry.name in found:
                raise DataError(f"{entry.place} has the id {entry.name!r} of {found[entry.name]}; give another one")
            found[entry.name] = entry.place
        return tuple(found)


def _tables(path: Path) -> dict[str, PromptTable]:
    """Tables by the split they are for; "": one for all."""
    if path.is_file():
        return {"": PromptTable(path)}
    if (table := _metadata(path)) is not None:
        return {"": table}
    found = {
        split: table
        for split, spellings in SPELLINGS.items()
        for spelling in reversed(spellings)
        if (table := _metadata(path / spelling)) is not None
    }
    if not found:
        raise DataError(
            f"{str(path)!r} holds no metadata{', metadata'.join(READERS)}, nor do its folders train, validation, test; "
            "write one with the columns file_name and prompt, or name the table itself"
        )
    return found


def _metadata(folder: Path) -> PromptTable | None:
    paths = (folder / f"metadata{suffix}" for suffix in READERS)
    return next((PromptTable(path) for path in paths if path.is_file()), None)


def _chosen(tables: dict[str, PromptTable], split: str, place: str) -> PromptTable:
    table = tables.get(split, tables.get(""))
    if table is None:
        raise DataError(f"{place!r} has the splits {', '.join(tables)} but no {split!r}; choose one of them")
    if split != "train" and split not in tables and not table.has_splits:
        raise DataError(
            f"{str(table.path)!r} is not divided into splits, so it has no {split!r}; add a column 'split', "
            "or read it as 'train'"
        )
    return table


def _held(cell: Any, folder: Path, place: str) -> bytes | Path:
    """What to decode: bytes of a cell, or a file that it names."""
    held, named = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
    if isinstance(held, bytes) and held:
        return held
    if not isinstance(named, str):
        raise DataError(f"{place} holds {short(cell)} where a picture or its file is wanted; mend or drop the row")
    return below(folder, named, place).absolute()  # wherever it is opened
