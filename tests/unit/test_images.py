from __future__ import annotations

import contextlib
import gzip
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vqcortex.errors import DataError, MissingExtra, UnknownName, VqCortexError
from vqcortex.images import SOURCES, Picture, load_pixels, open_images, read_idx
from vqcortex.images.hub import Rows
from vqcortex.images.source import RowNames, concepts_of, decoded, decoding, distinct, number_of

COLOURS = ("red", "green", "blue", "white")


def picture(colour="red", size=(6, 4), kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def colour_of(image: Image.Image) -> tuple[int, ...]:
    return image.convert("RGB").getpixel((0, 0))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_folder(folder: Path, labels=(3, 0, 9), stem="train", zipped=True) -> Path:
    images = np.arange(len(labels) * 20, dtype=np.uint8).reshape(len(labels), 4, 5)
    for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", np.array(labels))):
        content = idx_bytes(array)
        write(folder / (f"{name}.gz" if zipped else name), gzip.compress(content, mtime=0) if zipped else content)
    return folder


def parquet(path: Path, images: list, labels: list, column="image", metadata=None, **types) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = types.get("kind", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({column: pa.array(images, kind), "label": pa.array(labels)})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=100)
    return path


def cells(*colours: str) -> list[dict]:
    return [{"bytes": picture(colour), "path": None} for colour in colours]


def told(source) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(one.image_id, one.concept, colour_of(one.image)) for one in source]


def birds(folder: Path) -> Path:
    write(folder / "wren/b.png", picture("blue"))
    write(folder / "wren/deep/a.JPG", picture("white", kind="JPEG"))
    write(folder / "owl/1.png", picture("red"))
    write(folder / "owl/notes.txt", b"no picture")
    (folder / ".cache").mkdir()
    return folder


# --- opening ---------------------------------------------------------------------------------------------


def test_every_kind_of_source_is_listed_and_can_be_imported():
    assert list(SOURCES) == ["hf", "idx", "imagefolder", "parquet", "prompts", "torchvision"]
    assert all(callable(SOURCES[name]) for name in SOURCES)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("photos", DataError, r"image source 'photos' has no kind; write hf:\.\.\., .* as in 'imagefolder:photos'"),
        ("parquet:", DataError, "has no kind"),
        ("parquett:x", UnknownName, r"no image source named 'parquett'; known: .*\. Did you mean 'parquet'\?"),
        ("parquet:/no/such/file", DataError, "'/no/such/file' does not exist; check the path after the colon"),
        ("imagefolder:/no/such", DataError, "'/no/such' does not exist"),
        ("idx:/no/such", DataError, "'/no/such' does not exist"),
    ],
)
def test_a_source_that_is_none_says_what_is(source, error, words):
    with pytest.raises(error, match=words):
        open_images(source)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(
        DataError, match="split 'dev' is unknown to image sources; write one of: train, validation, test"
    ):
        open_images(f"imagefolder:{birds(tmp_path)}", "dev")


def many_sources(folder: Path):
    idx_folder(folder / "idx")
    birds(folder / "birds")
    parquet(folder / "x.parquet", cells("red", "blue"), [0, 1])
    return [f"idx:{folder / 'idx'}", f"imagefolder:{folder / 'birds'}", f"parquet:{folder / 'x.parquet'}"]


def test_every_source_keeps_its_promises(tmp_path):
    for name in many_sources(tmp_path):
        source = open_images(name)
        records = list(source)
        assert len(source) == len(records) == len(source.image_ids) > 0
        assert [one.image_id for one in records] == list(source.image_ids)
        assert len(set(source.image_ids)) == len(source)
        assert all(0 <= one.concept < len(source.concepts) for one in records)
        assert len(set(source.concepts)) == len(source.concepts)
        assert told(source) == told(open_images(name)), "a second look sees the same"


def test_every_source_tells_labels_and_gives_any_rising_rows(tmp_path):
    for name in many_sources(tmp_path):
        source = open_images(name)
        records = list(source)
        assert list(source.labels()) == [one.concept for one in records]
        for rows in ([], [len(source) - 1], range(0, len(source), 2), range(len(source))):
            found = [colour_of(picture.image()) for picture in source.pictures(rows)]
            assert found == [colour_of(records[row].image) for row in rows]


