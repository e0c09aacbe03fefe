from __future__ import annotations

import errno
import os
import pickle
import shutil
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vqcortex.tokens.store as store_module
from vqcortex.errors import ConfigError, ShapeError, StoreError, StudyError, TokenError
from vqcortex.tokens.store import SPLITS, Manifest, TokenBatch, can_grow, create_store, open_store

HEADER = Manifest(model="toy", identity="ab" * 32, k=256, d=3, grid=(7, 7), concepts=("cat", "dog"), seed=0)


def batch(start=0, rows=6, header=HEADER, images=None) -> TokenBatch:
    tokens = torch.randint(0, header.k, (rows, *header.grid), generator=torch.Generator().manual_seed(start))
    names = tuple(f"train/{row:06d}" for row in range(start, start + rows))
    split = tuple(SPLITS[row % 3] for row in range(rows))
    return TokenBatch(names, torch.arange(rows) % len(header.concepts), split, tokens, images)


def filled(folder, shards=3, rows=6, header=HEADER):
    store = create_store(folder, header)
    for number in range(len(store.shards), shards):
        store.append(batch(number * rows, rows, header))
    return store


def bytes_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one: TokenBatch, other: TokenBatch) -> bool:
    return (
        (one.image_ids, one.split, one.images) == (other.image_ids, other.split, other.images)
        and torch.equal(one.concept, other.concept)
        and torch.equal(one.tokens, other.tokens)
    )


@st.composite
def cases(draw):
    """(k, grid, pictures, rows of plain values in lists, one list per shard), no image id twice."""
    k = draw(st.sampled_from([1, 2, 200, 256, 257, 65536, 65537, 2**32]))
    h, w = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    names = draw(st.lists(st.text(min_size=1), min_size=1, max_size=12, unique=True))
    cells = st.lists(st.integers(0, k - 1), min_size=h * w, max_size=h * w)
    row = st.tuples(st.integers(0, 1), st.sampled_from(SPLITS), cells, st.none() | st.binary())
    rows = [(name, *draw(row)) for name in names]
    cuts = sorted(draw(st.sets(st.integers(1, len(names)), max_size=3)) | {0, len(names)})
    return k, (h, w), draw(st.booleans()), [rows[start:end] for start, end in pairwise(cuts)]


def batch_of(rows, grid, pictures) -> TokenBatch:
    names, concept, split, cells, images = zip(*rows, strict=True)
    tokens = torch.tensor(cells).reshape(len(rows), *grid)
    return TokenBatch(names, torch.tensor(concept), split, tokens, images if pictures else None)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_what_is_appended_is_what_is_read(tmp_path_factory, case):
    k, grid, pictures, shards = case
    header, batches = (
        replace(HEADER, k=k, grid=grid, pictures=pictures),
        [batch_of(rows, grid, pictures) for rows in shards],
    )
    folder = tmp_path_factory.mktemp("store")
    store = create_store(folder, header)
    for one in batches:
        store.append(one)
    again = open_store(folder, model_identity=header.identity)
    assert len(again) == sum(map(len, batches))
    for number, one in enumerate(batches):
        assert same(again.read(number), one)
    streamed = [name for part in again.batches(3) for name in part.image_ids]
    assert streamed == [name for one in batches for name in one.image_ids]


def test_batches_have_the_size_asked_for_across_shards(tmp_path):
    store = filled(tmp_path, shards=3, rows=7)
    assert [len(one) for one in store.batches(5)] == [5, 5, 5, 5, 1]
    assert [len(one) for one in store.batches(100)] == [21]


def test_a_split_and_a_concept_can_be_read_alone(tmp_path):
    store = filled(tmp_path, shards=3, rows=6)
    every = [(split, int(c)) for one in store.batches(4) for split, c in zip(one.split, one.concept, strict=True)]
    for split in (None, *SPLITS):
        for concept in (None, 0, 1):
            wanted = [one for one in every if split in (None, one[0]) and concept in (None, one[1])]
            assert store.count(split, concept) == len(wanted)
            assert sum(map(len, store.batches(2, split, concept))) == len(wanted)


def test_batch_size_changes_nothing_that_is_read(tmp_path):
    store = filled(tmp_path, shards=2, rows=9)
    whole = next(store.batches(1000))
    for size in (1, 4, 9, 17):
        parts = list(store.batches(size))
        assert torch.equal(torch.cat([one.tokens for one in parts]), whole.tokens)


