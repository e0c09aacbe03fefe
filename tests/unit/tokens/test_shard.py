from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vqcortex.errors import ConfigError, ShapeError, StoreError
from vqcortex.tokens.manifest import Manifest, Shard
from vqcortex.tokens.shard import TokenBatch, chosen, hashes_of, joined, reading, rows_of, schema_of, write_shard


def header(k=8, grid=(2, 3), pictures=False) -> Manifest:
    return Manifest(
        model="toy", identity="ab" * 32, k=k, d=3, grid=grid, concepts=("cat", "dog"), seed=0, pictures=pictures
    )


def batch(rows=3, k=8, grid=(2, 3), images=None) -> TokenBatch:
    tokens = torch.randint(0, k, (rows, *grid), generator=torch.Generator().manual_seed(rows))
    split = tuple(("train", "validation", "test")[row % 3] for row in range(rows))
    return TokenBatch(tuple(f"im/{row}" for row in range(rows)), torch.arange(rows) % 2, split, tokens, images)


def listed(name: str, rows: int) -> Shard:
    return Shard(name=name, rows=rows, sha256="0" * 64)


def png(colour="red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(file, "PNG")
    return file.getvalue()


def test_taking_keeps_every_column_together():
    images = (b"0", None, b"2")
    taken = batch(images=images).take([2, 0])
    assert taken.image_ids == ("im/2", "im/0")
    assert taken.concept.tolist() == [0, 0]
    assert taken.split == ("test", "train")
    assert torch.equal(taken.tokens, batch().tokens[[2, 0]])
    assert taken.images == (b"2", b"0")


def test_a_split_of_a_batch_is_its_images_in_order():
    assert batch(7).where_split("train").image_ids == ("im/0", "im/3", "im/6")
    assert len(batch(2).where_split("test")) == 0
    with pytest.raises(
        ConfigError, match="split 'val' is unknown to token stores; write one of: train, validation, test"
    ):
        batch().where_split("val")


def test_columns_of_different_length_are_refused():
    with pytest.raises(ShapeError, match=r"have \[1, 1, 2, 1\] entries; give one per image"):
        TokenBatch(("a",), torch.tensor([0]), ("train", "test"), torch.zeros(1, 2, 2, dtype=torch.int64))


def test_joining_is_the_inverse_of_taking():
    whole = batch(5, images=(b"0", None, b"2", b"3", None))
    again = joined([whole.take([0, 1]), whole.take([]), whole.take([2, 3, 4])])
    assert again.image_ids == whole.image_ids
    assert torch.equal(again.tokens, whole.tokens)
    assert again.images == whole.images


@pytest.mark.parametrize(("k", "kind"), [(256, pa.uint8()), (257, pa.uint16()), (65537, pa.uint32())])
def test_ids_are_fixed_size_lists_of_the_smallest_type(k, kind):
    field = schema_of(header(k)).field("tokens").type
    assert field.value_type == kind
    assert field.list_size == 6


@pytest.mark.parametrize(("rows", "encoding"), [(200, "RLE_DICTIONARY"), (3, "DELTA_BINARY_PACKED")])
def test_a_dictionary_is_used_only_where_the_shard_can_carry_it(tmp_path, rows, encoding):
    write_shard(batch(rows, k=64), header(k=64), tmp_path / "x.parquet")
    column = pq.read_metadata(tmp_path / "x.parquet").row_group(0).column(3)
    assert column.path_in_schema == "tokens.list.element"
    assert encoding in column.encodings


def test_equal_batches_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(batch(images=(png(), None, png())), header(pictures=True), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_hugging_face_datasets_reads_pictures_and_concept_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_shard(batch(images=(png(), None, png("blue"))), header(pictures=True), tmp_path / "tokens-00000.parquet")
    datasets.disable_progress_bars()
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.features["concept"].names == ["cat", "dog"]
    assert rows["split"][:] == ["train", "validation", "test"]
    assert rows[2]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert rows[1]["image"] is None
    assert np.array_equal(rows["tokens"][:], batch().tokens.reshape(3, 6).numpy())


def test_duckdb_reads_a_shard(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    write_shard(batch(200, k=300), header(k=300), tmp_path / "x.parquet")
    write_shard(batch(3, k=300), header(k=300), tmp_path / "y.parquet")
    for name, rows in (("x", 200), ("y", 3)):
        found = duckdb.connect().execute(f"select tokens, concept from '{tmp_path}/{name}.parquet'").fetchall()
        assert [row[0] for row in found] == batch(rows, k=300).tokens.reshape(rows, 6).tolist()
        assert [row[1] for row in found] == [row % 2 for row in range(rows)]


def test_polars_reads_a_shard(tmp_path):
    polars = pytest.importorskip("polars")
    write_shard(batch(200, k=300), header(k=300), tmp_path / "x.parquet")
    frame = polars.read_parquet(tmp_path / "x.parquet")
    assert frame["tokens"].to_list() == batch(200, k=300).tokens.reshape(200, 6).tolist()
    assert frame["split"].to_list()[:3] == ["train", "validation", "test"]


def test_choosing_keeps_rows_of_a_split_and_a_concept(tmp_path):
    write_shard(batch(12), header(), tmp_path / "x.parquet")
    rows = next(rows_of(tmp_path, listed("x.parquet", 12), header(), ["image_id", "concept", "split"], 100))
    assert chosen(rows, "train", None).column(0).to_pylist() == ["im/0", "im/3", "im/6", "im/9"]
    assert chosen(rows, "train", 1).column(0).to_pylist() == ["im/3", "im/9"]
    assert chosen(rows, None, None).num_rows == 12


def test_a_shard_with_other_columns_is_damaged(tmp_path):
    write_shard(batch(k=300), header(k=300), tmp_path / "x.parquet")
    with pytest.raises(StoreError, match=r"shard 'x.parquet' .* its columns are .*uint16.*, not .*uint8"):
        list(rows_of(tmp_path, listed("x.parquet", 3), header(k=8), ["image_id"], 10))


def test_a_shard_shorter_than_promised_is_damaged(tmp_path):
    write_shard(batch(), header(), tmp_path / "x.parquet")
    with pytest.raises(StoreError, match="it holds 3 images, not the 4 that the manifest promises"):
        list(rows_of(tmp_path, listed("x.parquet", 4), header(), ["image_id"], 2))


def test_hashes_belong_to_the_id_alone():
    assert hashes_of(["b", "a"]).tolist() == hashes_of(["a", "b"]).tolist()[::-1]
    assert hashes_of([]).shape == (0,)
    assert hashes_of(["a"]).itemsize == 8


@pytest.mark.parametrize("error", [OSError("torn\nin two"), pa.ArrowInvalid("torn\nin two")])
def test_an_error_while_reading_is_the_shards_fault(tmp_path, error):
    with (
        pytest.raises(StoreError, match=r"shard 'x' of .* is damaged: torn; restore it from a copy"),
        reading(tmp_path, "x"),
    ):
        raise error