def test_pictures_of_many_row_groups_and_files_are_found(tmp_path):
    for number in range(3):
        path = tmp_path / f"train-{number}.parquet"
        images = cells(*(COLOURS[(number + row) % 4] for row in range(7)))
        table = pa.table({"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
        pq.write_table(table.append_column("label", pa.array([0] * 7)), path, row_group_size=3)
    pq.write_table(pq.read_table(path).slice(0, 0), tmp_path / "train-3.parquet")
    source = open_images(f"parquet:{tmp_path}")
    records = list(source)
    assert len(records) == 21
    for rows in ([0, 20], [6, 7, 13, 14], [2, 3, 8, 9, 10], range(21)):
        pictures = list(source.pictures(rows))
        assert [colour_of(one.image()) for one in pictures] == [colour_of(records[row].image) for row in rows]
        assert [one.place[:5] for one in pictures] == [f"row {row % 7}" for row in rows]


def test_a_picture_is_told_by_its_content_alone(tmp_path):
    red, blue = picture("red"), picture("blue")
    file = write(tmp_path / "a.png", red)
    assert Picture("here", red).digest() == Picture("there", file).digest() != Picture("here", blue).digest()
    write(file, blue)
    assert Picture("there", file).digest() == Picture("here", blue).digest()
    with pytest.raises(DataError, match=r"b.png cannot be read: .*; replace it or take it out"):
        Picture("b.png", tmp_path / "b.png").digest()


def test_pixels_are_told_by_size_mode_and_palette():
    plain = Image.new("L", (2, 3))
    palette = plain.convert("P")
    recoloured = palette.copy()
    recoloured.putpalette([255, 0, 0] + [0] * 765)
    others = [plain, Image.new("L", (3, 2)), Image.new("1", (2, 3)), palette, recoloured, Image.new("L", (2, 3), 1)]
    assert len({Picture("x", one).digest() for one in others}) == len(others)
    assert Picture("x", plain).digest() == Picture("y", plain.copy()).digest()


# --- idx -------------------------------------------------------------------------------------------------


def test_an_idx_folder_gives_grey_pictures_with_digits(tmp_path):
    source = open_images(f"idx:{idx_folder(tmp_path, stem='t10k')}", "test")
    assert source.concepts == tuple("0123456789")
    records = list(source)
    assert [one.image_id for one in records] == ["test/000000", "test/000001", "test/000002"]
    assert [one.concept for one in records] == [3, 0, 9]
    assert np.array_equal(np.asarray(records[1].image), np.arange(20, 40).reshape(4, 5))


def test_an_idx_folder_called_fashion_holds_garments(tmp_path):
    source = open_images(f"idx:{idx_folder(tmp_path / 'Fashion-MNIST')}")
    assert (source.concepts[0], source.concepts[9], len(source.concepts)) == ("T-shirt/top", "Ankle boot", 10)


def test_more_than_ten_labels_are_all_named(tmp_path):
    assert open_images(f"idx:{idx_folder(tmp_path / 'fashion', labels=(1, 25))}").concepts[25] == "25"


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", gzip.compress(b"ab", mtime=0), gzip.compress(b"\0\0\x08\x03\0\0", mtime=0)],
    ids=["empty", "no gzip", "too short", "no sizes"],
)
def test_an_idx_file_that_is_none_is_named(tmp_path, content):
    idx_folder(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz' is not a whole idx file"):
        read_idx(tmp_path, "train")


def test_a_truncated_idx_file_is_named(tmp_path):
    path = idx_folder(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"is not a whole idx file"):
        read_idx(tmp_path, "train")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(DataError, match=r"holds 59 bytes but its header promises 60; fetch it again"):
        read_idx(tmp_path, "train")


def test_idx_images_and_labels_must_agree(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.array([1, 2]))))
    with pytest.raises(DataError, match=r"holds images \(3, 4, 5\) but labels \(2,\)"):
        read_idx(tmp_path, "train")
    with pytest.raises(DataError, match="split 'validation' is unknown to idx folders; write one of: train, test"):
        open_images(f"idx:{tmp_path}", "validation")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz' does not exist; an idx folder holds the four"):
        open_images(f"idx:{tmp_path}", "test")


# --- imagefolder -----------------------------------------------------------------------------------------


