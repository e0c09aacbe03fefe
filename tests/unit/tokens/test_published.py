from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from vqcortex.errors import ConfigError, DataError, TokenError
from vqcortex.tokens.published import published_concepts, published_files, read_published

GRID, K, D = (2, 3), 16, 4
CODES = torch.randn(K, D, generator=torch.Generator().manual_seed(0))


def tokens_of(row: int) -> torch.Tensor:
    return torch.randint(0, K, GRID, generator=torch.Generator().manual_seed(row))


def save_codes(path: Path, tokens: torch.Tensor) -> None:
    path.parent.mkdir(exist_ok=True)
    np.save(path, CODES[tokens].permute(2, 0, 1).numpy())


def publish(folder: Path, rows: int = 5, split: str = "train", arrays: bool = True, labels=(7, 12)) -> Path:
    with open(folder / f"{split}_embeddings.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label", "tokens"])
        for row in range(rows):
            writer.writerow([f"n0_{row}.npy", labels[row % 2], str(tokens_of(row).flatten().tolist())])
    for row in range(rows if arrays else 0):
        save_codes(folder / split / f"n0_{row}.npy", tokens_of(row))
    return folder


def rows_in(folder: Path, *lines: str, header: str = "filename,label,tokens") -> Path:
    (folder / "train_embeddings.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def read(folder: Path, split: str = "train", **named):
    return list(read_published(folder, split, K, GRID, **named))


@pytest.mark.parametrize("codebook", [None, CODES])
def test_ids_labels_and_names_come_from_the_csv(tmp_path, codebook):
    batches = read(publish(tmp_path), codebook=codebook, size=2)
    assert [len(one) for one in batches] == [2, 2, 1]
    assert batches[0].image_ids == ("train/n0_0", "train/n0_1")
    assert torch.equal(torch.cat([one.tokens for one in batches]), torch.stack([tokens_of(row) for row in range(5)]))
    assert torch.cat([one.concept for one in batches]).tolist() == [0, 1, 0, 1, 0]
    assert {name for one in batches for name in one.split} == {"train"}


@pytest.mark.parametrize("split", ["val", "validation"])
def test_val_is_validation(tmp_path, split):
    (batch,) = read(publish(tmp_path, split="val"), split)
    assert set(batch.split) == {"validation"}
    assert batch.image_ids[0] == "validation/n0_0"


def test_without_a_csv_ids_are_the_nearest_codes_and_labels_the_subfolders(tmp_path):
    for row, name in enumerate(["ant_0", "bee_x_1", "ant_2"]):
        save_codes(tmp_path / "test" / f"{name}.npy", tokens_of(row))
    (batch,) = read(tmp_path, "test", codebook=CODES)
    assert batch.image_ids == ("test/ant_0", "test/ant_2", "test/bee_x_1")
    assert torch.equal(batch.tokens, torch.stack([tokens_of(row) for row in (0, 2, 1)]))
    assert batch.concept.tolist() == [0, 0, 1]
    assert published_concepts(tmp_path) == ("ant", "bee_x")


def test_a_csv_without_ids_is_completed_from_the_arrays(tmp_path):
    save_codes(tmp_path / "train/n0_3.npy", tokens_of(3))
    (batch,) = read(rows_in(tmp_path, "n0_3.npy,7", header="filename,label"), codebook=CODES)
    assert torch.equal(batch.tokens[0], tokens_of(3))


def test_labels_of_all_splits_are_numbered_together_and_by_value(tmp_path):
    publish(tmp_path, split="train", labels=(10, 9))
    publish(tmp_path, split="val", labels=(2, 9))
    assert published_concepts(tmp_path) == ("2", "9", "10")
    assert read(tmp_path)[0].concept.tolist() == [2, 1, 2, 1, 2]


def test_given_concepts_are_meant_by_name_or_else_by_number(tmp_path):
    publish(tmp_path, labels=("dog", "1"))
    assert read(tmp_path, concepts=("cat", "dog"))[0].concept.tolist() == [1, 1, 1, 1, 1]
    with pytest.raises(DataError, match=r"label 'dog' is none of the 2 concepts: 1, 0; add it, or mend the row"):
        read(tmp_path, concepts=("1", "0"))


def test_an_unquoted_list_is_read_as_well(tmp_path):
    (batch,) = read(rows_in(tmp_path, "", "a.npy,7,[1, 2, 3, 4, 5, 6]"))
    assert batch.tokens.tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ("__import__('os').system('touch hacked')", "are not a list of 6 whole numbers"),
        ("[1, 2, 3, 4, 5, 1.5]", "are not a list of 6 whole numbers"),
        ("[1, 2, 3, 4, 5, true]", "are not a list of 6 whole numbers"),
        ("[1, 2, 3, 4, 5, [6]]", "are not a list of 6 whole numbers"),
        ("{}", "are not a list of 6 whole numbers"),
        ("[" * 140, "are not a list of 6 whole numbers"),
        ("[1, 2, 3, 4, 5, 6" + " " * 500 + "]", r"\.\.\. \(518 characters\) are not a list"),
        ("[1, 2, 3, 4, 5]", "holds 5 ids but a grid of 2x3 needs 6"),
    ],
)
def test_ids_that_are_no_grid_name_file_and_row(tmp_path, ids, words):
    with pytest.raises(
        DataError, match=rf"{words}.*\n  while working on: file=.*train_embeddings.csv, row=3, name='b.npy'"
    ):
        read(rows_in(tmp_path, 'a.npy,7,"[1, 2, 3, 4, 5, 6]"', f'b.npy,7,"{ids}"'))
    assert not Path("hacked").exists()


