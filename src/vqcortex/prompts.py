"""Tables with a prompt in every row: CSV, JSON Lines or Parquet, read row by row and checked.

    prompt                a text; "text" and "caption" are read as well
    group (optional)      the concept; without it, the prompt is
    split (optional)      train, validation (or val), test
    id    (optional)      a name of the picture's own

What a row says about the picture itself (a file, bytes, tokens) is for those who ask for that column. Runs of white
space in a text count as one blank. Nothing in a table is ever evaluated.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq

from vqcortex.errors import DataError
from vqcortex.splits import SPLITS, split_of

PROMPT = ("prompt", "text", "caption")
GROUP, SPLIT, NAME = "group", "split", "id"
LONGEST = 1000  # letters of a concept's name: it stands in every table of a study
ROWS_AT_ONCE = 64
BROKEN = (pa.ArrowException, OSError, ValueError, IndexError)


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """What a row says, checked.

    Args:
        index: Its place in the table, from 0.
        place: Where it is, for messages: "row 3 of 'x.csv'". In a CSV the header is row 1, as in a spreadsheet; in
            JSON Lines rows are lines; in Parquet they count from 0.
        prompt: The prompt.
        concept: The group if the table has groups, else the prompt.
        split: "train", "validation" or "test"; None: the table does not say.
        name: The picture's own name; None: the table has none.
        cell: What stands in the column asked for; None: nothing does, or none was asked for.
    """

    index: int
    place: str
    prompt: str
    concept: str
    split: str | None
    name: str | None
    cell: Any


@final
class PromptTable:
    """A table on disk; every look at it reads it anew, so memory does not grow with it.

    Args:
        path: A file that ends in .csv, .jsonl or .parquet.
    Raises:
        DataError: It is none of these, cannot be read, or has no column of prompts.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        reader = READERS.get(self.path.suffix.lower())
        if reader is None:
            raise DataError(f"{str(self.path)!r} is no table of prompts; give a {', '.join(READERS)} file")
        columns_of, self._rows = reader
        self.columns = _checked(columns_of(self.path), self.path)
        self._prompt = next(one for one in PROMPT if one in self.columns)
        self._said = tuple(one for one in (self._prompt, GROUP, SPLIT, NAME) if one in self.columns)

    @property
    def folder(self) -> Path:
        """Where the files lie that it names."""
        return self.path.parent

    @property
    def has_splits(self) -> bool:
        """Whether it says what each picture is for."""
        return SPLIT in self.columns

    def column(self, *names: str) -> str:
        """The first of these columns that it has.

        Raises:
            DataError: It has none of them.
        """
        found = next((one for one in names if one in self.columns), None)
        if found is None:
            raise DataError(
                f"{str(self.path)!r} has the columns {', '.join(self.columns)}; wanted is one of {', '.join(names)}"
            )
        return found

    def entries(self, column: str | None = None, wanted: Iterable[int] | None = None) -> Iterator[Entry]:
        """Rows in order.

        Args:
            column: Whose cells to read besides; None: no other.
            wanted: Rows counted from 0 and rising; None: all. The cells of no other row are read.

        Raises:
            DataError: While reading, a row that is broken; the message names it.
        """
        columns = self._said if column is None else tuple(dict.fromkeys((*self._said, column)))
        for index, number, cells in self._rows(self.path, columns, iter(count() if wanted is None else wanted)):
            yield self._entry(index, f"row {number} of {str(self.path)!r}", cells, column)

    def _entry(self, index: int, place: str, cells: dict[str, Any], column: str | None) -> Entry:
        prompt = _text(cells, self._prompt, place)
        concept = _text(cells, GROUP, place) if GROUP in self.columns else prompt
        if len(concept) > LONGEST:
            raise DataError(
                f"{place} has a concept of {len(concept)} letters, {_short(concept)}; at most {LONGEST} are allowed: "
                f"add a column {GROUP!r} with short names"
            )
        split = _text(cells, SPLIT, place) if self.has_splits else None
        if split is not None and (split := split_of(word := split)) is None:
            raise DataError(f"{place} has split {_short(word)}; write one of {', '.join(SPLITS)}")
        name = _text(cells, NAME, place) if NAME in self.columns else None
        return Entry(index, place, prompt, concept, split, name, None if column is None else cells.get(column))


def concepts_among(tables: Sequence[PromptTable]) -> tuple[str, ...]:
    """Concepts of tables of pictures together, sorted; every row is looked at.

    Raises:
        DataError: There are no rows, a row is broken, or every row has a concept of its own.
    """
    found: set[str] = set()
    rows = 0
    for table in tables:
        for entry in table.entries():
            found.add(entry.concept)
            rows += 1
    named = " and ".join(repr(str(table.path)) for table in tables)
    if not rows:
        raise DataError(f"{named} has no rows; write one per picture")
    if rows == len(found) > 1:
        raise DataError(
            f"each of the {rows} rows of {named} has a concept of its own, and one picture explains nothing; "
            f"add a column {GROUP!r} that puts prompts together"
        )
    return tuple(sorted(found))


def prompts_by_concept(table: PromptTable) -> dict[str, tuple[str, ...]]:
    """The different prompts of each concept in the table's order; concepts sorted.

    Raises:
        DataError: There are no rows, or a row is broken.
    """
    found: dict[str, dict[str, None]] = {}
    for entry in table.entries():
        found.setdefault(entry.concept, {})[entry.prompt] = None
    if not found:
        raise DataError(f"{str(table.path)!r} has no rows; write one per prompt")
    return {concept: tuple(found[concept]) for concept in sorted(found)}