def test_an_image_folder_is_read_class_by_class_in_order(tmp_path):
    source = open_images(f"imagefolder:{birds(tmp_path)}")
    assert source.concepts == ("owl", "wren")
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    assert told(source) == [("owl/1.png", 0, red), ("wren/b.png", 1, blue), ("wren/deep/a.JPG", 1, white)]


def test_splits_are_folders_and_count_their_classes_alike(tmp_path):
    write(tmp_path / "train/owl/1.png", picture("red"))
    write(tmp_path / "train/wren/1.png", picture("green"))
    write(tmp_path / "val/wren/2.png", picture("blue"))
    source = open_images(f"imagefolder:{tmp_path}", "validation")
    assert source.concepts == ("owl", "wren")
    assert told(source) == [("val/wren/2.png", 1, (0, 0, 255))]
    assert list(open_images(f"imagefolder:{tmp_path}").image_ids) == ["train/owl/1.png", "train/wren/1.png"]
    with pytest.raises(DataError, match="has the splits train, validation but no 'test'; choose one of them"):
        open_images(f"imagefolder:{tmp_path}", "test")


def test_a_folder_without_splits_has_no_test_images(tmp_path):
    with pytest.raises(
        DataError, match=r"not divided into splits, so it has no 'test'; move its pictures to train/CLASS/"
    ):
        open_images(f"imagefolder:{birds(tmp_path)}", "test")


def test_a_folder_without_class_folders_shows_the_layout_wanted(tmp_path):
    write(tmp_path / "flat/1.txt", b"x")
    with pytest.raises(DataError, match=r"flat' has no class folders and no .* flat/cat/1.png and flat/dog/2.png"):
        open_images(f"imagefolder:{tmp_path / 'flat'}")
    write(tmp_path / "texts/class/1.txt", b"x")
    with pytest.raises(DataError, match=r"the folders in .*texts' hold no pictures; wanted: .bmp, .jpeg"):
        open_images(f"imagefolder:{tmp_path / 'texts'}")
    with pytest.raises(DataError, match="has no class folders"):
        open_images(f"imagefolder:{tmp_path / 'flat/1.txt'}")


def test_a_flat_folder_is_one_concept_called_as_it_is(tmp_path):
    write(tmp_path / "marked/b.png", picture("red"))
    write(tmp_path / "marked/a.JPG", picture("blue"))
    write(tmp_path / "marked/notes.txt", b"x")
    source = open_images(f"imagefolder:{tmp_path / 'marked'}")
    assert source.concepts == ("marked",)
    assert told(source) == [("a.JPG", 0, (0, 0, 255)), ("b.png", 0, (255, 0, 0))]
    assert source.is_flat
    assert not open_images(f"imagefolder:{tmp_path}").is_flat
    with pytest.raises(DataError, match="not divided into splits, so it has no 'test'"):
        open_images(f"imagefolder:{tmp_path / 'marked'}", "test")


