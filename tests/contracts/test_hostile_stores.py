"""What a store owes its reader when somebody, or a disk, has been at its files.

One VqCortexError that names the file, and never tokens outside the codebook.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqcortex.errors import StoreError, TokenError, VqCortexError
from vqcortex.files import hash_of_file
from vqcortex.tokens.store import Manifest, TokenBatch, create_store, open_store

HEADER = Manifest(model="zoo:fashion", identity="ab" * 32, k=256, d=3, grid=(2, 2), concepts=("cat", "dog"), seed=0)
SECOND = "tokens-00001.parquet"


def make(folder: Path, shards: int = 3, header: Manifest = HEADER) -> Path:
    store = create_store(folder, header)
    for number in range(shards):
        ids = tuple(f"{number}/{row}" for row in range(4))
        tokens = torch.arange(16).reshape(4, 2, 2) + number
        store.append(TokenBatch(ids, torch.tensor([0, 1, 0, 1]), ("train",) * 4, tokens))
    return folder


def edit_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


def forge(folder: Path, change, name: str = SECOND) -> None:
    """Rewrite a shard and give the manifest the forgery's own checksum and rows, as a clever attacker would."""
    table = change(pq.read_table(folder / name))
    pq.write_table(table, folder / name)

    def believe(plain):
        (shard,) = (one for one in plain["shards"] if one["name"] == name)
        shard |= {"sha256": hash_of_file(folder / name), "rows": table.num_rows}

    edit_manifest(folder, believe)


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def read_all(folder: Path) -> None:
    for _ in open_store(folder).batches(3):
        pass


def test_the_store_that_is_attacked_here_is_whole_to_begin_with(tmp_path):
    read_all(make(tmp_path))
    forge(tmp_path, lambda table: table)
    read_all(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_shard_is_named_with_the_next_step(tmp_path, keep):
    path = make(tmp_path) / SECOND
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        StoreError, match=rf"shard '{SECOND}' of .* cut short or altered; restore it .* or run the command"
    ):
        open_store(tmp_path)


def test_one_changed_byte_is_noticed(tmp_path):
    path = make(tmp_path) / SECOND
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"shard '{SECOND}' of .* its checksum is \w+, not \w+"):
        open_store(tmp_path)


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_shard_is_noticed_even_without_verifying(tmp_path, verify):
    (make(tmp_path) / SECOND).unlink()
    with pytest.raises(StoreError, match=rf"shard '{SECOND}' of .*: the file is missing; restore it"):
        open_store(tmp_path, verify=verify)


def test_a_folder_in_place_of_a_shard_is_a_missing_shard(tmp_path):
    path = make(tmp_path) / SECOND
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="the file is missing"):
        open_store(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 200])
def test_an_unverified_torn_shard_is_still_named_when_it_is_read(tmp_path, keep):
    path = make(tmp_path) / SECOND
    path.write_bytes(path.read_bytes()[:keep])
    store = open_store(tmp_path, verify=False)
    with pytest.raises(StoreError, match=f"shard '{SECOND}' of .* is damaged"):
        store.read(1)


def test_rows_that_the_manifest_does_not_promise_are_noticed(tmp_path):
    make(tmp_path)
    edit_manifest(tmp_path, lambda plain: plain["shards"][1].update(rows=3))
    with pytest.raises(StoreError, match="it holds 4 images, not the 3 that the manifest promises"):
        open_store(tmp_path)


def test_an_id_past_the_codebook_is_refused_when_read(tmp_path):
    make(tmp_path, header=replace(HEADER, k=300))
    edit_manifest(tmp_path, lambda plain: plain.update(k=257))
    forge(tmp_path, lambda table: with_column(table, "tokens", [[299] * 4] * 4))
    with pytest.raises(
        TokenError,
        match=rf"tokens span \[299, 299\] but .* \[0, 256\]; was the store .*\n  while working on: shard={SECOND}",
    ):
        read_all(tmp_path)


def test_a_codebook_of_another_size_class_changes_the_columns(tmp_path):
    make(tmp_path)
    edit_manifest(tmp_path, lambda plain: plain.update(k=257))
    with pytest.raises(StoreError, match=r"its columns are .*uint8.*, not .*uint16"):
        read_all(tmp_path)


