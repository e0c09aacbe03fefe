"""Tables of prompts in three formats: what they say, and what is said of broken ones."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqcortex.errors import DataError
from vqcortex.prompts import PromptTable, below, concepts_among, prompts_by_concept

ROWS = [
    {"prompt": "a red  bird", "group": "birds", "split": "train", "id": "r", "file": "1.png"},
    {"prompt": "a blue bird,\nflying", "group": "birds", "split": "val", "id": "b", "file": "2.png"},
    {"prompt": "ein Kätzchen", "group": "cats", "split": "test", "id": "k", "file": "3.png"},
]


def as_csv(path: Path, rows: list[dict]) -> Path:
    import csv

    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path.with_suffix(".csv")


def as_jsonl(path: Path, rows: list[dict]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_parquet(path: Path, rows: list[dict]) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


WRITERS = [as_csv, as_jsonl, as_parquet]


@pytest.fixture(params=WRITERS, ids=lambda one: one.__name__)
def write(request, tmp_path):
    return lambda rows: request.param(tmp_path / "table", rows)


def csv_of(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_format_says_the_same(write):
    entries = list(PromptTable(write(ROWS)).entries("file"))
    assert [one.prompt for one in entries] == ["a red bird", "a blue bird, flying", "ein Kätzchen"]
    assert [one.concept for one in entries] == ["birds", "birds", "cats"]
    assert [one.split for one in entries] == ["train", "validation", "test"]
    assert [(one.name, one.cell, one.index) for one in entries] == [
        ("r", "1.png", 0),
        ("b", "2.png", 1),
        ("k", "3.png", 2),
    ]


def test_without_groups_a_prompt_is_its_own_concept(write):
    (entry,) = PromptTable(write([{"caption": "a bird", "file": "1.png"}])).entries()
    assert (entry.concept, entry.split, entry.name, entry.cell) == ("a bird", None, None, None)


@pytest.mark.parametrize("wanted", [[], [0], [4], [1, 3], [2, 3, 4], range(5)], ids=str)
def test_any_rising_rows_can_be_asked_for(write, wanted):
    table = PromptTable(write([{"prompt": f"p{number}", "file": f"{number}.png"} for number in range(5)]))
    found = list(table.entries("file", wanted))
    assert [one.cell for one in found] == [f"{number}.png" for number in wanted]
    assert [one.index for one in found] == list(wanted)


@pytest.mark.parametrize(
    ("write", "row"), [(as_csv, 3), (as_jsonl, 2), (as_parquet, 1)], ids=["csv", "jsonl", "parquet"]
)
def test_a_broken_row_is_named_as_its_format_counts(tmp_path, write, row):
    path = write(tmp_path / "table", [{"prompt": "a bird"}, {"prompt": ""}])
    with pytest.raises(
        DataError, match=rf"row {row} of '.*table\.\w+' has no prompt; fill the cell in, or drop the row"
    ):
        list(PromptTable(path).entries())


def test_a_mark_in_front_and_blank_lines_do_no_harm(tmp_path):
    table = PromptTable(csv_of(tmp_path, b"\xef\xbb\xbfprompt, group\r\n\r\na bird,birds\r\n"))
    (entry,) = table.entries()
    assert (entry.concept, entry.place.split(" of ")[0]) == ("birds", "row 3")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"has the columns '' and none called prompt or text or caption; name the columns in the first row"),
        ("words,file\na,b\n", r"has the columns 'words, file' and none called prompt .* and rename one"),
        ("prompt,prompt\na,b\n", "names the column 'prompt' twice; rename one"),
        (
            "prompt,group\na red, big bird,birds\n",
            'row 2 .* has 3 cells but the first row names 2 columns; put "quotes"',
        ),
        ("prompt,group\na\n", "row 2 .* has 1 cells but"),
        ("prompt,group\na,\n", "row 2 .* has no group; fill the cell in"),
        ("prompt,split\na,dev\n", "row 2 .* has split 'dev'; write one of train, validation, test"),
        ("prompt,id\na, \n", "row 2 .* has no id"),
        (f"prompt\n{'long ' * 300}\n", r"row 2 .* has a concept of 1499 letters, .*; at most 1000 .* column 'group'"),
        (
            "prompt\nfine\nK\xe4tzchen\n".encode("latin-1"),
            r"row 3 .* has a prompt that is no UTF-8, 'K.*'; save the table",
        ),
        (b'prompt\nfine\n"open\n', r"cannot be read: after row 2: unexpected end of data"),
        (f"prompt\n{'x' * 200_000}\n", r"after row 1: field larger than field limit"),
    ],
)
def test_a_csv_that_is_none_says_why(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        list(PromptTable(csv_of(tmp_path, content)).entries())


def test_a_long_prompt_is_fine_where_there_are_groups(tmp_path):
    (entry,) = PromptTable(csv_of(tmp_path, f"prompt,group\n{'long ' * 300},all\n")).entries()
    assert (entry.concept, len(entry.prompt)) == ("all", 1499)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n[1]\n', r"row 2 of .* is \[1\], not an object; mend the row"),
        ('{"prompt": "a"}\n\n{"prompt": \n', "row 3 is not JSON: "),
        ('{"prompt": "a"}\n' + "[" * 100_000, "row 2 is not JSON: "),
        ('{"prompt": true}\n', "row 1 of .* has the prompt True, which is no text; mend or drop the row"),
        ('{"prompt": 1.5}\n', "row 1 of .* has the prompt 1.5, which is no text"),
        ('{"prompt": {"$eval": "x"}}\n', "row 1 of .* which is no text"),
        ('{"prompt": "a"}\n{"caption": "b"}\n', "row 2 of .* has no prompt"),
        ('{"prompt": "\\ud800"}\n', "row 1 of .* has a prompt that is no UTF-8"),
    ],
)
def test_json_lines_that_are_none_say_why(tmp_path, content, words):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(DataError, match=words):
        list(PromptTable(tmp_path / "t.jsonl").entries())


def test_numbers_are_names_of_groups(tmp_path):
    path = as_parquet(tmp_path / "t", [{"prompt": "a", "group": 3}, {"prompt": "b", "group": 4}])
    assert [one.concept for one in PromptTable(path).entries()] == ["3", "4"]


def test_a_parquet_file_that_is_broken_is_named(tmp_path):
    path = as_parquet(tmp_path / "t", [{"prompt": f"bird {number}"} for number in range(200)])
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"t\.parquet' cannot be read: .*; check the path, or save the table again"):
        PromptTable(path)
    # The pages of the columns, with the footer left whole.
    path.write_bytes(content[:8] + bytes(len(content) // 2) + content[8 + len(content) // 2 :])
    with pytest.raises(DataError, match=r"t\.parquet' cannot be read: "):
        list(PromptTable(path).entries())


@pytest.mark.parametrize("name", ["t.txt", "t", "none.csv", "none.jsonl", "none.parquet", "folder.csv"])
def test_what_is_no_table_is_refused(tmp_path, name):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(
        DataError, match=r"is no table of prompts; give a \.csv, \.jsonl, \.parquet file|cannot be read"
    ):
        PromptTable(tmp_path / name)


def test_a_missing_column_is_asked_for_by_name(write):
    table = PromptTable(write(ROWS))
    assert table.column("image", "file") == "file"
    with pytest.raises(DataError, match=r"has the columns prompt, .*; wanted is one of tokens, ids"):
        table.column("tokens", "ids")


def test_concepts_are_sorted_over_all_tables(tmp_path):
    one = PromptTable(as_csv(tmp_path / "a", [{"prompt": "z"}, {"prompt": "y"}]))
    two = PromptTable(as_csv(tmp_path / "b", [{"prompt": "z"}, {"prompt": "x"}]))
    assert concepts_among([one, two]) == ("x", "y", "z")
    with pytest.raises(DataError, match=r"each of the 2 rows of .* has a concept of its own, .*; add a column 'group'"):
        concepts_among([one])
    with pytest.raises(DataError, match=r"has no rows; write one per picture"):
        concepts_among([PromptTable(csv_of(tmp_path, "prompt\n"))])


def test_prompts_are_gathered_by_concept(write):
    table = PromptTable(write([*ROWS, ROWS[0]]))
    assert prompts_by_concept(table) == {"birds": ("a red bird", "a blue bird, flying"), "cats": ("ein Kätzchen",)}


def test_no_prompts_are_an_error(tmp_path):
    with pytest.raises(DataError, match="has no rows; write one per prompt"):
        prompts_by_concept(PromptTable(csv_of(tmp_path, "prompt\n")))


@pytest.mark.parametrize("name", ["../x.png", "a/../../x", "/etc/passwd", "", None, 3, "a\0b"])
def test_a_file_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"row 2 names the file .*; write a path inside the table's own folder"):
        below(tmp_path, name, "row 2")


def test_a_link_that_leads_out_is_followed(tmp_path):
    (tmp_path / "blob").write_text("x")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "1.png").symlink_to(tmp_path / "blob")
    assert below(tmp_path / "here", "1.png", "row 2").read_text() == "x"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_say_why(tmp_path_factory, content):
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes((b"prompt\n" if suffix == ".csv" else b"") + content)
        why = path.name
        try:
            assert all(entry.prompt for entry in PromptTable(path).entries())
        except DataError as error:
            why = str(error)
        assert path.name in why