@pytest.mark.parametrize("content", [b"", b"not a picture", picture()[:40], picture()[:50], picture(kind="JPEG")[:200]])
def test_a_broken_picture_is_named_when_its_turn_comes(tmp_path, content):
    write(birds(tmp_path) / "wren/a.png", content)
    source = iter(open_images(f"imagefolder:{tmp_path}"))
    assert next(source).image_id == "owl/1.png"
    with pytest.raises(DataError, match=r"wren/a.png cannot be read: .*; replace it or take it out"):
        next(source)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_damage_to_a_picture_decodes_or_says_why(data):
    content = bytearray(picture(kind=data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    why = "x.png cannot be read: "
    # Pillow warns about a size that is only suspicious, and warnings are errors here.
    with contextlib.suppress(Warning):
        try:
            with decoding("x.png"):
                assert decoded(bytes(content)).size > (0, 0)
        except VqCortexError as error:
            why = str(error)
    assert why.startswith("x.png cannot be read: ")


def test_a_name_that_is_no_utf8_still_makes_an_id(tmp_path):
    try:
        write(tmp_path / "owl" / "caf\udce9.png", picture())
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    assert list(open_images(f"imagefolder:{tmp_path}").image_ids) == ["owl/caf\\xe9.png"]


# --- parquet ---------------------------------------------------------------------------------------------


def test_a_parquet_file_is_read_row_by_row(tmp_path):
    path = parquet(tmp_path / "birds.parquet", cells("red", "blue"), [2, 0])
    source = open_images(f"parquet:{path}", "test")
    assert source.concepts == ("0", "1", "2")
    assert told(source) == [("birds/000000", 2, (255, 0, 0)), ("birds/000001", 0, (0, 0, 255))]


def test_texts_are_concepts_in_order_and_plain_bytes_are_pictures(tmp_path):
    path = parquet(tmp_path / "x.parquet", [picture("red"), picture("blue")], ["wren", "owl"], "img", kind=pa.binary())
    source = open_images(f"parquet:{path}")
    assert source.concepts == ("owl", "wren")
    assert [one.concept for one in source] == [1, 0]


def test_concept_names_that_datasets_wrote_are_used(tmp_path):
    names = '{"info": {"features": {"label": {"names": ["owl", "wren"], "_type": "ClassLabel"}}}}'
    path = parquet(tmp_path / "x.parquet", cells("red"), [1], metadata={"huggingface": names})
    assert open_images(f"parquet:{path}").concepts == ("owl", "wren")


@pytest.mark.parametrize(
    "names", [("train-00000-of-00002", "train-00001-of-00002", "test-0"), ("train/0", "train/1", "test/0")]
)
def test_a_folder_of_shards_is_one_source_per_split(tmp_path, names):
    for number, name in enumerate(names):
        parquet(tmp_path / f"{name}.parquet", cells(COLOURS[number]), [number])
    train, test = (open_images(f"parquet:{tmp_path}", split) for split in ("train", "test"))
    assert train.concepts == test.concepts == ("0", "1", "2")
    assert told(train) == [("train/000000", 0, (255, 0, 0)), ("train/000001", 1, (0, 128, 0))]
    assert told(test) == [("test/000000", 2, (0, 0, 255))]
    with pytest.raises(DataError, match=r"has no 'validation' files, only '.*', ...; name them validation\*.parquet"):
        open_images(f"parquet:{tmp_path}", "validation")


def test_a_folder_of_unnamed_shards_is_all_train(tmp_path):
    for number in (0, 1):
        parquet(tmp_path / f"{number:04d}.parquet", cells("red"), [0])
    assert list(open_images(f"parquet:{tmp_path}").image_ids) == ["train/000000", "train/000001"]
    with pytest.raises(DataError, match="has no 'test' files"):
        open_images(f"parquet:{tmp_path}", "test")


def test_a_picture_may_lie_beside_the_file_but_not_outside_its_folder(tmp_path):
    write(tmp_path / "in/pics/1.png", picture("blue"))
    write(tmp_path / "secret.png", picture("red"))
    path = parquet(
        tmp_path / "in/x.parquet",
        [{"bytes": None, "path": "pics/1.png"}, {"bytes": None, "path": "../secret.png"}],
        [0, 0],
    )
    source = iter(open_images(f"parquet:{path}"))
    assert colour_of(next(source).image) == (0, 0, 255)
    with pytest.raises(
        DataError, match=r"its bytes are None and its path '../secret.png'; mend .*\n  while working on: image=row 1"
    ):
        next(source)


@pytest.mark.parametrize("cell", [{"bytes": b"", "path": None}, {"bytes": b"junk", "path": None}, None])
def test_a_broken_cell_is_named_by_row_and_file(tmp_path, cell):
    path = parquet(tmp_path / "x.parquet", [*cells("red"), cell], [0, 0])
    with pytest.raises(DataError, match=r"row 1 of '.*x.parquet'"):
        list(open_images(f"parquet:{path}"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, None], "labels such as None name no concepts; write texts only, or whole numbers 0 to 999999 only"),
        ([0, -1], "labels such as -1 name no concepts"),
        ([0, 10**9], "labels such as 1000000000 name no concepts"),
        ([0.5, 1.0], r"labels such as 0\.5, 1\.0 name no concepts"),
        (["owl", ""], "labels such as '', 'owl' name no concepts"),
    ],
)
def test_labels_that_name_no_concept_are_shown(tmp_path, labels, words):
    with pytest.raises(DataError, match=words):
        open_images(f"parquet:{parquet(tmp_path / 'x.parquet', cells('red', 'blue'), labels)}")