def test_pictures_come_back_and_can_be_left_out(tmp_path):
    header = replace(HEADER, pictures=True)
    store = create_store(tmp_path, header)
    store.append(batch(0, 2, header, images=(b"abc", None)))
    assert store.read(0).images == (b"abc", None)
    assert next(store.batches(9, pictures=False)).images is None


@pytest.mark.parametrize(("pictures", "images"), [(True, None), (False, (b"a", b"b"))])
def test_a_store_has_pictures_throughout_or_not_at_all(tmp_path, pictures, images):
    store = create_store(tmp_path, replace(HEADER, pictures=pictures))
    with pytest.raises(StoreError, match=r"this store is one (with|without) pictures; (give images|leave images None)"):
        store.append(batch(rows=2, images=images))


def test_the_order_of_work_does_not_change_the_bytes(tmp_path):
    filled(tmp_path / "a", shards=3)
    filled(tmp_path / "b", shards=1)
    filled(tmp_path / "b", shards=3)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("moment", range(8))
def test_killed_at_any_step_and_run_again_gives_the_same_bytes(tmp_path, monkeypatch, moment):
    filled(tmp_path / "whole", shards=3)
    steps = []

    def dying(real):
        def step(*given, **named):
            steps.append(real)
            if len(steps) > moment:
                raise Killed(f"at step {moment}")
            return real(*given, **named)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(store_module, "write_manifest", dying(store_module.write_manifest))
        with pytest.raises(Killed, match=f"at step {moment}"):
            filled(tmp_path / "killed", shards=3)
    filled(tmp_path / "killed", shards=3)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_what_a_kill_leaves_behind_is_removed_on_resuming(tmp_path):
    whole = bytes_of(filled(tmp_path, shards=2).folder)
    for left in ("tokens-00002.parquet", ".tokens-00002.parquet.abc.part", ".manifest.json.abc.part"):
        (tmp_path / left).write_bytes(b"half")
    create_store(tmp_path, HEADER)
    assert bytes_of(tmp_path) == whole


def test_a_shard_the_manifest_does_not_know_is_overwritten(tmp_path):
    store = filled(tmp_path / "a", shards=1)
    (tmp_path / "a/tokens-00001.parquet").write_bytes(b"from a killed run")
    store.append(batch(6))
    filled(tmp_path / "b", shards=2)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_resuming_keeps_the_whole_shards_before_a_torn_one(tmp_path):
    whole = bytes_of(filled(tmp_path, shards=3).folder)
    torn = tmp_path / "tokens-00001.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    assert len(create_store(tmp_path, HEADER).shards) == 1
    filled(tmp_path, shards=3)
    assert bytes_of(tmp_path) == whole


def test_a_finished_store_can_be_appended_to(tmp_path):
    filled(tmp_path, shards=1)
    store = open_store(tmp_path)
    store.append(batch(1000))
    assert len(open_store(tmp_path)) == 12


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_full_disk_leaves_the_store_as_it_was(tmp_path, monkeypatch, step):
    store = filled(tmp_path, shards=1)
    before = bytes_of(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(StudyError, match=r"cannot write .*tokens-00001.parquet': No space left on device; nothing"):
            store.append(batch(6))
    assert bytes_of(tmp_path) == before
    assert len(open_store(tmp_path)) == len(store) == 6
    store.append(batch(6))
    assert len(open_store(tmp_path)) == 12


def test_a_disk_that_fills_before_the_manifest_is_written_loses_nothing(tmp_path, monkeypatch):
    store = filled(tmp_path, shards=1)

    def full(*_):
        raise StudyError("cannot write 'manifest.json': No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_manifest", full)
        with pytest.raises(StudyError, match="No space left"):
            store.append(batch(6))
    assert len(open_store(tmp_path)) == len(store) == 6
    store.append(batch(6))
    filled(tmp_path / "b", shards=2)
    shutil.move(tmp_path / "b", tmp_path.parent / "b")
    assert bytes_of(tmp_path) == bytes_of(tmp_path.parent / "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"identity": "cd" * 32}, "identity is "),
        ({"origin": {"n": 5}}, "origin.n is absent there and 5 here"),
        ({"versions": {**HEADER.versions, "torch": "9.9"}}, r"versions.torch is .* there and '9.9' here"),
    ],
)
def test_a_store_with_other_settings_is_not_resumed(tmp_path, change, words):
    before = bytes_of(filled(tmp_path).folder)
    with pytest.raises(StoreError, match=f"holds a store with other settings: {words}"):
        create_store(tmp_path, replace(HEADER, **change))
    assert bytes_of(tmp_path) == before