def below(folder: Path, name: object, place: str) -> Path:
    """A file that a row names, in the table's folder or deeper.

    Raises:
        DataError: It is no such name.
    """
    text = name.strip() if isinstance(name, str) else ""
    # Names are compared, not where links lead: the hub's cache is made of links that lead out of it.
    if not text or "\0" in text or PurePath(text).is_absolute() or ".." in PurePath(text).parts:
        raise DataError(
            f"{place} names the file {_short(name)}; write a path inside the table's own folder, as in 'pictures/1.png'"
        )
    return folder / text


Rows = Iterator[tuple[int, int, dict[str, Any]]]  # index from 0, number for messages, cells


def _checked(columns: list[str], path: Path) -> tuple[str, ...]:
    twice = sorted({one for one in columns if columns.count(one) > 1})
    if twice:
        raise DataError(f"{str(path)!r} names the column {twice[0]!r} twice; rename one")
    if not set(PROMPT) & set(columns):
        raise DataError(
            f"{str(path)!r} has the columns {_short(', '.join(columns))} and none called {' or '.join(PROMPT)}; "
            "name the columns in the first row" + (" and rename one" if columns else "")
        )
    return tuple(columns)


def _text(cells: dict[str, Any], column: str, place: str) -> str:
    """A cell as a text of one line."""
    value = cells.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place} has no {column}; fill the cell in, or drop the row")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{place} has the {column} {_short(value)}, which is no text; mend or drop the row")
    text = " ".join(str(value).split())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place} has a {column} that is no UTF-8, {_short(text)}; save the table as UTF-8") from error
    return text


def _picked(rows: Iterable[tuple[int, dict[str, Any]]], wanted: Iterator[int]) -> Rows:
    """Those of numbered rows that are wanted."""
    at = next(wanted, None)
    for index, (number, cells) in enumerate(rows):
        if at is None:
            return
        if index == at:
            yield index, number, cells
            at = next(wanted, None)


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        # Spreadsheets write a mark in front; bytes that are no UTF-8 are refused where their row is known.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, cells in enumerate(csv.reader(file, strict=True), start=1):
                if cells:
                    yield number, cells
    except (OSError, csv.Error) as error:
        raise _unreadable(path, f"after row {number}: {error}") from error


def _csv_columns(path: Path) -> list[str]:
    return [one.strip() for one in next(_csv_lines(path), (1, []))[1]]


def _csv_rows(path: Path, columns: Sequence[str], wanted: Iterator[int]) -> Rows:
    lines = _csv_lines(path)
    names = [one.strip() for one in next(lines, (1, []))[1]]

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, cells in lines:
            if len(cells) != len(names):
                raise DataError(
                    f"row {number} of {str(path)!r} has {len(cells)} cells but the first row names {len(names)} "
                    'columns; put "quotes" around a cell that holds commas'
                )
            yield number, dict(zip(names, cells, strict=True))

    return _picked(rows(), wanted)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                value = json.loads(line) if line.strip() else {}
                if value == {}:
                    continue
                if not isinstance(value, dict):
                    raise DataError(f"row {number} of {str(path)!r} is {_short(value)}, not an object; mend the row")
                yield number, value
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"row {number} is not JSON: {_line(error)}") from error
    except OSError as error:
        raise _unreadable(path, error.strerror or _line(error)) from error


def _json_columns(path: Path) -> list[str]:
    return list(next(_json_lines(path), (1, {}))[1])


def _json_rows(path: Path, columns: Sequence[str], wanted: Iterator[int]) -> Rows:
    return _picked(_json_lines(path), wanted)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False)
    except BROKEN as error:
        raise _unreadable(path, _line(error)) from error


def _parquet_columns(path: Path) -> list[str]:
    with _parquet(path) as file:
        return list(file.schema_arrow.names)


def _parquet_rows(path: Path, columns: Sequence[str], wanted: Iterator[int]) -> Rows:
    """Rows counted from 0; a row group without a wanted row is not read."""
    first, at = 0, next(wanted, None)
    with _parquet(path) as file:
        for group in range(file.metadata.num_row_groups):
            past = first + file.metadata.row_group(group).num_rows
            if at is None:
                return
            for batch in _batches(file, path, group, columns) if at < past else ():
                while at is not None and at < first + batch.num_rows:
                    yield at, at, {name: _cell(batch.column(name), at - first, path, at) for name in columns}
                    at = next(wanted, None)
                if at is None:
                    return
                first += batch.num_rows
            first = past


def _batches(file: pq.ParquetFile, path: Path, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group], columns=list(columns))
    except BROKEN as error:
        raise _unreadable(path, _line(error)) from error


def _cell(column: Any, row: int, path: Path, number: int) -> Any:
    try:
        return column[row].as_py()
    except BROKEN as error:
        raise _unreadable(path, f"row {number}: {_line(error)}") from error


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{str(path)!r} cannot be read: {why}; check the path, or save the table again")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


READERS: dict[str, tuple[Callable[[Path], list[str]], Callable[[Path, Sequence[str], Iterator[int]], Rows]]] = {
    ".csv": (_csv_columns, _csv_rows),
    ".jsonl": (_json_columns, _json_rows),
    ".parquet": (_parquet_columns, _parquet_rows),
}