def test_a_label_beyond_the_names_is_refused_with_its_row(tmp_path):
    names = '{"info": {"features": {"label": {"names": ["owl"], "_type": "ClassLabel"}}}}'
    path = parquet(tmp_path / "x.parquet", cells("red", "red"), [0, 1], metadata={"huggingface": names})
    with pytest.raises(DataError, match=r"label 1 is none of the 1 concepts; mend or drop the row\n.*row 1 of"):
        list(open_images(f"parquet:{path}"))


def test_parquet_that_is_none_or_has_other_columns_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x.parquet cannot be read: .*; replace it"):
        open_images(f"parquet:{write(tmp_path / 'x.parquet', b'PAR1 not')}")
    pq.write_table(pa.table({"pixels": [1]}), tmp_path / "y.parquet")
    with pytest.raises(
        DataError, match=r"has the columns pixels; wanted are one of image, img and one of label, labels; rename"
    ):
        open_images(f"parquet:{tmp_path / 'y.parquet'}")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no .parquet file; give a file, or a folder of train\*.parquet files"):
        open_images(f"parquet:{tmp_path / 'none'}")


def test_reading_parquet_holds_some_rows_at_a_time(tmp_path):
    noise = [np.random.default_rng(row).bytes(20_000) for row in range(600)]
    images = [picture() + one for one in noise]  # Pillow ignores what follows a PNG
    path = parquet(tmp_path / "x.parquet", images, [0] * 600, kind=pa.binary())
    before, most = pa.total_allocated_bytes(), 0
    for _ in open_images(f"parquet:{path}"):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < sum(map(len, images)) / 2


# --- hf and torchvision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "package", "extra"), [("hf:x", "datasets", "hf"), ("torchvision:MNIST", "torchvision", "vision")]
)
def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch, source, package, extra):
    for name in [package, f"{package}.datasets"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"needs {package}; install it with: pip install 'vqcortex\[{extra}\]'"):
        open_images(source)


def test_a_hugging_face_set_is_read_with_its_names(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        image=datasets.Image(), extra=datasets.Value("string"), label=datasets.ClassLabel(names=["owl", "wren"])
    )
    rows = {"image": [*cells("red"), {"bytes": b"junk", "path": None}], "extra": ["", ""], "label": [1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: {("birds", "test"): made}[name, split])
    source = open_images("hf:birds", "test")
    assert (source.concepts, len(source)) == (("owl", "wren"), 2)
    records = iter(source)
    first = next(records)
    assert (first.image_id, first.concept, colour_of(first.image)) == ("test/000000", 1, (255, 0, 0))
    with pytest.raises(DataError, match=r"row 1 of 'hf:birds' cannot be read: .*; replace it"):
        next(records)
    with pytest.raises(DataError, match=r"cannot load 'hf:bird', split 'train': .*; check the name and the network"):
        open_images("hf:bird")


def test_a_hugging_face_set_without_pictures_is_refused(monkeypatch):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: made)
    with pytest.raises(DataError, match=r"'hf:texts' has the columns text; wanted are an Image, and a ClassLabel"):
        open_images("hf:texts")


