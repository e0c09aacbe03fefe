"""Three ways into the store: generate, encode, import; made again when what they read has changed."""

import gzip
import io
import shutil
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from engines import Pickling, Watched
from PIL import Image

from vqcortex.adapters import load_model
from vqcortex.errors import ConfigError, DataError, StoreError, TokenError
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.pipelines.study import Study
from vqcortex.pipelines.tokens import make_tokens
from vqcortex.tokens.store import open_store


def settings(out, **changed) -> TokensSettings:
    return TokensSettings(**{"out": out, "model": "toy", "per_concept": 10, "shard": 30, **changed})


@pytest.fixture
def folder_of_images(tmp_path):
    """12 red and 12 blue images in torchvision's ImageFolder layout."""
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[4:12, 4:12, channel] = 250
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number:02}.png")
    return tmp_path / "images"


def test_generated_images_are_split_evenly_within_each_concept(tmp_path):
    store = make_tokens(settings(tmp_path / "s"))
    assert len(store) == 80
    for concept in range(8):
        counts = [store.count(split, concept) for split in ("train", "validation", "test")]
        assert counts == [7, 1, 2]


def test_shards_and_batches_change_no_image(tmp_path):
    one = make_tokens(settings(tmp_path / "a", shard=1000, batch=3))
    two = make_tokens(settings(tmp_path / "b", shard=7, batch=50))
    a, b = (torch.cat([part.tokens for part in store.batches(11)]) for store in (one, two))
    assert torch.equal(a, b)


def test_more_images_begin_with_the_same_ones(tmp_path):
    few = make_tokens(settings(tmp_path / "few"))
    more = make_tokens(settings(tmp_path / "more", per_concept=20))
    first = next(more.batches(80))
    assert torch.equal(first.tokens, next(few.batches(80)).tokens)


def test_real_images_are_encoded(tmp_path, folder_of_images):
    store = make_tokens(settings(tmp_path / "s", images=f"imagefolder:{folder_of_images}"))
    assert store.manifest.concepts == ("blue", "red")
    assert len(store) == 20
    batch = next(store.batches(100, split="train", concept=1))
    model = load_model("toy")
    pixels = torch.from_numpy(np.asarray(Image.open(folder_of_images / "red" / "00.png")).copy()).permute(2, 0, 1) / 255
    assert torch.equal(model.encode(pixels[None])[0], batch.tokens[0])


def test_pictures_can_travel_with_the_tokens(tmp_path):
    store = make_tokens(settings(tmp_path / "s", pictures=True, concepts=("red", "blue")))
    batch = next(store.batches(3))
    assert batch.images is not None
    assert batch.images[0][:4] == b"\x89PNG"


def test_published_data_is_imported_and_checked(tmp_path):
    model = load_model("toy:2x2")
    rng = np.random.default_rng(0)
    for split, rows in (("train", 30), ("val", 6), ("test", 6)):
        lines = ["filename,label,tokens"]
        for number in range(rows):
            ids = rng.integers(0, 8, 4).tolist()
            lines.append(f'{number}_{split}.npy,{number % 3},"{ids}"')
        (tmp_path / f"{split}_embeddings.csv").write_text("\n".join(lines) + "\n")
    store = make_tokens(settings(tmp_path / "s", model="toy:2x2", published=tmp_path))
    assert len(store) == 42
    assert store.count("validation") == 6
    assert model.grid == store.manifest.grid


def test_published_ids_outside_the_codebook_are_refused(tmp_path):
    (tmp_path / "train_embeddings.csv").write_text('filename,label,tokens\na.npy,0,"[0, 1, 2, 8]"\n')
    with pytest.raises(TokenError, match=r"8"):
        make_tokens(settings(tmp_path / "s", model="toy:2x2", published=tmp_path))


def test_an_unknown_concept_says_what_was_meant(tmp_path):
    with pytest.raises(ConfigError, match=r"has no concept 'rad'; it has: .*Did you mean 'red'"):
        make_tokens(settings(tmp_path / "s", concepts=("rad", "blue")))


