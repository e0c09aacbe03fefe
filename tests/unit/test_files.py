"""Files that are whole or absent."""

import errno
import os

import pytest

from vqcortex.errors import StudyError
from vqcortex.files import hash_of_bytes, hash_of_file, replacing, write_bytes, write_json


def test_equal_values_are_equal_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert hash_of_file(tmp_path / "a.json") == hash_of_file(tmp_path / "b.json")


def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path):
    content = b"x" * 3_000_000
    write_bytes(tmp_path / "new" / "big", content)
    assert hash_of_file(tmp_path / "new" / "big") == hash_of_bytes(content)


def test_an_error_inside_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "kept"
    write_bytes(path, b"old")

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_is_said_in_one_line_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    write_bytes(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StudyError, match="No space left on device; nothing at that path was changed"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    write_bytes(tmp_path / "file", b"")
    with pytest.raises(StudyError, match="cannot write"):
        write_bytes(tmp_path / "file" / "inside", b"")
