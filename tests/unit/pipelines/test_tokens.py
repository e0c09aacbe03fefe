"""Three ways into the store: generate, encode, import."""

import numpy as np
import pytest
import torch
from PIL import Image

from vqcortex.adapters import load_model
from vqcortex.errors import ConfigError, DataError, StoreError, TokenError
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.pipelines.tokens import choose, make_tokens
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


def test_one_concept_is_too_few():
    with pytest.raises(ConfigError, match=r"1 concept\(s\) chosen"):
        choose(["a"], ["a", "b"], "it")


def test_a_broken_image_is_named(tmp_path, folder_of_images):
    (folder_of_images / "red" / "03.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"03\.png"):
        make_tokens(settings(tmp_path / "s", images=f"imagefolder:{folder_of_images}"))


def test_a_folder_without_classes_says_what_is_wanted(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="class"):
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