def test_not_resuming_refuses_an_existing_store(tmp_path):
    filled(tmp_path, shards=1)
    with pytest.raises(StoreError, match="already holds a store of 6 images; resume it, or choose another"):
        create_store(tmp_path, HEADER, resume=False)


def test_shards_without_a_manifest_are_not_written_over(tmp_path):
    filled(tmp_path, shards=1)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"holds 'tokens-00000.parquet' but no manifest.json; restore it"):
        create_store(tmp_path, HEADER)


def test_a_wrong_header_makes_no_store(tmp_path):
    with pytest.raises(ConfigError, match="k=0; it must be 1 to 4294967296 codes"):
        create_store(tmp_path / "new", replace(HEADER, k=0))
    assert not (tmp_path / "new").exists()


def good(**change) -> TokenBatch:
    start = batch()
    return TokenBatch(
        **{name: change.get(name, getattr(start, name)) for name in ("image_ids", "concept", "split", "tokens")}
    )


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (good(tokens=batch().tokens + 256), TokenError, r"tokens span .* this codebook holds indices \[0, 255\]"),
        (good(tokens=torch.zeros(6, 7, 8, dtype=torch.int64)), ShapeError, r"shape \(6, 7, 8\) but .* \(b, 7, 7\)"),
        (good(concept=torch.tensor([0, 1, 2, 0, 0, 0])), StoreError, r"concept spans \[0, 2\] .* numbers .* \[0, 1\]"),
        (good(split=("train",) * 5 + ("dev",)), ConfigError, "split 'dev' is unknown"),
        (good(image_ids=("a", "b", "c", "d", "e", "a")), StoreError, "'a' occurs twice in this batch"),
        (good(image_ids=("", "b", "c", "d", "e", "f")), StoreError, "image id '' cannot be stored"),
        (
            good(image_ids=("\ud800", "b", "c", "d", "e", "f")),
            StoreError,
            "cannot be stored; write 1 or more characters",
        ),
        (batch().take([]), StoreError, "a batch of 0 images makes no shard"),
    ],
)
def test_a_wrong_batch_is_refused_and_changes_nothing(tmp_path, bad, error, words):
    store = filled(tmp_path, shards=1)
    before = bytes_of(tmp_path)
    with pytest.raises(error, match=words):
        store.append(bad)
    assert bytes_of(tmp_path) == before


def test_an_image_id_is_refused_a_second_time_whoever_opened_the_store(tmp_path):
    first = filled(tmp_path, shards=2)
    for store in (first, open_store(tmp_path), open_store(tmp_path, verify=False), create_store(tmp_path, HEADER)):
        with pytest.raises(StoreError, match=r"'train/000007' is already in shard 'tokens-00001.parquet'"):
            store.append(good(image_ids=("new", "train/000007", "c", "d", "e", "f")))


def test_ids_whose_hashes_collide_are_still_different_ids(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setattr(store_module, "hashes_of", lambda ids: np.zeros(len(ids), np.dtype("<u8")))
    filled(tmp_path, shards=2)
    assert len(open_store(tmp_path)) == 12
    with pytest.raises(StoreError, match="'train/000000' is already in shard"):
        open_store(tmp_path).append(batch())


def test_two_writers_are_noticed(tmp_path):
    one, other = filled(tmp_path, shards=1), open_store(tmp_path)
    other.append(batch(6))
    with pytest.raises(StoreError, match="was changed by another writer; open it again, then append"):
        one.append(batch(12))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda store: store.batches(0), ConfigError, "size=0 must be at least 1"),
        (lambda store: store.batches(1, split="val"), ConfigError, "split 'val' is unknown"),
        (lambda store: store.batches(1, concept=2), ConfigError, "concept=2 is not in this store; .* 0 to 1"),
        (lambda store: store.count(concept=-1), ConfigError, "concept=-1 is not in this store"),
        (lambda store: store.read(3), StoreError, "shard 3 of .* does not exist; its shards: 0 to 2"),
        (lambda store: store.read(-1), StoreError, "shard -1 of .* does not exist"),
    ],
)
def test_a_wrong_question_is_answered_at_once(tmp_path, call, error, words):
    store = filled(tmp_path)
    with pytest.raises(error, match=words):
        call(store)


