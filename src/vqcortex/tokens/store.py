"""Token grids on disk: a folder of Parquet shards and the manifest that says what they are.

What must never happen here: a half-written file under a final name; reading that needs more memory as a store
grows; a token that was written with one codebook and is read with another. Equal inputs give equal bytes.

A shard is written under a temporary name, renamed, and only then listed in the manifest. Killed in between,
the next append writes the same file again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vqcortex.errors import ConfigError, ShapeError, StoreError
from vqcortex.files import hash_of_file, replacing
from vqcortex.tokens.grid import check_tokens
from vqcortex.tokens.manifest import FILE, read_manifest, shard_name, write_manifest
from vqcortex.tokens.manifest import Manifest as Manifest
from vqcortex.tokens.manifest import Shard as Shard
from vqcortex.tokens.shard import (
    COLUMNS,
    batch_of,
    check_split,
    chosen,
    damaged,
    hashes_of,
    joined,
    reading,
    rows_of,
    write_shard,
    wrong_rows,
)
from vqcortex.tokens.shard import SPLITS as SPLITS
from vqcortex.tokens.shard import TokenBatch as TokenBatch

ROWS_AT_ONCE = 1024  # images held while streaming: 2 MB of int64 tokens on a 16x16 grid


def create_store(folder: Path | str, manifest: Manifest, resume: bool = True, grow: bool = False) -> TokenStore:
    """Start a store, or go on with one that has the same header.

    Going on keeps the shards up to the first one that is missing or altered; whatever a kill left behind is
    removed. To add to a finished store under other settings, `grow` it, or `open_store` it and append.

    Args:
        folder: Made when absent.
        manifest: The header; its shards are ignored.
        resume: False: an existing store is an error.
        grow: True: a store whose header differs in `origin` alone is gone on with, and takes the new `origin`.

    Raises:
        ConfigError: A field of the header is out of range.
        StoreError: The folder holds a store with another header, or shards without a manifest.
        StudyError: The folder cannot be written.
    """
    folder, header = Path(folder), replace(manifest, shards=()).checked()
    if (folder / FILE).exists():
        return _go_on(folder, header, resume, grow)
    if stray := sorted(folder.glob("tokens-*.parquet")):
        raise StoreError(
            f"{str(folder)!r} holds {stray[0].name!r} but no {FILE}; restore it, or choose an empty folder"
        )
    write_manifest(folder, header)
    return TokenStore(folder, header)


def can_grow(folder: Path | str, manifest: Manifest) -> bool:
    """Whether a store lies in `folder` that `create_store` would let grow under this header."""
    try:
        found = read_manifest(Path(folder))
    except StoreError:
        return False
    return _with_origin(found, manifest).difference(manifest.checked()) is None


def open_store(folder: Path | str, model_identity: str | None = None, verify: bool = True) -> TokenStore:
    """Open a store for reading and appending.

    Args:
        folder: What `create_store` was given.
        model_identity: The identity of the model that will read the tokens; None: any.
        verify: Check every shard's bytes against its checksum, its number of rows, and that no image id
            occurs twice; reads everything once and needs 8 bytes of memory per image. False: only that the
            files exist.

    Raises:
        StoreError: No store, a foreign one, or a damaged one; the message names the shard.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if model_identity is not None and model_identity != manifest.identity:
        raise StoreError(
            f"the store at {str(folder)!r} was written with {manifest.model!r}, identity "
            f"{manifest.identity[:12]}, but the model at hand has identity {model_identity[:12]}; "
            "load that model, or make the tokens again with this one"
        )
    for shard in manifest.shards:
        if why := _damage(folder, shard, verify):
            raise damaged(folder, shard.name, why)
    store = TokenStore(folder, manifest)
    if verify:
        store.check_ids()
    return store