def test_the_manifest_of_another_model_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(
        StoreError,
        match=r"was written with 'zoo:fashion', identity abababababab, but the model at hand has .* cdcdcdcdcdcd; load",
    ):
        open_store(tmp_path, model_identity="cd" * 32)


@pytest.mark.parametrize(
    "name",
    ["../secret.parquet", "/etc/passwd", "a/../../x", "tokens-00000.parquet/../x", "tokens-00000.parquet", "", 3, None],
)
def test_a_shard_name_cannot_leave_the_folder_or_stand_in_for_another(tmp_path, name):
    make(tmp_path / "store")
    (tmp_path / "secret.parquet").write_bytes((tmp_path / "store" / SECOND).read_bytes())
    edit_manifest(tmp_path / "store", lambda plain: plain["shards"][1].update(name=name))
    with pytest.raises(StoreError, match=rf"shard 1 is called .*; it must be '{SECOND}'"):
        open_store(tmp_path / "store")


def test_an_image_id_twice_in_one_shard_or_in_two_is_noticed(tmp_path):
    forge(make(tmp_path / "one"), lambda table: with_column(table, "image_id", ["a", "b", "b", "c"]))
    with pytest.raises(StoreError, match=rf"shard '{SECOND}' .* image id 'b' occurs a second time"):
        open_store(tmp_path / "one")
    forge(make(tmp_path / "two"), lambda table: with_column(table, "image_id", ["a", "b", "0/2", "c"]))
    with pytest.raises(StoreError, match=rf"shard '{SECOND}' .* image id '0/2' occurs a second time"):
        open_store(tmp_path / "two")


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("tokens", [[1, 2, 3, 4], None, [1, 2, 3, 4], [1, 2, 3, 4]], "has empty cells|is damaged"),
        ("tokens", [[1, None, 3, 4]] * 4, "has empty cells|is damaged"),
        ("concept", [0, 1, 2, 0], r"has a concept outside \[0, 1\]"),
        ("concept", [0, -1, 1, 0], r"has a concept outside \[0, 1\]"),
        ("concept", [0, None, 1, 0], "has empty cells"),
        ("split", ["train", "dev", "test", "test"], "has split 'dev'; not one of train, validation, test"),
        ("image_id", ["a", "b", None, "c"], "an image has no id"),
    ],
)
def test_forged_cells_are_refused(tmp_path, column, values, words):
    forge(make(tmp_path), lambda table: with_column(table, column, values))
    with pytest.raises(StoreError, match=words):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["split"]),
        lambda table: table.append_column("extra", pa.array([1] * 4)),
        lambda table: table.rename_columns(["image_id", "concept", "tokens", "split"]),
        lambda table: pa.table({"a": [1]}),
    ],
)
def test_forged_columns_are_refused(tmp_path, change):
    forge(make(tmp_path), change)
    with pytest.raises(StoreError, match=f"shard '{SECOND}' of .* is damaged: its columns are"):
        read_all(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not json", b"[]", b"null", b'{"format": 1}', b'{"format": NaN}'])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (make(tmp_path) / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest\.json|has format nan"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"manifest\.json|has format nan"):
        create_store(tmp_path, HEADER)


def complaint(call) -> str | None:
    """The message of the VqCortexError that a call ends in; None: it ends well. Anything else is a failure."""
    try:
        call()
    except VqCortexError as error:
        return str(error)
    return None


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(field=st.sampled_from([*HEADER.checked().__slots__]), value=ANY_JSON)
def test_any_value_in_any_field_of_a_manifest_opens_or_says_why(tmp_path_factory, field, value):
    folder = make(tmp_path_factory.mktemp("store"), shards=1)
    edit_manifest(folder, lambda plain: plain.update({field: value}))
    why = complaint(lambda: read_all(folder))
    assert why is None or str(folder) in why or "shard" in why


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_damage_to_an_unverified_shard_reads_or_says_why(tmp_path_factory, data):
    folder = make(tmp_path_factory.mktemp("store"), shards=1)
    path = folder / "tokens-00000.parquet"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    grids: list[torch.Tensor] = []
    why = complaint(lambda: grids.append(open_store(folder, verify=False).read(0).tokens))
    assert "tokens-00000.parquet" in why if why else 0 <= int(grids[0].min()) <= int(grids[0].max()) < HEADER.k