def test_a_torchvision_set_is_read_from_the_folder_named_in_the_environment(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    idx_folder(tmp_path / "MNIST/raw", labels=(5, 1), stem="t10k", zipped=False)
    idx_folder(tmp_path / "MNIST/raw", labels=(4,), zipped=False)
    monkeypatch.setenv("TORCHVISION_DATASETS", str(tmp_path))
    source = open_images("torchvision:MNIST", "test")
    assert source.concepts[5] == "5 - five"
    assert [(one.image_id, one.concept, one.image.size) for one in source] == [
        ("test/000000", 5, (5, 4)),
        ("test/000001", 1, (5, 4)),
    ]
    assert list(source.labels()) == [5, 1]
    assert len(open_images("torchvision:MNIST")) == 1
    with pytest.raises(DataError, match="'torchvision:MNIST' has no 'validation' split; write one of: train, test"):
        open_images("torchvision:MNIST", "validation")


@pytest.mark.parametrize("targets", [None, [[0, 7], [1, 7]], [0]], ids=["no targets", "two numbers per row", "too few"])
def test_labels_that_a_torchvision_class_does_not_keep_are_read_off_its_rows(tmp_path, monkeypatch, targets):
    torchvision = pytest.importorskip("torchvision")

    class Rows:
        classes = ("owl", "wren")

        def __init__(self, root):
            if targets is not None:
                self.targets = targets

        def __len__(self):
            return 2

        def __getitem__(self, row):
            return Image.new("RGB", (1, 1), COLOURS[row]), row

    monkeypatch.setenv("TORCHVISION_DATASETS", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "Flowers102", Rows)
    source = open_images("torchvision:Flowers102")
    assert list(source.labels()) == [0, 1]
    assert [one.concept for one in source] == [0, 1]


def test_a_torchvision_set_that_cannot_be_had_says_where_to_put_it(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    class Offline:
        def __init__(self, root, split, download):
            raise RuntimeError(f"no network for {split}\nat all")

    monkeypatch.setenv("TORCHVISION_DATASETS", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "Flowers102", Offline)
    with pytest.raises(
        DataError, match=r"'torchvision:Flowers102', split 'validation': no network for val; put its files below"
    ):
        open_images("torchvision:Flowers102", "validation")


def test_an_unknown_torchvision_set_is_met_with_a_suggestion():
    pytest.importorskip("torchvision")
    with pytest.raises(
        UnknownName, match=r"torchvision.datasets has no 'FashionMNST'; .* Did you mean 'FashionMNIST'\?"
    ):
        open_images("torchvision:FashionMNST")


def test_a_librarys_own_pictures_are_passed_on():
    source = Rows(
        "'x'", RowNames("train", 2), ("a",), lambda: [0, 0], lambda row: Image.new("RGB", (1, 1), COLOURS[row])
    )
    assert [colour_of(one.image) for one in source] == [(255, 0, 0), (0, 128, 0)]


# --- what they share -------------------------------------------------------------------------------------


def test_row_names_are_made_when_asked_for():
    names = RowNames("test", 1_000_000_000)
    assert (names[0], names[-1], names[5:7]) == ("test/000000", "test/999999999", ["test/000005", "test/000006"])
    assert sys.getsizeof(names) < 200
    with pytest.raises(IndexError, match="out of range"):
        names[1_000_000_000]


def test_names_that_occur_twice_are_told_apart():
    assert distinct(["crane", "owl", "crane", "crane"]) == ("crane", "owl", "crane (2)", "crane (3)")


@given(st.lists(st.integers(0, 50), min_size=1))
@settings(deadline=None)
def test_every_label_has_a_concept_and_a_number_keeps_its_value(labels):
    names = concepts_of(labels)
    number = {name: place for place, name in enumerate(names)}
    assert [number_of(label, number) for label in labels] == labels
    assert [names[label] for label in labels] == [str(label) for label in labels]


def test_no_labels_are_an_error():
    with pytest.raises(DataError, match="labels such as none at all name no concepts"):
        concepts_of([])


def test_pixels_are_rgb_rows_by_columns_in_zero_to_one():
    image = Image.new("RGB", (3, 2), "black")
    image.putpixel((2, 0), (255, 0, 51))
    pixels = load_pixels(image, (2, 3))
    assert pixels.shape == (3, 2, 3)
    assert pixels[:, 0, 2].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert float(pixels.sum()) == pytest.approx(1.2)


def test_a_picture_of_the_right_size_is_not_resampled():
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert torch.equal(load_pixels(Image.fromarray(values), (5, 7)), torch.from_numpy(values).permute(2, 0, 1) / 255)


def test_shrinking_is_antialiased():
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    small = load_pixels(Image.fromarray(stripes), (4, 4))
    assert 0.4 < float(small.min()) <= float(small.max()) < 0.6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    pixels = load_pixels(Image.new("RGB", (2, 2), "white").convert(mode), (2, 2))
    torch.testing.assert_close(pixels, torch.ones(3, 2, 2))


def test_sixteen_bits_are_scaled_and_not_clipped():
    image = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert load_pixels(image, (1, 3))[0, 0].tolist() == pytest.approx([0, 128 / 255, 1])


def test_one_channel_is_grey():
    assert load_pixels(Image.new("RGB", (2, 2), "white"), (3, 3), channels=1).shape == (1, 3, 3)