def test_an_empty_store_is_a_store(tmp_path):
    store = create_store(tmp_path, HEADER)
    assert (len(store), list(store.batches(4)), store.count("train")) == (0, [], 0)
    with pytest.raises(StoreError, match=r"shard 0 of .* its shards: none"):
        store.read(0)


@pytest.mark.parametrize(
    ("k", "grid", "shards"), [(256, (7, 7), 1), (16384, (16, 16), 1), (16384, (16, 16), 10), (65536, (16, 16), 4)]
)
def test_a_store_takes_at_most_two_bytes_a_token_and_64_an_image(tmp_path, k, grid, shards):
    header, images = replace(HEADER, k=k, grid=grid), 2000
    filled(tmp_path, shards, images // shards, header)
    size = sum(map(len, bytes_of(tmp_path).values()))
    assert size <= images * (2 * grid[0] * grid[1] + 64)


def memory_while(read) -> int:
    """Most bytes that Arrow held at any step, beyond those it held before."""
    pa.default_memory_pool().release_unused()
    before, most = pa.total_allocated_bytes(), 0
    for _ in read:
        most = max(most, pa.total_allocated_bytes() - before)
    return most


def test_reading_memory_does_not_grow_with_the_store(tmp_path):
    header = replace(HEADER, k=16384, grid=(2, 2), pictures=True)
    held = {}
    for rows in (4_500, 45_000):  # both more than one row group, in one shard
        store = create_store(tmp_path / str(rows), header)
        store.append(batch(0, rows, header, images=tuple(os.urandom(200) for _ in range(rows))))
        held[rows] = memory_while(store.batches(256))
        assert 0 < held[rows] < 3_000_000
    assert held[45_000] < 1.1 * held[4_500]


def test_memory_of_ids_is_eight_bytes_per_image(tmp_path):
    store = filled(tmp_path, shards=3)
    assert store._hashes.nbytes == 8 * len(store)


MORE = replace(HEADER, origin={"way": "generate", "per_concept": 20})


def test_a_store_can_grow_under_another_origin_and_says_so(tmp_path):
    filled(tmp_path, shards=2)
    assert can_grow(tmp_path, MORE)
    store = create_store(tmp_path, MORE, grow=True)
    store.append(batch(12))
    again = open_store(tmp_path)
    assert (len(again), again.manifest.origin) == (18, MORE.origin)
    assert [one.name for one in again.shards] == [f"tokens-0000{number}.parquet" for number in range(3)]


def test_another_origin_is_another_store_unless_it_may_grow(tmp_path):
    filled(tmp_path, shards=1)
    with pytest.raises(StoreError, match="holds a store with other settings: origin"):
        create_store(tmp_path, MORE)


def test_a_store_does_not_grow_under_another_seed(tmp_path):
    filled(tmp_path, shards=1)
    other = replace(MORE, seed=1)
    assert not can_grow(tmp_path, other)
    with pytest.raises(StoreError, match="holds a store with other settings: seed is 0 there and 1 here"):
        create_store(tmp_path, other, grow=True)


def test_where_no_store_is_none_can_grow(tmp_path):
    assert not can_grow(tmp_path, HEADER)
    (tmp_path / "manifest.json").write_text("{")
    assert not can_grow(tmp_path, HEADER)


def test_a_pickled_store_reads_the_same_and_leaves_its_hashes_behind(tmp_path):
    store = filled(tmp_path)
    store.check_ids()
    sent = pickle.dumps(store)
    assert len(sent) < 2000 + len(pickle.dumps(store.manifest))
    assert same(pickle.loads(sent).read(1), store.read(1))


def test_a_shard_can_be_read_without_its_pictures(tmp_path):
    header = replace(HEADER, pictures=True)
    create_store(tmp_path, header).append(batch(header=header, images=(b"x",) * 6))
    store = open_store(tmp_path)
    assert store.read(0).images == (b"x",) * 6
    assert store.read(0, pictures=False).images is None
