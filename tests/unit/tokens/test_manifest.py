from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vqcortex.errors import ConfigError, StoreError
from vqcortex.tokens.manifest import Manifest, Shard, read_manifest, shard_name, write_manifest

HEADER = Manifest(
    model="toy",
    identity="ab" * 32,
    k=8,
    d=3,
    grid=(2, 3),
    concepts=("cat", "dog"),
    seed=3,
    origin={"how": "generate", "n": 5, "deep": {"er": [1, 2]}},
    shards=(Shard(name=shard_name(0), rows=5, sha256="0" * 64),),
)


def test_a_manifest_comes_back_as_it_was(tmp_path):
    write_manifest(tmp_path, HEADER)
    assert read_manifest(tmp_path) == HEADER
    assert HEADER.rows == 5


def test_equal_manifests_are_equal_bytes(tmp_path):
    write_manifest(tmp_path / "a", HEADER)
    write_manifest(tmp_path / "b", replace(HEADER, origin=dict(reversed(HEADER.origin.items()))))
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_versions_are_recorded_without_being_asked_for():
    assert {"python", "torch", "pyarrow", "numpy", "vqcortex"} == set(HEADER.versions)
    assert HEADER.versions["python"].startswith("3.")


def test_checking_makes_tuples_inside_origin_plain():
    assert replace(HEADER, origin={"grid": (2, 3)}).checked().origin == {"grid": [2, 3]}


def test_checking_lists_every_wrong_field():
    wrong = replace(HEADER, k=0, grid=(0, 3), concepts=("a", "a"), model="")
    with pytest.raises(
        ConfigError, match=r"4 manifest field\(s\) wrong:\n  - model=''.*\n  - k=0.*\n  - grid=.*\n  - concepts="
    ):
        wrong.checked()


def test_a_path_inside_origin_is_refused_with_the_cure():
    with pytest.raises(ConfigError, match=r"plain JSON values only: .*PosixPath.*; convert paths and arrays to text"):
        replace(HEADER, origin={"from": Path("x")}).checked()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"origin": {"how": "generate", "n": 6, "deep": {"er": [1, 2]}}}, "origin.n is 5 there and 6 here"),
        ({"origin": {}}, r"origin\.deep is {'er': \[1, 2\]} there and absent here"),
        ({"origin": {**HEADER.origin, "none": None}}, r"origin\.none is absent there and None here"),
        ({"grid": (3, 2)}, r"grid is \(2, 3\) there and \(3, 2\) here"),
    ],
)
def test_a_difference_names_the_field(change, words):
    found = HEADER.difference(replace(HEADER, **change))
    assert found is not None
    assert re.search(words, found)


def test_shards_are_no_difference():
    assert HEADER.difference(replace(HEADER, shards=())) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nonsense"])
def test_what_is_not_json_is_called_so(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest.json' is not JSON .*; restore it from a copy"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"holds no manifest\.json, so it is not a token store; give the folder"):
        read_manifest(tmp_path)
    with pytest.raises(StoreError, match=r"holds no manifest\.json"):
        read_manifest(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": "8"}, r"k='8'; it must be 1 to 4294967296 codes"),
        ({"k": True}, "k=True"),
        ({"grid": [2]}, r"grid=\[2\]; it must be \[rows, columns\]"),
        ({"grid": [10**6, 10**6]}, "grid="),
        ({"concepts": []}, "a list of one or more different names"),
        ({"concepts": ["a", 3]}, "concepts="),
        ({"seed": 1.5}, "seed=1.5"),
        ({"versions": {"torch": 2}}, "versions="),
        ({"shards": None}, "shards=None; it must be a list"),
        ({"pictures": "no"}, "it must be true or false"),
        ({"surprise": 1}, "'surprise' unknown"),
        ({"shards": [3]}, "shard 0 is 3; it must have name, rows and sha256"),
        ({"shards": [{"name": "tokens-00000.parquet", "rows": 0, "sha256": "0" * 64}]}, "rows must be 1 or more"),
        ({"shards": [{"name": "tokens-00000.parquet", "rows": 1, "sha256": "x"}]}, "64 hex digits"),
        ({"shards": [{"name": "tokens-00001.parquet", "rows": 1, "sha256": "0" * 64}]}, "it must be 'tokens-00000"),
    ],
)
def test_a_wrong_field_is_named_with_its_rule(tmp_path, change, words):
    write_manifest(tmp_path, HEADER)
    plain = json.loads((tmp_path / "manifest.json").read_text()) | change
    (tmp_path / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(StoreError, match=words):
        read_manifest(tmp_path)


def test_a_missing_field_is_named(tmp_path):
    write_manifest(tmp_path, HEADER)
    plain = json.loads((tmp_path / "manifest.json").read_text())
    del plain["identity"]
    (tmp_path / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(StoreError, match="identity is missing; it must be the model's content hash"):
        read_manifest(tmp_path)


def test_a_later_format_asks_for_a_later_vqcortex(tmp_path):
    write_manifest(tmp_path, HEADER)
    plain = json.loads((tmp_path / "manifest.json").read_text()) | {"format": 2}
    (tmp_path / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(StoreError, match="has format 2; this vqcortex reads format 1; use the version that wrote it"):
        read_manifest(tmp_path)