@final
class TokenStore:
    """An open store; `open_store` and `create_store` make one.

    Args:
        folder: Where it is.
        manifest: What it holds; every append replaces it by a longer one.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        # Sorted, 8 bytes per image: the one thing that grows with a store, and only where ids are compared.
        self._hashes: np.ndarray | None = None

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path, Manifest]]:
        """Pickled without its table of hashes, and read where its folder is."""
        return TokenStore, (self.folder.absolute(), self.manifest)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Whole shards, in order."""
        return self.manifest.shards

    def __len__(self) -> int:
        """Images in the store."""
        return self.manifest.rows

    def append(self, batch: TokenBatch) -> Shard:
        """Write one more shard, whole or not at all.

        Raises:
            TokenError: A token is outside the codebook.
            ShapeError: The grids are not the store's.
            ConfigError: An unknown split.
            StoreError: No images, an unknown concept, an image id that is already there, pictures in a store
                without them (or none in a store with them), or another process appended meanwhile.
            StudyError: The folder cannot be written or the disk is full; the store stays as it was.
        """
        self._check_batch(batch)
        self._check_new(batch.image_ids)
        self._check_unchanged()
        path = self.folder / shard_name(len(self.shards))
        with replacing(path) as temporary:
            write_shard(batch, self.manifest, temporary)
        shard = Shard(name=path.name, rows=len(batch), sha256=hash_of_file(path))
        longer = replace(self.manifest, shards=(*self.shards, shard))
        write_manifest(self.folder, longer)
        self._hashes = _sorted([self._known(), hashes_of(batch.image_ids)])
        self.manifest = longer
        return shard

    def read(self, shard_number: int, pictures: bool = True) -> TokenBatch:
        """A whole shard, counted from 0.

        Args:
            shard_number: Which one.
            pictures: False: `images` stays None and pictures are not read.

        Raises:
            StoreError: There is no such shard, or it is damaged.
            TokenError: A token is outside the codebook.
        """
        if not 0 <= shard_number < len(self.shards):
            has = f"0 to {len(self.shards) - 1}" if self.shards else "none"
            raise StoreError(f"shard {shard_number} of {str(self.folder)!r} does not exist; its shards: {has}")
        shard = self.shards[shard_number]
        pieces = self._rows(shard, self._columns(pictures))
        return joined([batch_of(rows, self.manifest, shard.name) for rows in pieces])

    def batches(
        self, size: int, split: str | None = None, concept: int | None = None, pictures: bool = True
    ) -> Iterator[TokenBatch]:
        """The store's images in order, `size` at a time (the last batch may be smaller), in flat memory.

        Args:
            size: Images per batch, 1 or more.
            split: Only this split; None: all.
            concept: Only this concept, as an index; None: all.
            pictures: False: `images` stays None and pictures are not read.

        Raises:
            ConfigError: `size`, `split` or `concept` is out of range.
            StoreError: While reading, a damaged shard.
            TokenError: While reading, a token outside the codebook.
        """
        if size < 1:
            raise ConfigError(f"size={size} must be at least 1 image per batch")
        self._check_choice(split, concept)
        return self._stream(size, split, concept, self._columns(pictures))

    def count(self, split: str | None = None, concept: int | None = None) -> int:
        """Images of a split (None: all) and a concept (an index; None: all)."""
        self._check_choice(split, concept)
        if split is None and concept is None:
            return len(self)
        pieces = (rows for shard in self.shards for rows in self._rows(shard, ("concept", "split")))
        return sum(chosen(rows, split, concept).num_rows for rows in pieces)

    def check_ids(self) -> None:
        """Return quietly when no image id occurs twice.

        Raises:
            StoreError: One does; the message names it and the shard where it comes back.
        """
        hashes = self._known()
        suspects = hashes[1:][hashes[1:] == hashes[:-1]]
        seen: set[str] = set()
        for shard, ids in self._ids() if len(suspects) else ():
            for image_id in _among(ids, suspects):
                if image_id in seen:
                    raise damaged(self.folder, shard, f"image id {image_id!r} occurs a second time")
                seen.add(image_id)

    def _stream(
        self, size: int, split: str | None, concept: int | None, columns: Sequence[str]
    ) -> Iterator[TokenBatch]:
        waiting: list[TokenBatch] = []
        for shard in self.shards:
            for rows in self._rows(shard, columns, min(size, ROWS_AT_ONCE)):
                waiting.append(batch_of(chosen(rows, split, concept), self.manifest, shard.name))
                if sum(map(len, waiting)) >= size:
                    ready = joined(waiting)
                    yield ready.take(range(size))
                    waiting = [ready.take(range(size, len(ready)))]
        if any(map(len, waiting)):
            yield joined(waiting)

    def _rows(self, shard: Shard, columns: Sequence[str], size: int = ROWS_AT_ONCE) -> Iterator[pa.RecordBatch]:
        return rows_of(self.folder, shard, self.manifest, columns, size)

    def _columns(self, pictures: bool = True) -> tuple[str, ...]:
        return (*COLUMNS, "image") if pictures and self.manifest.pictures else COLUMNS

    def _ids(self) -> Iterator[tuple[str, list[str]]]:
        """(shard name, image ids), some rows at a time."""
        for shard in self.shards:
            for rows in self._rows(shard, ("image_id",)):
                if rows.column(0).null_count:
                    raise damaged(self.folder, shard.name, "an image has no id")
                yield shard.name, [str(one) for one in rows.column(0).to_pylist()]

    def _known(self) -> np.ndarray:
        if self._hashes is None:
            self._hashes = _sorted([hashes_of(ids) for _, ids in self._ids()])
        return self._hashes

    def _check_unchanged(self) -> None:
        if read_manifest(self.folder) != self.manifest:
            raise StoreError(
                f"the store at {str(self.folder)!r} was changed by another writer; open it again, then append"
            )

    def _check_new(self, image_ids: tuple[str, ...]) -> None:
        twice = [one for one, times in Counter(image_ids).items() if times > 1]
        if twice:
            raise StoreError(f"image id {twice[0]!r} occurs twice in this batch; ids must be unique; leave one out")
        suspects = set(_among(image_ids, self._known()))
        for shard, ids in self._ids() if suspects else ():  # equal hashes are rare but possible: look first
            if found := sorted(suspects.intersection(ids)):
                raise StoreError(
                    f"image id {found[0]!r} is already in shard {shard!r} of {str(self.folder)!r}; "
                    "ids must be unique; leave it out, or write another store"
                )

    def _check_batch(self, batch: TokenBatch) -> None:
        if not len(batch):
            raise StoreError("a batch of 0 images makes no shard; append at least 1 image")
        h, w = self.manifest.grid
        if tuple(batch.tokens.shape[1:]) != (h, w):
            raise ShapeError(
                f"tokens has shape {tuple(batch.tokens.shape)} but this store holds grids of (b, {h}, {w}); "
                "was another model used?"
            )
        check_tokens(batch.tokens, self.manifest.k)
        for name in sorted(set(batch.split)):
            check_split(name)
        self._check_concepts(batch)
        self._check_ids_and_pictures(batch)

    def _check_concepts(self, batch: TokenBatch) -> None:
        low, high, last = int(batch.concept.min()), int(batch.concept.max()), len(self.manifest.concepts) - 1
        if low < 0 or high > last:
            raise StoreError(
                f"concept spans [{low}, {high}] but this store numbers its concepts [0, {last}]; "
                "name every concept when the store is made"
            )

    def _check_ids_and_pictures(self, batch: TokenBatch) -> None:
        if (batch.images is not None) != self.manifest.pictures:
            state, cure = ("with", "give images") if self.manifest.pictures else ("without", "leave images None")
            raise StoreError(f"this store is one {state} pictures; {cure}, or make another store")
        for image_id in batch.image_ids:
            if not _is_utf8(image_id):
                raise StoreError(f"image id {image_id!r} cannot be stored; write 1 or more characters of UTF-8")

    def _check_choice(self, split: str | None, concept: int | None) -> None:
        if split is not None:
            check_split(split)
        last = len(self.manifest.concepts) - 1
        if concept is not None and not 0 <= concept <= last:
            raise ConfigError(f"concept={concept} is not in this store; its concepts are numbered 0 to {last}")


