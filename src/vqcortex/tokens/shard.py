"""One Parquet file of a token store: its columns, how it is written, and how its rows become tensors.

Equal batches give equal bytes: every writer setting that a library default could change is fixed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.errors import ConfigError, ShapeError, StoreError, TokenError
from vqcortex.splits import SPLITS as SPLITS
from vqcortex.tokens.grid import check_tokens, smallest_id_type
from vqcortex.tokens.manifest import Manifest, Shard

COLUMNS = ("image_id", "concept", "split", "tokens")
ROW_GROUP = 4096  # a dictionary is written once per row group: 8 bytes per image for 16,384 codes
WRITE_BATCH = 64  # images between looks at the page size, so that a page of pictures stays near 1 MB
CELLS_PER_CODE = 10  # tokens per code in a shard from which a dictionary costs less than a tenth
READ_BUFFER = 1 << 16  # bytes; a column is read in such pieces, not a row group at a time


@final
@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Some images as tokens.

    Args:
        image_ids: Unique within a store.
        concept: Index into the store's concepts, per image.
        split: "train", "validation" or "test", per image.
        tokens: One grid per image.
        images: Encoded picture files (PNG, JPEG), None for an image without; None: nobody has one.
    """

    image_ids: tuple[str, ...]
    concept: Int[Tensor, " b"]
    split: tuple[str, ...]
    tokens: Int[Tensor, "b h w"]
    images: tuple[bytes | None, ...] | None = None

    def __post_init__(self) -> None:
        sizes = [len(self.image_ids), len(self.concept), len(self.split), len(self.tokens)]
        sizes += [] if self.images is None else [len(self.images)]
        if len(set(sizes)) > 1:
            raise ShapeError(f"image_ids, concept, split, tokens (and images) have {sizes} entries; give one per image")

    def __len__(self) -> int:
        """Images in the batch."""
        return len(self.image_ids)

    def take(self, index: Sequence[int]) -> TokenBatch:
        """The images at these places of the batch, in this order."""
        at = torch.tensor(list(index), dtype=torch.int64)
        return TokenBatch(
            tuple(self.image_ids[i] for i in index),
            self.concept[at],
            tuple(self.split[i] for i in index),
            self.tokens[at],
            None if self.images is None else tuple(self.images[i] for i in index),
        )

    def where_split(self, name: str) -> TokenBatch:
        """The images of one split, in order."""
        check_split(name)
        return self.take([number for number, split in enumerate(self.split) if split == name])


def joined(batches: Sequence[TokenBatch]) -> TokenBatch:
    """One batch of the images of all; at least one batch is needed."""
    images = [one.images for one in batches]
    return TokenBatch(
        tuple(name for one in batches for name in one.image_ids),
        torch.cat([one.concept for one in batches]),
        tuple(name for one in batches for name in one.split),
        torch.cat([one.tokens for one in batches]),
        None if None in images else tuple(image for part in images for image in part or ()),
    )


def check_split(name: str) -> None:
    """Return quietly when `name` is a split of a store.

    Raises:
        ConfigError: It is not.
    """
    if name not in SPLITS:
        raise ConfigError(f"split {name!r} is unknown to token stores; write one of: {', '.join(SPLITS)}")


