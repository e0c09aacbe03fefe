"""Token grids in the layout of the published CORTEX code: a CSV of ids per split, a .npy of codes per image.

    train_embeddings.csv    a header, then file name, label, ids as text: n01_5.npy,3,"[17, 4, ...]"
    train/n01_5.npy         float32 (d, h, w): the same image as codes
    val/, test/             likewise

Ids come from the CSV; where it gives none, they are the codes nearest to the .npy. Nothing in a file is ever
evaluated.

Source:
    Yang et al. 2025, arXiv:2506.00698, published code. Its `SUBFOLDER_IMAGE.npy` names carry the label of
    images that no CSV lists.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError, DataError, VqCortexError
from vqcortex.tokens.grid import check_tokens
from vqcortex.tokens.shard import TokenBatch

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
LETTERS_PER_ID = 24  # far more than ", 16383" needs; a longer cell is not a list of ids
SAME = 1e-4  # largest difference between a code and the .npy, absolute: float32 written and read back


@final
@dataclass(frozen=True, slots=True)
class _Row:
    file: Path
    number: int
    name: str
    label: str
    ids: str


def read_published(
    folder: Path | str,
    split: str,
    codebook_k: int,
    grid: tuple[int, int],
    codebook: Float[Tensor, "k d"] | None = None,
    concepts: Sequence[str] | None = None,
    size: int = 256,
) -> Iterator[TokenBatch]:
    """Read one split, `size` images at a time.

    Args:
        folder: Holds the CSV files and the folders train, val, test.
        split: "train", "validation" (or "val"), or "test".
        codebook_k: Codes in the model's codebook.
        grid: Rows and columns of a grid, (h, w).
        codebook: The model's codes; where an image's .npy is there, it must hold the codes of its ids. None:
            the .npy files are not looked at.
        concepts: Names in order; a label is one of them, or a number that counts from 0 where no name is a
            number. None: the labels found, as `published_concepts` lists them.
        size: Images per batch, 1 or more.

    Raises:
        ConfigError: An unknown split, or `size` below 1.
        DataError: A file is missing or cannot be read, a label is unknown, ids are not h*w whole numbers, or
            they contradict the .npy; the message names file and row.
        TokenError: An id is outside the codebook.
    """
    split = {"val": "validation"}.get(split, split)
    if split not in FOLDERS or size < 1:
        raise ConfigError(f"split={split!r}, size={size}; write one of {', '.join(FOLDERS)} and 1 image or more")
    number_of = _numbers(published_concepts(folder) if concepts is None else concepts)
    reader = _Reader(Path(folder), split, codebook_k, grid, codebook, number_of)
    rows = _rows(reader.folder, split)
    return _batches(reader, rows, size)


def published_concepts(folder: Path | str) -> tuple[str, ...]:
    """Every label of every split, sorted; by value when all are whole numbers.

    Raises:
        DataError: The folder holds no split.
    """
    folder = Path(folder)
    present = _present(folder)
    labels = {row.label for split in present for row in _rows(folder, split)}
    return tuple(sorted(labels, key=int if all(map(_is_whole, labels)) else str))


def published_splits(folder: Path | str) -> list[str]:
    """Splits that are there, in the order train, validation, test."""
    folder = Path(folder)
    return [split for split in FOLDERS if _listing(folder, split).is_file() or _arrays(folder, split).is_dir()]


def published_files(folder: Path | str) -> Iterator[Path]:
    """Every file that `read_published` looks at when it has a codebook: the CSVs, and the .npy files of their rows.

    Raises:
        DataError: The folder holds no split, a CSV cannot be read, or a row of it names a file elsewhere.
    """
    folder = Path(folder)
    for split in _present(folder):
        if _listing(folder, split).is_file():
            yield _listing(folder, split)
        for row in _rows(folder, split):
            with _reading(row):
                path = _array(folder, split, row)
            if path.is_file():
                yield path


@final
@dataclass(frozen=True, slots=True)
class _Reader:
    folder: Path
    split: str
    k: int
    grid: tuple[int, int]
    codebook: Tensor | None
    number_of: dict[str, int]

    def read(self, row: _Row) -> tuple[str, int, Tensor]:
        """Image id, concept and grid of one row."""
        with _reading(row):
            return f"{self.split}/{Path(row.name).stem}", self.concept(row.label), self.tokens(row)

    def concept(self, label: str) -> int:
        if label not in self.number_of:
            known = list(self.number_of)
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise DataError(f"label {label!r} is none of the {len(known)} concepts: {listed}; add it, or mend the row")
        return self.number_of[label]

    def tokens(self, row: _Row) -> Int[Tensor, "h w"]:
        path = _array(self.folder, self.split, row)
        has_array = self.codebook is not None and path.is_file()
        if not row.ids and not has_array:
            cure = f"{str(path)!r} must exist" if self.codebook is not None else "pass the model's codebook"
            raise DataError(f"the row gives no ids; to find them from the codes, {cure}")
        tokens = _parse(row.ids, self.grid, self.k) if row.ids else None
        if not has_array or self.codebook is None:
            assert tokens is not None
            return tokens
        embedded = _load(path, (self.codebook.shape[1], *self.grid))
        tokens = _nearest(embedded, self.codebook) if tokens is None else tokens
        _check_same(tokens, embedded, self.codebook, path)
        return tokens


@contextmanager
def _reading(row: _Row) -> Iterator[None]:
    """Whatever is wrong inside is said to be wrong with this row."""
    try:
        yield
    except VqCortexError as error:
        raise error.within(file=row.file, row=row.number, name=repr(row.name)) from error


def _batches(reader: _Reader, rows: Iterator[_Row], size: int) -> Iterator[TokenBatch]:
    while block := list(islice(rows, size)):
        image_ids, concept, tokens = zip(*map(reader.read, block), strict=True)
        yield TokenBatch(tuple(image_ids), torch.tensor(concept), (reader.split,) * len(block), torch.stack(tokens))


def _numbers(concepts: Sequence[str]) -> dict[str, int]:
    """Which concept a label means."""
    named = {name: number for number, name in enumerate(concepts)}
    if any(map(_is_whole, concepts)):
        return named
    return named | {str(number): number for number in range(len(concepts))}


def _listing(folder: Path, split: str) -> Path:
    return folder / f"{FOLDERS[split]}_embeddings.csv"


def _arrays(folder: Path, split: str) -> Path:
    return folder / FOLDERS[split]


def _array(folder: Path, split: str, row: _Row) -> Path:
    return _arrays(folder, split) / _plain(row.name)


def _present(folder: Path) -> list[str]:
    """Splits that are there, at least one."""
    if present := published_splits(folder):
        return present
    raise _no_split(folder, "train")


def _rows(folder: Path, split: str) -> Iterator[_Row]:
    if _listing(folder, split).is_file():
        return _listed(_listing(folder, split))
    if _arrays(folder, split).is_dir():
        return _unlisted(_arrays(folder, split))
    raise _no_split(folder, split)


def _no_split(folder: Path, split: str) -> DataError:
    return DataError(
        f"{str(folder)!r} holds neither {_listing(folder, split).name!r} nor a folder {FOLDERS[split]!r}; "
        "give the folder that holds the published CSV files"
    )


def _listed(path: Path) -> Iterator[_Row]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            for cells in reader:
                if reader.line_num == 1 or not cells:
                    _check_header(path, cells)
                    continue
                yield _row(path, reader.line_num, cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}; fetch it again") from error


def _check_header(path: Path, cells: list[str]) -> None:
    if cells and cells[0].endswith(".npy"):
        raise DataError(f"{str(path)!r} starts with data; its first line must be a header: filename,label,tokens")


def _row(path: Path, number: int, cells: list[str]) -> _Row:
    if len(cells) < 2:
        raise DataError(f"row {number} of {str(path)!r} is {cells!r}; it must hold a file name, a label and ids")
    ids = ",".join(cells[2:]).strip()  # a list that was not quoted arrives in pieces
    return _Row(path, number, cells[0].strip(), cells[1].strip(), ids)


def _unlisted(folder: Path) -> Iterator[_Row]:
    for number, path in enumerate(sorted(folder.glob("*.npy")), start=1):
        label, mark, _ = path.stem.rpartition("_")
        if not mark or not label:
            raise DataError(f"{str(path)!r} has no label; without a CSV names must read SUBFOLDER_IMAGE.npy")
        yield _Row(folder, number, path.name, label, "")


def _plain(name: str) -> str:
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise DataError(f"file name {name!r} leads out of its folder; write a plain name such as 'n01_5.npy'")
    return name if name.endswith(".npy") else f"{name}.npy"


def _parse(text: str, grid: tuple[int, int], k: int) -> Int[Tensor, "h w"]:
    cells = grid[0] * grid[1]
    ids = _json(text) if len(text) <= LETTERS_PER_ID * cells + 2 else None
    if not isinstance(ids, list) or any(type(one) is not int for one in ids):
        raise DataError(f"ids {_short(text)} are not a list of {cells} whole numbers; write them as '[17, 4, 250]'")
    if len(ids) != cells:
        raise DataError(f"the row holds {len(ids)} ids but a grid of {grid[0]}x{grid[1]} needs {cells}; mend the row")
    # Numbers beyond 64 bits are as far outside the codebook as -1.
    tokens = torch.tensor([one if abs(one) < 2**62 else -1 for one in ids])
    check_tokens(tokens, k)
    return tokens.reshape(grid)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _load(path: Path, shape: tuple[int, int, int]) -> Float[Tensor, "d h w"]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # maps: a lying header allocates nothing
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{str(path)!r} is not a whole .npy file: {error}; fetch it again") from error
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != "f":
        has = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{str(path)!r} holds {has}; codes (d, h, w) = {shape} of floats are needed")
    return torch.from_numpy(array.astype(np.float32))


def _nearest(embedded: Float[Tensor, "d h w"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, "h w"]:
    return torch.cdist(embedded.flatten(1).T, codebook.cpu()).argmin(1).reshape(embedded.shape[1:])


def _check_same(
    tokens: Int[Tensor, "h w"], embedded: Float[Tensor, "d h w"], codebook: Float[Tensor, "k d"], path: Path
) -> None:
    away = (codebook.cpu()[tokens].permute(2, 0, 1) - embedded).abs().amax(0)  # (h, w)
    if bool((away <= SAME).all()):  # asked this way round, NaN is a difference
        return
    row, column = divmod(int((~(away <= SAME)).flatten().int().argmax()), away.shape[1])
    raise DataError(
        f"{str(path)!r} is not made of this codebook: at row {row}, column {column} it is "
        f"{float(away[row, column]):.3g} away from code {int(tokens[row, column])}, more than {SAME}; "
        "was it made with another model?"
    )


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:40]!r}... ({len(text)} characters)"