def test_a_broken_image_is_named(tmp_path, folder_of_images):
    (folder_of_images / "red" / "03.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"03\.png"):
        make_tokens(settings(tmp_path / "s", images=f"imagefolder:{folder_of_images}"))


def test_a_folder_without_classes_says_what_is_wanted(tmp_path):
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match="has no class folders and no pictures"):
        make_tokens(settings(tmp_path / "s", images=f"imagefolder:{tmp_path / 'flat'}"))
    (tmp_path / "flat" / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="at least 2 to tell apart: take more with --concepts, or a source that has"):
        make_tokens(settings(tmp_path / "s", images=f"imagefolder:{tmp_path / 'flat'}"))


def test_a_concept_without_images_is_named(tmp_path, folder_of_images):
    (folder_of_images / "green").mkdir()
    with pytest.raises((ConfigError, DataError), match="green"):
        make_tokens(settings(tmp_path / "s", images=f"imagefolder:{folder_of_images}"))


def test_an_altered_shard_is_made_again(tmp_path):
    store = make_tokens(settings(tmp_path / "s"))
    path = store.folder / store.shards[1].name
    before = path.read_bytes()
    path.write_bytes(before[:-10])
    with pytest.raises(StoreError, match="tokens-00001"):
        open_store(store.folder)
    make_tokens(settings(tmp_path / "s"))
    assert path.read_bytes() == before


def test_images_of_no_interest_are_not_opened(tmp_path, folder_of_images):
    (folder_of_images / "red" / "11.png").write_bytes(b"not a picture, and the eleventh")
    (folder_of_images / "other").mkdir()
    (folder_of_images / "other" / "1.png").write_bytes(b"not a picture, and of another concept")
    store = make_tokens(settings(tmp_path / "s", images=f"imagefolder:{folder_of_images}", concepts=("red", "blue")))
    assert len(store) == 20


# --- what was read has changed ----------------------------------------------------------------------------------------


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # so that equal sizes make equal lengths
    return file.getvalue()


def as_folder(folder, pixels, labels, patch):
    for number, (one, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / f"concept{label}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(one))
    return f"imagefolder:{folder}", ("concept0", "concept1")


def as_parquet(folder, pixels, labels, patch):
    cells = [{"bytes": png(one), "path": None} for one in pixels]
    write_parquet(folder / "x.parquet", cells, labels)
    return f"parquet:{folder / 'x.parquet'}", ("0", "1")


def as_parquet_of_names(folder, pixels, labels, patch):
    cells = [{"bytes": None, "path": f"{number}.png"} for number in range(len(pixels))]
    write_parquet(folder / "x.parquet", cells, labels)
    for cell, one in zip(cells, pixels, strict=True):
        (folder / cell["path"]).write_bytes(png(one))
    return f"parquet:{folder}", ("0", "1")


def write_parquet(path, cells, labels):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(cells, kind), "label": pa.array(labels)}), path, row_group_size=5)


def idx(array) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_files(pixels, labels) -> dict[str, bytes]:
    grey = np.stack([one[..., 0] for one in pixels])
    return {
        "train-images-idx3-ubyte": idx(grey),
        "train-labels-idx1-ubyte": idx(np.array(labels, np.uint8)),
    }


def as_idx(folder, pixels, labels, patch):
    folder.mkdir(exist_ok=True)
    for name, content in idx_files(pixels, labels).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 0, mtime=0))
    return f"idx:{folder}", ("0", "1")


def as_torchvision(folder, pixels, labels, patch):
    pytest.importorskip("torchvision", reason="the vision extra is not installed")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in idx_files(pixels, labels).items():
        (raw / name).write_bytes(content)
        (raw / name.replace("train", "t10k")).write_bytes(content)
    patch.setenv("TORCHVISION_DATASETS", str(folder))
    return "torchvision:MNIST", ("0 - zero", "1 - one")


def as_hugging_face(folder, pixels, labels, patch):
    datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    cells = [{"bytes": png(one), "path": None} for one in pixels]
    made = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    patch.setattr(datasets, "load_dataset", lambda name, split: made)
    return "hf:birds", ("a", "b")