@pytest.mark.parametrize("worst", [16, -1, 10**30])
def test_an_id_outside_the_codebook_names_file_and_row(tmp_path, worst):
    with pytest.raises(
        TokenError, match=r"tokens span .* holds indices \[0, 15\]; .*\n  while working on: file=.*, row=2"
    ):
        read(rows_in(tmp_path, f'a.npy,7,"[1, 2, 3, 4, 5, {worst}]"'))


def test_an_array_that_contradicts_its_ids_is_refused(tmp_path):
    publish(tmp_path)
    wrong = tokens_of(1).clone()
    wrong[1, 2] = (wrong[1, 2] + 1) % K
    save_codes(tmp_path / "train/n0_1.npy", wrong)
    assert len(read(tmp_path)[0]) == 5
    with pytest.raises(DataError, match=r"n0_1.npy' is not made of this codebook: at row 1, column 2 .*\n.* row=3"):
        read(tmp_path, codebook=CODES)


def test_an_array_of_another_codebook_has_no_ids(tmp_path):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train/a_1.npy", np.full((D, *GRID), np.nan, np.float32))
    with pytest.raises(DataError, match="is not made of this codebook: at row 0, column 0 it is nan away"):
        read(tmp_path, codebook=CODES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((D, 3, 2), np.float32), r"holds float32 \(4, 3, 2\); codes \(d, h, w\) = \(4, 2, 3\)"),
        (np.zeros((D, 2, 3), np.int64), "holds int64"),
        (np.array([{"a": 1}]), "is not a whole .npy file"),
        (b"", "is not a whole .npy file"),
        (b"\x93NUMPY\x01\x00nonsense", "is not a whole .npy file"),
    ],
)
def test_an_array_that_is_none_is_refused(tmp_path, content, words):
    publish(tmp_path)
    path = tmp_path / "train/n0_2.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(DataError, match=f"{words}.*\n.*row=4"):
        read(tmp_path, codebook=CODES)


def test_a_truncated_array_is_refused(tmp_path):
    path = publish(tmp_path) / "train/n0_2.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"is not a whole \.npy file"):
        read(tmp_path, codebook=CODES)


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd", "a\\b.npy", "..", ""])
def test_a_file_name_cannot_leave_its_folder(tmp_path, name):
    with pytest.raises(DataError, match=r"leads out of its folder; write a plain name such as 'n01_5.npy'"):
        read(rows_in(tmp_path, f'{name},7,"[1, 2, 3, 4, 5, 6]"'), codebook=CODES)


@pytest.mark.parametrize(
    ("split", "named", "words"),
    [("dev", {}, "split='dev', size=256; write one of train, validation, test"), ("train", {"size": 0}, "size=0")],
)
def test_a_wrong_question_is_answered_before_reading(tmp_path, split, named, words):
    with pytest.raises(ConfigError, match=words):
        read_published(tmp_path, split, K, GRID, **named)


@pytest.mark.parametrize(
    ("lines", "header", "words"),
    [
        ((), 'a.npy,7,"[1]"', "starts with data; its first line must be a header"),
        (("a.npy",), "filename,label", r"row 2 of .* is \['a.npy'\]; it must hold a file name, a label and ids"),
        (
            ("a.npy,7",),
            "filename,label",
            "the row gives no ids; to find them from the codes, pass the model's codebook",
        ),
        (("\udcff,7",), "filename,label", "cannot read .*train_embeddings.csv"),
    ],
)
def test_a_csv_that_is_not_the_published_one_is_refused(tmp_path, lines, header, words):
    (tmp_path / "train_embeddings.csv").write_bytes("\n".join([header, *lines]).encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=words):
        read(tmp_path)


def test_a_missing_split_and_a_missing_label_say_what_is_wanted(tmp_path):
    with pytest.raises(DataError, match=r"holds neither 'train_embeddings.csv' nor a folder 'train'; give the folder"):
        read(tmp_path)
    publish(tmp_path)
    with pytest.raises(DataError, match=r"holds neither 'test_embeddings.csv' nor a folder 'test'"):
        read(tmp_path, "test")
    save_codes(tmp_path / "val/unlabelled.npy", tokens_of(0))
    with pytest.raises(DataError, match=r"unlabelled.npy' has no label; .* SUBFOLDER_IMAGE.npy"):
        read(tmp_path, "val", codebook=CODES)


def test_the_files_of_an_import_are_its_csvs_and_the_arrays_of_their_rows(tmp_path):
    publish(tmp_path, rows=2)
    publish(tmp_path, rows=2, split="test", arrays=False)
    save_codes(tmp_path / "train" / "unlisted_9.npy", tokens_of(9))
    found = [path.relative_to(tmp_path).as_posix() for path in published_files(tmp_path)]
    assert found == ["train_embeddings.csv", "train/n0_0.npy", "train/n0_1.npy", "test_embeddings.csv"]


def test_without_a_csv_every_array_is_a_file_of_the_import(tmp_path):
    save_codes(tmp_path / "train" / "7_1.npy", tokens_of(1))
    assert [path.name for path in published_files(tmp_path)] == ["7_1.npy"]


def test_files_that_cannot_be_listed_say_why(tmp_path):
    with pytest.raises(DataError, match=r"holds neither 'train_embeddings\.csv' nor a folder 'train'"):
        list(published_files(tmp_path))
    rows_in(tmp_path, '../secret.npy,7,"[1, 2, 3, 4, 5, 6]"')
    with pytest.raises(DataError, match=r"leads out of its folder; .*\n.*row=2"):
        list(published_files(tmp_path))