def schema_of(manifest: Manifest) -> pa.Schema:
    """Columns of a shard; the metadata lets Hugging Face `datasets` show concept names and pictures."""
    h, w = manifest.grid
    ids: Any = pa.from_numpy_dtype(smallest_id_type(manifest.k))
    types: list[Any] = [
        pa.string(),
        pa.int64(),  # 64 bits because a ClassLabel has them; a dictionary makes them cost nothing
        pa.string(),
        pa.list_(ids, h * w),
    ]
    columns = list(zip(COLUMNS, types, strict=True))
    features: dict[str, Any] = {"concept": {"names": list(manifest.concepts), "_type": "ClassLabel"}}
    if manifest.pictures:
        columns.append(("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
        features["image"] = {"_type": "Image"}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def write_shard(batch: TokenBatch, manifest: Manifest, path: Path) -> None:
    """Write a checked batch as one Parquet file."""
    settings: dict[str, Any] = {
        "version": "2.6",
        "data_page_version": "1.0",
        "compression": "zstd",
        "compression_level": 3,
        **_packing(batch.tokens.numel(), manifest.k),
        "write_statistics": ["image_id", "concept", "split"],
        "row_group_size": ROW_GROUP,
        "write_batch_size": WRITE_BATCH,
        "store_schema": True,
    }
    pq.write_table(_table(batch, manifest), path, **settings)


def rows_of(
    folder: Path, shard: Shard, manifest: Manifest, columns: Sequence[str], size: int
) -> Iterator[pa.RecordBatch]:
    """A shard's rows, at most `size` at a time, read as they are asked for.

    Raises:
        StoreError: The file is damaged, or its columns or rows are not the ones the manifest promises.
    """
    wanted, seen = schema_of(manifest), 0
    source = folder / shard.name
    with reading(folder, shard.name), pq.ParquetFile(source, buffer_size=READ_BUFFER, pre_buffer=False) as file:
        if not file.schema_arrow.equals(wanted):
            raise damaged(folder, shard.name, f"its columns are {_types(file.schema_arrow)}, not {_types(wanted)}")
        for rows in file.iter_batches(batch_size=size, columns=list(columns)):
            rows.validate(full=True)  # offsets and UTF-8, which a reader of damaged bytes takes on trust
            seen += rows.num_rows
            yield rows
        if seen != shard.rows:
            raise damaged(folder, shard.name, wrong_rows(seen, shard))


def wrong_rows(found: int, shard: Shard) -> str:
    """What is wrong with a shard of another length, in words."""
    return f"it holds {found} images, not the {shard.rows} that the manifest promises"


def batch_of(rows: pa.RecordBatch, manifest: Manifest, name: str) -> TokenBatch:
    """Rows as tensors, every value checked: a shard with a right checksum can still hold wrong numbers.

    Raises:
        TokenError: A token is outside the codebook.
        StoreError: A cell is empty, or a concept or split does not exist; the message names the shard.
    """
    column: dict[str, Any] = {one: rows.column(one) for one in rows.schema.names}
    cells = column["tokens"].flatten()
    if any(column[one].null_count for one in COLUMNS) or cells.null_count:
        raise StoreError(f"shard {name!r} has empty cells; only pictures may be absent; make the tokens again")
    tokens = torch.from_numpy(cells.to_numpy().astype(np.int64)).reshape(rows.num_rows, *manifest.grid)
    concept = torch.from_numpy(column["concept"].to_numpy().copy())
    split = tuple(column["split"].to_pylist())
    _check_content(tokens, concept, split, manifest, name)
    image: Any = pc.struct_field(column["image"], "bytes") if "image" in column else None
    pictures = None if image is None else tuple(image.to_pylist())
    return TokenBatch(tuple(column["image_id"].to_pylist()), concept, split, tokens, pictures)


def chosen(rows: pa.RecordBatch, split: str | None, concept: int | None) -> pa.RecordBatch:
    """The rows of a split and a concept; None: all."""
    for name, wanted in (("split", split), ("concept", concept)):
        if wanted is not None:
            column: Any = rows.column(name)
            rows = rows.filter(pc.equal(column, pa.scalar(wanted, column.type)))
    return rows


def hashes_of(image_ids: Iterable[str]) -> np.ndarray:
    """Eight bytes per image id, as uint64."""
    digests = b"".join(blake2b(one.encode(), digest_size=8).digest() for one in image_ids)
    return np.frombuffer(digests, np.dtype("<u8"))


def damaged(folder: Path, name: str, why: str) -> StoreError:
    """The error for a shard that cannot be used."""
    return StoreError(
        f"shard {name!r} of {str(folder)!r} is damaged: {why}; restore it from a copy, or run the command "
        "that made the store again: it keeps the whole shards before this one"
    )


@contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """Whatever goes wrong while reading a shard's file is the shard's fault, and says so."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise damaged(folder, name, why) from error


def _packing(cells: int, k: int) -> dict[str, Any]:
    """How the ids are packed: Parquet has no 16-bit integers, and 32 bits per token would be twice too many.

    Indices into a dictionary take log2(k) bits and suit skewed ids best, but the dictionary itself takes
    about 2k bytes; in a shard too small to carry it, differences of neighbours take 1 + log2(k) bits.
    """
    ids = "tokens.list.element"
    if cells >= CELLS_PER_CODE * k:
        return {"use_dictionary": ["concept", "split", ids]}
    return {"use_dictionary": ["concept", "split"], "column_encoding": {ids: "DELTA_BINARY_PACKED"}}


def _table(batch: TokenBatch, manifest: Manifest) -> pa.Table:
    ids: Any = pa.array(batch.tokens.cpu().numpy().astype(smallest_id_type(manifest.k)).reshape(-1))
    columns: list[Any] = [
        pa.array(batch.image_ids, pa.string()),
        pa.array(batch.concept.cpu().numpy(), pa.int64()),
        pa.array(batch.split, pa.string()),
        pa.FixedSizeListArray.from_arrays(ids, manifest.grid[0] * manifest.grid[1]),
    ]
    if batch.images is not None:
        missing = pa.array([image is None for image in batch.images])
        parts: list[Any] = [pa.array(batch.images, pa.binary()), pa.nulls(len(batch), pa.string())]
        columns.append(pa.StructArray.from_arrays(parts, names=["bytes", "path"], mask=missing))
    return pa.Table.from_arrays(columns, schema=schema_of(manifest))


def _check_content(
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    split: tuple[str, ...],
    manifest: Manifest,
    name: str,
) -> None:
    try:
        check_tokens(tokens, manifest.k)
    except TokenError as error:
        raise error.within(shard=name) from None
    last = len(manifest.concepts) - 1
    if ((concept < 0) | (concept > last)).any():
        raise StoreError(f"shard {name!r} has a concept outside [0, {last}]; make the tokens again")
    if odd := set(split) - set(SPLITS):
        raise StoreError(
            f"shard {name!r} has split {min(odd)!r}; not one of {', '.join(SPLITS)}; make the tokens again"
        )


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
