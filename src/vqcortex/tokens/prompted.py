"""Token grids with prompts: a table as in `vqcortex.prompts` with a column of ids, or of .npy files that hold them.

    prompt,tokens
    a red bird on a branch,"[12, 5, 901, ...]"        or 12 5 901 ..., row by row; in Parquet a list
    prompt,file
    a red bird on a branch,birds/7.npy                whole numbers (h, w) or (h*w,), below the table's folder

A table may have both columns: then the ids count, and the file is somebody's picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.errors import ConfigError, DataError, TokenError
from vqcortex.prompts import Entry, PromptTable, below, concepts_among
from vqcortex.tokens.grid import check_tokens
from vqcortex.tokens.shard import TokenBatch

TOKENS, FILE = "tokens", ("file", "file_name")
LETTERS_PER_ID = 24  # far more than ", 16383" needs; a longer cell is not a list of ids


def prompted_concepts(table: Path | str) -> tuple[str, ...]:
    """Every group of a table, or every prompt if it has no groups, sorted.

    Raises:
        DataError: The table cannot be read, has no ids, or names a concept per row.
    """
    opened = PromptTable(table)
    opened.column(TOKENS, *FILE)
    return concepts_among([opened])


def prompted_files(table: Path | str) -> Iterator[Path]:
    """Every file that `read_prompted` reads: the table, and the .npy files of its rows.

    Raises:
        DataError: The table cannot be read, or a row names a file elsewhere.
    """
    opened = PromptTable(table)
    yield opened.path
    column = opened.column(TOKENS, *FILE)
    if column != TOKENS:
        for entry in opened.entries(column):
            yield _array(entry, opened)


def read_prompted(
    table: Path | str,
    k: int,
    grid: tuple[int, int],
    concepts: Sequence[str],
    order: Sequence[str],
    size: int = 256,
) -> Iterator[TokenBatch]:
    """Read a table's images, `size` at a time.

    Args:
        table: A .csv, .jsonl or .parquet file.
        k: Codes in the model's codebook.
        grid: Rows and columns of a grid, (h, w).
        concepts: Names in the order they are numbered; rows of others are passed over.
        order: The splits of a concept's first, second, ... image where the table does not say, from the start again
            when it is used up.
        size: Images per batch, 1 or more.

    Raises:
        ConfigError: `size` is below 1.
        DataError: While reading, a row that is broken, or whose ids are not h*w whole numbers; the message names it.
        TokenError: While reading, an id outside the codebook; likewise.
    """
    if size < 1:
        raise ConfigError(f"size={size} must be at least 1 image per batch")
    opened = PromptTable(table)
    rows = _rows(opened, opened.column(TOKENS, *FILE), k, grid, list(concepts), order)
    while block := list(islice(rows, size)):
        names, numbers, splits, tokens = zip(*block, strict=True)
        yield TokenBatch(tuple(names), torch.tensor(numbers), tuple(splits), torch.stack(tokens))


def _rows(
    table: PromptTable, column: str, k: int, grid: tuple[int, int], concepts: list[str], order: Sequence[str]
) -> Iterator[tuple[str, int, str, Tensor]]:
    number_of = {name: number for number, name in enumerate(concepts)}
    seen = [0] * len(concepts)
    for entry in table.entries(column):
        number = number_of.get(entry.concept)
        if number is None:
            continue
        ids = _listed(entry, grid) if column == TOKENS else _loaded(_array(entry, table), entry.place)
        split = entry.split or order[seen[number] % len(order)]
        seen[number] += 1
        yield entry.name or f"{table.path.stem}/{entry.index:06d}", number, split, _grid_of(ids, k, grid, entry.place)


def _array(entry: Entry, table: PromptTable) -> Path:
    path = below(table.folder, entry.cell, entry.place)
    if path.suffix != ".npy":
        raise DataError(
            f"{entry.place} names {path.name!r}, which is no .npy file of ids; give ids in a column {TOKENS!r}, "
            "or encode pictures with --images prompts:TABLE"
        )
    return path


def _listed(entry: Entry, grid: tuple[int, int]) -> np.ndarray:
    """The ids of a cell: a list, a list of rows, or either as text."""
    cell = entry.cell
    if isinstance(cell, str):
        cell = _numbers_in(cell) if len(cell) <= LETTERS_PER_ID * (grid[0] * grid[1] + 1) else None
    rows = cell if isinstance(cell, list) and cell and all(isinstance(one, list) for one in cell) else [cell]
    if not all(isinstance(row, list) and all(type(one) is int for one in row) for row in rows):
        raise _no_ids(entry.place, entry.cell, grid)
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"{entry.place} has rows of ids of different lengths; a grid is {grid[0]}x{grid[1]}")
    # Numbers beyond 64 bits are as far outside the codebook as -1.
    plain = [[one if abs(one) < 2**62 else -1 for one in row] for row in rows]
    return np.array(plain if rows is cell else plain[0], np.int64)


def _numbers_in(text: str) -> Any:
    """ "12 5 901", "[12, 5, 901]", "[12 5 901]" or "[[12, 5], [901, 3]]" as lists; None: none of these."""
    text = text.strip()
    inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    words = inner.replace(",", " ").split()
    if words and all(map(_is_whole, words)):
        return [int(word) for word in words]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_whole(word: str) -> bool:
    digits = word.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) <= LETTERS_PER_ID


def _loaded(path: Path, place: str) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # maps: a lying header allocates nothing
    except (OSError, ValueError, EOFError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{place}: {str(path)!r} is not a whole .npy file: {why}; fetch or write it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        has = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{place}: {str(path)!r} holds {has}; whole numbers are needed")
    return array


def _grid_of(ids: np.ndarray, k: int, grid: tuple[int, int], place: str) -> Int[Tensor, "h w"]:
    h, w = grid
    if ids.shape not in ((h, w), (h * w,)):
        raise DataError(
            f"{place} holds ids of shape {ids.shape} but this model's grid is {h}x{w}; "
            f"give {h * w} ids, row by row: was another model used?"
        )
    wide = ids.astype(np.int64) if ids.dtype != np.uint64 else np.minimum(ids, 2**62).astype(np.int64)
    tokens = torch.from_numpy(wide).reshape(h, w)
    try:
        check_tokens(tokens, k)
    except TokenError as error:
        raise error.within(row=place) from None
    return tokens


def _no_ids(place: str, cell: Any, grid: tuple[int, int]) -> DataError:
    text = repr(cell)
    shown = text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
    return DataError(
        f"{place}: tokens {shown} are not a list of {grid[0] * grid[1]} whole numbers; write them as '[17, 4, 250]'"
    )
