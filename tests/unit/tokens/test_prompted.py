"""Token grids with prompts: every way to write ids, and every way to write them wrong."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vqcortex.errors import ConfigError, DataError, TokenError
from vqcortex.tokens.prompted import prompted_concepts, prompted_files, read_prompted

GRID, K = (2, 3), 16
IDS = [1, 2, 3, 4, 5, 6]
ORDER = ("train", "train", "validation", "test")


def csv_of(folder: Path, *lines: str) -> Path:
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


def parquet_of(folder: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=2)
    return folder / "t.parquet"


def read(path: Path, concepts=("a", "b"), size: int = 256):
    return list(read_prompted(path, K, GRID, concepts, ORDER, size))


@pytest.mark.parametrize(
    "cell",
    [
        "1 2 3 4 5 6",
        '"1, 2, 3, 4, 5, 6"',
        '"[1, 2, 3, 4, 5, 6]"',
        "[1 2 3 4 5 6]",
        '"[[1, 2, 3], [4, 5, 6]]"',
        " 1  2 3 4 5 6 ",
    ],
)
def test_ids_are_read_from_text(tmp_path, cell):
    (batch,) = read(csv_of(tmp_path, "prompt,tokens", f"a,{cell}"))
    assert batch.tokens.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert batch.image_ids == ("t/000000",)


@pytest.mark.parametrize(
    "cells", [[IDS], [[IDS[:3], IDS[3:]]], pa.array([IDS], pa.list_(pa.uint16(), 6))], ids=["list", "rows", "fixed"]
)
def test_ids_are_read_from_lists(tmp_path, cells):
    (batch,) = read(parquet_of(tmp_path, prompt=["a"], tokens=cells))
    assert batch.tokens.tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int8, np.uint64, ">i4"])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_ids_are_read_from_arrays(tmp_path, dtype, shape):
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "1.npy", np.array(IDS, dtype).reshape(shape))
    (batch,) = read(csv_of(tmp_path, "prompt,file", "a,deep/1.npy"))
    assert batch.tokens.tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_ids_count_where_a_file_is_somebodys_picture(tmp_path):
    (batch,) = read(csv_of(tmp_path, "prompt,file,tokens", "a,picture.png,1 2 3 4 5 6"))
    assert batch.tokens.flatten().tolist() == IDS


def test_splits_follow_the_place_in_the_concept_where_nobody_says(tmp_path):
    rows = [f"{word},1 2 3 4 5 6" for word in "aababaaa"]
    batches = read(csv_of(tmp_path, "prompt,tokens", *rows), size=3)
    assert [len(one) for one in batches] == [3, 3, 2]
    found = [(number, split) for one in batches for number, split in zip(one.concept.tolist(), one.split, strict=True)]
    assert [split for number, split in found if number == 0] == [*ORDER, "train", "train"]
    assert [split for number, split in found if number == 1] == ["train", "train"]


def test_splits_groups_and_ids_of_the_table_are_kept(tmp_path):
    rows = ("one,a,test,x,1 2 3 4 5 6", "two,a,val,y,1 2 3 4 5 6", "three,b,train,z,1 2 3 4 5 6")
    path = csv_of(tmp_path, "prompt,group,split,id,tokens", *rows)
    (batch,) = read(path)
    assert (batch.split, batch.image_ids) == (("test", "validation", "train"), ("x", "y", "z"))
    assert batch.concept.tolist() == [0, 0, 1]
    assert prompted_concepts(path) == ("a", "b")


def test_rows_of_other_concepts_are_passed_over_unread(tmp_path):
    path = csv_of(tmp_path, "prompt,tokens", "a,1 2 3 4 5 6", "c,nonsense", "b,1 2 3 4 5 6")
    (batch,) = read(path, concepts=("b", "a"))
    assert batch.concept.tolist() == [1, 0]
    assert batch.image_ids == ("t/000000", "t/000002")


@pytest.mark.parametrize(
    "cell",
    ["", "1 2 3 4 5 x", "1.0 2 3 4 5 6", "[1, 2, 3, 4, 5, true]", "[1, 2, 3, 4, 5, null]", '{"1": 2}',
     "__import__('os').system('touch hacked')", "[" * 140, "1 2 3 4 5 6" + " " * 500, "9" * 150, "[1 2 3 ... 4 5 6]",
     "٣ 2 3 4 5 6", "[[[1]]]"],
    ids=range(13),
)  # fmt: skip
def test_text_that_is_no_list_of_ids_names_its_row(tmp_path, cell):
    quoted = '"' + cell.replace('"', '""') + '"'
    path = csv_of(tmp_path, "prompt,tokens", "a,1 2 3 4 5 6", f"a,{quoted}")
    with pytest.raises(
        DataError, match=r"row 3 of '.*t\.csv': tokens .* are not a list of 6 whole numbers; write them as"
    ):
        read(path)
    assert not Path("hacked").exists()


@pytest.mark.parametrize("cells", [[[1.0] * 6], [[True] * 6], [[1, 2, 3, 4, 5, None]], [None], [b"x"]], ids=str)
def test_lists_that_hold_no_ids_name_their_row(tmp_path, cells):
    with pytest.raises(DataError, match=r"row 0 of '.*t\.parquet': tokens .* are not a list of 6 whole numbers"):
        read(parquet_of(tmp_path, prompt=["a"], tokens=cells))


def test_rows_of_different_lengths_are_no_grid(tmp_path):
    with pytest.raises(DataError, match=r"row 2 of .* has rows of ids of different lengths; a grid is 2x3"):
        read(csv_of(tmp_path, "prompt,tokens", 'a,"[[1, 2], [3, 4, 5, 6]]"'))


@pytest.mark.parametrize("cell", ["1 2 3 4 5", "1 2 3 4 5 6 7", "[[1, 2], [3, 4], [5, 6]]"])
def test_a_grid_of_another_model_is_refused(tmp_path, cell):
    with pytest.raises(
        DataError, match=r"row 2 of .* holds ids of shape \(.*\) but this model's grid is 2x3; give 6 ids"
    ):
        read(csv_of(tmp_path, "prompt,tokens", f'a,"{cell}"'))


@pytest.mark.parametrize("worst", [16, -1, 10**20])
def test_an_id_outside_the_codebook_names_its_row(tmp_path, worst):
    path = csv_of(tmp_path, "prompt,tokens", "a,1 2 3 4 5 6", f"a,1 2 3 4 5 {worst}")
    with pytest.raises(
        TokenError, match=r"tokens span .* holds indices \[0, 15\]; .*\n  while working on: row=row 3 of"
    ):
        read(path)


def test_an_id_beyond_64_bits_in_an_array_is_outside_the_codebook(tmp_path):
    np.save(tmp_path / "1.npy", np.array([1, 2, 3, 4, 5, 2**64 - 1], np.uint64))
    with pytest.raises(TokenError, match=r"tokens span \[1, 4611686018427387904\]"):
        read(csv_of(tmp_path, "prompt,file", "a,1.npy"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((2, 3)), r"holds float64 \(2, 3\); whole numbers are needed"),
        (np.zeros((2, 3), bool), "holds bool"),
        (np.array([{"a": 1}]), "is not a whole .npy file"),
        (np.zeros((4, 2, 3), np.int64), r"holds ids of shape \(4, 2, 3\)"),
        (b"", "is not a whole .npy file"),
        (b"\x93NUMPY\x01\x00nonsense", "is not a whole .npy file"),
        (None, "is not a whole .npy file: No such file"),
    ],
)
def test_an_array_that_holds_no_ids_names_its_row(tmp_path, content, words):
    if isinstance(content, bytes):
        (tmp_path / "1.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "1.npy", content)
    with pytest.raises(DataError, match=rf"row 2 of .*{words}"):
        read(csv_of(tmp_path, "prompt,file", "a,1.npy"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../1.npy", "names the file '../1.npy'; write a path inside the table's own folder"),
        ("/etc/passwd", "names the file '/etc/passwd'"),
        ("1.png", "names '1.png', which is no .npy file of ids; give ids in a column 'tokens', or encode pictures"),
    ],
)
def test_a_file_that_is_no_array_of_the_table_is_refused(tmp_path, name, words):
    path = csv_of(tmp_path, "prompt,file", f"a,{name}")
    for look in (read, lambda one: list(prompted_files(one))):
        with pytest.raises(DataError, match=rf"row 2 of .* {words}"):
            look(path)


def test_the_files_of_an_import_are_the_table_and_its_arrays(tmp_path):
    path = csv_of(tmp_path, "prompt,file", "a,1.npy", "a,2.npy")
    assert [one.name for one in prompted_files(path)] == ["t.csv", "1.npy", "2.npy"]
    path = csv_of(tmp_path, "prompt,tokens", "a,1 2 3")
    assert [one.name for one in prompted_files(path)] == ["t.csv"]


def test_a_table_without_ids_says_what_is_wanted(tmp_path):
    path = csv_of(tmp_path, "prompt", "a", "a")
    for look in (prompted_concepts, read, lambda one: list(prompted_files(one))):
        with pytest.raises(DataError, match="has the columns prompt; wanted is one of tokens, file, file_name"):
            look(path)


def test_a_wrong_question_is_answered_before_reading(tmp_path):
    with pytest.raises(ConfigError, match="size=0 must be at least 1 image per batch"):
        read(tmp_path / "none.csv", size=0)


def test_what_is_read_is_what_a_store_takes(tmp_path):
    (batch,) = read(csv_of(tmp_path, "prompt,tokens", "a,1 2 3 4 5 6", "b,6 5 4 3 2 1"))
    assert batch.tokens.dtype == torch.int64
    assert batch.images is None