KINDS = [as_folder, as_parquet, as_parquet_of_names, as_idx, as_torchvision, as_hugging_face]
LABELS = [0] * 12 + [1] * 12


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.repeat(rng.integers(0, 256, (16, 16, 1), dtype=np.uint8), 3, 2) for _ in LABELS]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def encode(request, tmp_path, monkeypatch):
    """Write pictures as a source, make its tokens in one study, and tell how many images were made."""

    def make(pixels, labels=LABELS, **changed) -> int:
        images, concepts = request.param(tmp_path / "source", pixels, labels, monkeypatch)
        watched = Watched()
        make_tokens(settings(tmp_path / "s", images=images, concepts=concepts, **changed), engine=watched)
        return sum(map(len, watched.items))

    return make


def test_the_same_pictures_are_encoded_once(encode):
    assert encode(pictures()) == 20
    assert encode(pictures()) == 0


def test_another_picture_under_the_same_name_is_encoded_again(encode, tmp_path):
    before = pictures()
    encode(before)
    tokens = next(open_store(tmp_path / "s/tokens").batches(20)).tokens
    after = pictures()
    after[15] = 255 - after[15]
    assert encode(after) == 20
    changed = next(open_store(tmp_path / "s/tokens").batches(20)).tokens
    assert [row for row in range(20) if not torch.equal(tokens[row], changed[row])] == [13]


def test_a_picture_that_is_not_taken_may_change(encode):
    encode(pictures())
    after = pictures()
    after[11] = 255 - after[11]
    assert encode(after) == 0


def test_the_same_pictures_elsewhere_leave_the_same_provenance(tmp_path):
    for name in ("a", "b"):
        images, _ = as_folder(tmp_path / name, pictures(), LABELS, None)
        make_tokens(settings(tmp_path / f"study-{name}", images=images))
    one, other = (Study(tmp_path / f"study-{name}").record("tokens")["key"]["inputs"] for name in ("a", "b"))
    assert one == other


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_pictures_reach_other_processes(kind, tmp_path, monkeypatch, hashes):
    images, concepts = kind(tmp_path / "source", pictures(), LABELS, monkeypatch)
    for name, engine in (("a", Watched()), ("b", Pickling())):
        make_tokens(settings(tmp_path / name, images=images, concepts=concepts, batch=4, shard=6), engine=engine)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def publish(folder, tokens, arrays):
    """The published layout: ids in a CSV, and codes of the first images."""
    codes = load_model("toy:2x2").codebook
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = ["filename,label,tokens"]
        for row, ids in enumerate(tokens):
            lines.append(f'{row}_{split}.npy,{row % 2},"{ids}"')
            if row < arrays:
                np.save(folder / split / f"{row}_{split}.npy", codes[torch.tensor(ids)].T.reshape(3, 2, 2).numpy())
        (folder / f"{split}_embeddings.csv").write_text("\n".join(lines) + "\n")


def test_published_files_are_imported_again_when_their_content_changes(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 8, (12, 4)).tolist()
    made = []

    def imported():
        make_tokens(settings(tmp_path / "s", model="toy:2x2", published=tmp_path / "published"))
        made.append(Study(tmp_path / "s").record("tokens")["key"]["inputs"]["published"])
        return next(open_store(tmp_path / "s/tokens").batches(1)).tokens[0].flatten().tolist()

    publish(tmp_path / "published", tokens, arrays=4)
    assert imported() == tokens[0]
    assert imported() == tokens[0]
    tokens[0] = [(one + 1) % 8 for one in tokens[0]]
    publish(tmp_path / "published", tokens, arrays=4)
    assert imported() == tokens[0]
    np.save(tmp_path / "published/train/0_train.npy", np.ones((3, 2, 2), np.float32) / 3)
    with pytest.raises(DataError, match="is not made of this codebook"):
        imported()
    assert made[0] == made[1] != made[2]


# --- more images of each concept --------------------------------------------------------------------------------------


def by_name(folder) -> dict[str, tuple]:
    """Concept, split and tokens of every image."""
    found = {}
    for batch in open_store(folder / "tokens").batches(50):
        for name, concept, split, grid in zip(
            batch.image_ids, batch.concept.tolist(), batch.split, batch.tokens, strict=True
        ):
            found[name] = (concept, split, grid.flatten().tolist())
    return found


