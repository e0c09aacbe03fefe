"""Pictures with prompts, from tables and folders."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vqcortex.errors import DataError
from vqcortex.images import ImageSource, open_images

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)
COLOURS = ("red", "blue", "green")


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(file, "PNG")
    return file.getvalue()


def pictures(folder: Path) -> None:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        (folder / "pictures" / f"{colour}.png").write_bytes(png(colour))


def table(folder: Path, *lines: str, name: str = "birds.csv") -> Path:
    pictures(folder)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def told(source: ImageSource) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(one.image_id, source.concepts[one.concept], one.image.getpixel((0, 0))) for one in source]


PLAIN = ("prompt,file", "a bird,pictures/red.png", "a cat,pictures/blue.png", "a bird,pictures/green.png")


def test_a_csv_names_pictures_beside_it(tmp_path):
    source = open_images(f"prompts:{table(tmp_path, *PLAIN)}")
    assert isinstance(source, ImageSource)
    assert source.concepts == ("a bird", "a cat")
    assert told(source) == [
        ("birds/000000", "a bird", RED),
        ("birds/000001", "a cat", BLUE),
        ("birds/000002", "a bird", GREEN),
    ]


def test_groups_and_ids_are_used_where_there_are_some(tmp_path):
    rows = (
        "prompt,file,group,id",
        "one,pictures/red.png,b,x",
        "two,pictures/blue.png,b,y",
        "three,pictures/blue.png,a,z",
    )
    source = open_images(f"prompts:{table(tmp_path, *rows)}")
    assert (source.concepts, tuple(source.image_ids), list(source.labels())) == (("a", "b"), ("x", "y", "z"), [1, 1, 0])


def test_splits_of_a_table_are_read_apart_and_counted_alike(tmp_path):
    rows = [f"{word},pictures/{colour}.png,{split}" for word, colour, split in (
        ("bird", "red", "train"), ("cat", "blue", "val"), ("bird", "green", "test"), ("bird", "blue", "train"),
        ("bird", "red", "val"),
    )]  # fmt: skip
    place = f"prompts:{table(tmp_path, 'prompt,file,split', *rows)}"
    assert told(open_images(place)) == [("train/000000", "bird", RED), ("train/000001", "bird", BLUE)]
    validation = open_images(place, "validation")
    assert validation.concepts == ("bird", "cat")
    assert told(validation) == [("validation/000000", "cat", BLUE), ("validation/000001", "bird", RED)]
    assert [one.image().getpixel((0, 0)) for one in validation.pictures([1])] == [RED]


def test_a_table_without_splits_has_no_test_images(tmp_path):
    place = f"prompts:{table(tmp_path, *PLAIN)}"
    with pytest.raises(DataError, match="is not divided into splits, so it has no 'test'; add a column 'split'"):
        open_images(place, "test")
    rows = ("prompt,file,split", "a,pictures/red.png,train", "a,pictures/red.png,train")
    with pytest.raises(DataError, match="has no rows of split 'test'; choose another split"):
        open_images(f"prompts:{table(tmp_path, *rows)}", "test")


@pytest.mark.parametrize("kind", ["struct", "bytes", "path"])
def test_parquet_holds_pictures_or_names_them(tmp_path, kind):
    pictures(tmp_path)
    names = [f"pictures/{colour}.png" for colour in COLOURS] * 30
    cells = {
        "struct": [{"bytes": (tmp_path / name).read_bytes(), "path": "elsewhere.png"} for name in names],
        "bytes": [(tmp_path / name).read_bytes() for name in names],
        "path": [{"bytes": None, "path": name} for name in names],
    }[kind]
    held = pa.table({"prompt": ["a", "b", "a"] * 30, "image": cells, "file_name": ["no such"] * 90})
    pq.write_table(held, tmp_path / "x.parquet", row_group_size=20)
    source = open_images(f"prompts:{tmp_path / 'x.parquet'}")
    assert [one[2] for one in told(source)] == [RED, BLUE, GREEN] * 30
    assert [one.image().getpixel((0, 0)) for one in source.pictures([19, 20, 61, 89])] == [BLUE, GREEN, BLUE, GREEN]


def test_a_folder_with_metadata_is_read_as_hugging_face_lays_it_out(tmp_path):
    rows = ("file_name,text", "pictures/red.png,a", "pictures/blue.png,b", "pictures/blue.png,b")
    table(tmp_path, *rows, name="metadata.csv")
    source = open_images(f"prompts:{tmp_path}")
    assert told(source)[1] == ("metadata/000001", "b", BLUE)


def test_a_folder_may_have_a_table_for_each_split(tmp_path):
    for split, words in (("train", "aab"), ("val", "ca")):
        pictures(tmp_path / split)
        lines = [json.dumps({"file_name": "pictures/red.png", "text": word}) for word in words]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    assert open_images(f"prompts:{tmp_path}").concepts == ("a", "b", "c")
    assert [one[1] for one in told(open_images(f"prompts:{tmp_path}", "validation"))] == ["c", "a"]
    with pytest.raises(DataError, match="has the splits train, validation but no 'test'; choose one of them"):
        open_images(f"prompts:{tmp_path}", "test")


def test_a_folder_without_a_table_shows_what_is_wanted(tmp_path):
    with pytest.raises(
        DataError, match=r"holds no metadata\.csv, metadata\.jsonl, metadata\.parquet, nor do its folders"
    ):
        open_images(f"prompts:{tmp_path}")
    with pytest.raises(DataError, match="'/no/such' does not exist; check the path after the colon"):
        open_images("prompts:/no/such")


def test_a_picture_is_opened_when_its_turn_comes_and_named_with_its_row(tmp_path):
    path = table(tmp_path, *PLAIN)
    (tmp_path / "pictures" / "blue.png").write_bytes(b"no picture")
    records = iter(open_images(f"prompts:{path}"))
    assert next(records).image_id == "birds/000000"
    with pytest.raises(
        DataError, match=r"row 3 of '.*birds\.csv', '.*pictures/blue\.png', cannot be read: .*; replace it"
    ):
        next(records)
    (tmp_path / "pictures" / "blue.png").unlink()
    with pytest.raises(DataError, match=r"row 3 of '.*birds\.csv', .* cannot be read: .*No such file"):
        list(open_images(f"prompts:{path}"))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png"])
def test_a_row_cannot_name_a_file_elsewhere(tmp_path, name):
    source = open_images(f"prompts:{table(tmp_path, *PLAIN, f'a bird,{name}')}")
    with pytest.raises(DataError, match=r"row 5 of .* names the file .*; write a path inside the table's own folder"):
        list(source.pictures([3]))


@pytest.mark.parametrize("cell", [None, 7, {"bytes": None, "path": None}, {"bytes": b"", "path": None}], ids=str)
def test_a_row_without_a_picture_is_named(tmp_path, cell):
    path = tmp_path / "x.parquet"
    image = pa.array([cell] * 2) if not isinstance(cell, dict) else pa.array(
        [cell] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )  # fmt: skip
    pq.write_table(pa.table({"prompt": ["a", "a"], "image": image}), path)
    with pytest.raises(DataError, match=r"row 0 of .* holds .* where a picture or its file is wanted; mend or drop"):
        list(open_images(f"prompts:{path}"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("prompt", "a", "a"), "has the columns prompt; wanted is one of image, img, file, file_name"),
        (("prompt,file,id", "a,1.png,x", "b,2.png,y", "a,3.png,x"), r"row 4 of .* has the id 'x' of row 2 of"),
        (("prompt,file", "a,1.png", ",2.png"), "row 3 of .* has no prompt"),
        (("prompt,file", "a,1.png", "b,2.png"), "each of the 2 rows of .* has a concept of its own"),
        (("prompt,file",), "has no rows"),
    ],
)
def test_a_table_that_cannot_be_used_says_so_when_it_is_opened(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        open_images(f"prompts:{table(tmp_path, *rows)}")


def test_a_table_that_changes_under_a_reader_is_noticed(tmp_path):
    path = table(tmp_path, *PLAIN)
    source = open_images(f"prompts:{path}")
    path.write_text(path.read_text().replace("a cat", "a dog"))
    with pytest.raises(DataError, match=r"row 3 of .* has changed since the table was opened; open it again"):
        list(source.labels())