def _go_on(folder: Path, header: Manifest, resume: bool, grow: bool) -> TokenStore:
    found = read_manifest(folder)
    if not resume:
        raise StoreError(
            f"{str(folder)!r} already holds a store of {found.rows} images; resume it, or choose another one"
        )
    told = _with_origin(found, header) if grow else found
    if difference := told.difference(header):
        raise StoreError(
            f"{str(folder)!r} holds a store with other settings: {difference}; "
            "use those settings, choose another folder, or remove this one"
        )
    torn = (number for number, shard in enumerate(found.shards) if _damage(folder, shard))
    kept = replace(told, shards=found.shards[: next(torn, len(found.shards))])
    if kept != found:
        write_manifest(folder, kept)
    _sweep(folder, keep={shard.name for shard in kept.shards})
    return TokenStore(folder, kept)


def _with_origin(manifest: Manifest, other: Manifest) -> Manifest:
    return replace(manifest, origin=other.checked().origin)


def _sweep(folder: Path, keep: set[str]) -> None:
    """Remove what a killed writer left: shards that no manifest lists, and temporary files."""
    for pattern in ("tokens-*.parquet", ".tokens-*.part", f".{FILE}.*.part"):
        for path in folder.glob(pattern):
            if path.name not in keep:
                path.unlink(missing_ok=True)


def _damage(folder: Path, shard: Shard, verify: bool = True) -> str | None:
    """What is wrong with a shard's file, in words; None: nothing."""
    path = folder / shard.name
    if not path.is_file():
        return "the file is missing"
    if not verify:
        return None
    with reading(folder, shard.name):
        if (found := hash_of_file(path)) != shard.sha256:
            return f"its checksum is {found[:12]}, not {shard.sha256[:12]}: it was cut short or altered"
        if (rows := pq.read_metadata(path).num_rows) != shard.rows:
            return wrong_rows(rows, shard)
    return None


def _among(image_ids: Sequence[str], hashes: np.ndarray) -> list[str]:
    """The ids whose hash is in a sorted array of hashes, in order."""
    if not len(hashes):
        return []
    wanted = hashes_of(image_ids)
    places = np.searchsorted(hashes, wanted).clip(max=len(hashes) - 1)
    return [image_ids[place] for place in np.flatnonzero(hashes[places] == wanted).tolist()]


def _sorted(parts: Sequence[np.ndarray]) -> np.ndarray:
    joint = np.concatenate([np.zeros(0, np.dtype("<u8")), *parts])
    joint.sort(kind="stable")  # quick on runs that are sorted already, as here
    return joint


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