@pytest.fixture(params=["generated", "encoded"])
def grow(request, tmp_path):
    """Fill a study with so many images of each concept and return what was made."""
    many = [(255 - one, label) for one, label in zip(pictures(), LABELS, strict=True)]
    many = [*zip(pictures(), LABELS, strict=True), *many]
    as_folder(tmp_path / "images", [one for one, _ in many], [label for _, label in many], None)
    images = f"imagefolder:{tmp_path / 'images'}" if request.param == "encoded" else None
    concepts = () if images else ("red", "blue")

    def make(number: int, out: str = "s", last: int | None = None, **changed) -> list:
        engine, shard = Watched(last), {"shard": 6, **changed}
        make_tokens(
            settings(tmp_path / out, images=images, concepts=concepts, per_concept=number, **shard), engine=engine
        )
        return [one.image_id for piece in engine.items for one in piece]

    return make


def test_more_images_of_each_concept_are_appended(grow, tmp_path):
    grow(10)
    before = by_name(tmp_path / "s")
    files = {path.name: path.read_bytes() for path in (tmp_path / "s/tokens").glob("*.parquet")}
    made = grow(24)
    assert len(made) == 28
    assert not set(made) & set(before)
    for name, content in files.items():
        assert (tmp_path / "s/tokens" / name).read_bytes() == content


def test_a_grown_store_holds_the_images_of_a_fresh_one(grow, tmp_path):
    for number in (10, 11, 24):
        grow(number)
    grow(24, "fresh")
    assert by_name(tmp_path / "s") == by_name(tmp_path / "fresh")
    assert open_store(tmp_path / "s/tokens").manifest.origin == open_store(tmp_path / "fresh/tokens").manifest.origin
    assert grow(24) == []


def test_growing_changes_what_later_stages_read(grow, tmp_path):
    grow(10)
    before = Study(tmp_path / "s").fingerprint("tokens")
    grow(11)
    assert Study(tmp_path / "s").fingerprint("tokens") != before


@pytest.mark.parametrize("last", [0, 1, 3])
def test_a_store_killed_while_growing_goes_on_to_the_same_bytes(grow, tmp_path, hashes, last):
    for out in ("s", "whole"):
        grow(10, out)
    with pytest.raises(KeyboardInterrupt):
        grow(24, last=last)
    assert len(grow(24)) == 28 - 6 * last
    grow(24, "whole")
    assert hashes(tmp_path / "s") == hashes(tmp_path / "whole")


def test_a_store_killed_while_growing_can_be_asked_for_still_more(grow, tmp_path):
    grow(10)
    with pytest.raises(KeyboardInterrupt):
        grow(20, last=2)
    assert len(grow(24)) == 28 - 12
    grow(24, "fresh")
    assert by_name(tmp_path / "s") == by_name(tmp_path / "fresh")


def test_a_store_killed_while_growing_can_be_asked_for_fewer_again(grow, tmp_path, hashes):
    grow(10, "fresh")
    grow(10)
    with pytest.raises(KeyboardInterrupt):
        grow(24, last=2)
    grow(10)
    assert hashes(tmp_path / "s") == hashes(tmp_path / "fresh")


def test_fewer_images_make_a_store_anew(grow, tmp_path, hashes):
    grow(24)
    assert len(grow(10)) == 20
    grow(10, "fresh")
    assert hashes(tmp_path / "s") == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("changed", [{"seed": 1}, {"shard": 7}, {"pictures": True}], ids=str)
def test_more_images_under_another_setting_make_a_store_anew(grow, changed):
    grow(10)
    assert len(grow(24, **changed)) == 48


def test_an_altered_store_is_not_added_to(grow, tmp_path):
    grow(10)
    path = tmp_path / "s/tokens/tokens-00001.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert len(grow(24)) == 48


def test_a_store_of_other_versions_is_not_added_to(grow, monkeypatch):
    monkeypatch.setattr("vqcortex.tokens.manifest.RECORDED", ("numpy",))
    grow(10)
    monkeypatch.undo()
    assert len(grow(24)) == 48


def test_a_source_whose_first_images_have_changed_is_not_added_to(tmp_path, folder_of_images):
    images = f"imagefolder:{folder_of_images}"
    make_tokens(settings(tmp_path / "s", images=images))
    shutil.copy(folder_of_images / "red/01.png", folder_of_images / "red/00.png")
    watched = Watched()
    make_tokens(settings(tmp_path / "s", images=images, per_concept=12), engine=watched)
    assert sum(map(len, watched.items)) == 24
