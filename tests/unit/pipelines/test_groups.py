"""Groups are read from stores, pictures and generators; what is wrong is told before anything is read."""

import numpy as np
import pytest
import torch
from PIL import Image

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.engine.carried import Carried
from vqcortex.errors import ConfigError, DataError, StoreError
from vqcortex.pipelines.groups import Grids, named_places, open_group, read_group
from vqcortex.pipelines.tokens import model_at
from vqcortex.tokens.store import open_store

MODEL = ToyAdapter()
CARRIED = Carried(MODEL, model_at, "toy", "cpu", MODEL.identity)


def read(name, place, most=20, **changed):
    group = open_group(name, place, MODEL, most, "train")
    return read_group(group, CARRIED, **{"seed": 0, "batch": 7, **changed})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for number, (name, colour) in enumerate([("red", (255, 0, 0)), ("green", (0, 255, 0))]):
        (root / name).mkdir()
        for index in range(3 + number):
            Image.fromarray(np.full((16, 16, 3), colour, np.uint8)).save(root / name / f"{index}.png")
    return root


def test_names_and_places_are_taken_apart():
    assert named_places(["a=toy", "b=parquet:x=y.parquet"]) == {"a": "toy", "b": "parquet:x=y.parquet"}
    with pytest.raises(ConfigError, match=r"1 attribute group\(s\) given"):
        named_places(["a=x"])
    with pytest.raises(ConfigError, match="group 'nothing' must be NAME=PLACE"):
        named_places(["nothing", "b=x"])
    with pytest.raises(ConfigError, match="group 'a' is given twice"):
        named_places(["a=x", "a=y"])
    with pytest.raises(ConfigError, match="called 'neutral'"):
        named_places(["a=x", "neutral=y"])


def test_a_group_that_is_drawn_has_images_of_its_own():
    one, other = read("one", "concept:red"), read("other", "concept:red")
    assert len(one) == 20
    assert one.labels is None
    assert not torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.tokens, read("one", "concept:red", batch=20).tokens)
    assert torch.equal(one.tokens[:5], read("one", "concept:red", most=5).tokens)


def test_pictures_are_encoded_with_their_folders_as_labels(pictures):
    found = read("all", f"imagefolder:{pictures}")
    assert sorted(found.labels) == ["green"] * 4 + ["red"] * 3
    chosen = read("some", f"imagefolder:{pictures}#green")
    assert len(chosen) == 4
    assert chosen.labels is None
    assert (chosen.tokens == MODEL.concepts.index("green")).all()


def test_flat_folders_are_groups_whose_names_are_no_labels(pictures):
    found = read("with", f"imagefolder:{pictures / 'green'}")
    assert len(found) == 4
    assert found.labels is None
    assert (found.tokens == MODEL.concepts.index("green")).all()


def test_a_study_gives_its_store_and_one_concept_of_it(toy_study):
    found = read("study", str(toy_study.folder), most=33)
    assert len(found) == 33
    assert set(found.labels) <= set(MODEL.concepts)
    store = open_store(toy_study.path("tokens"))
    red = read("red", f"{toy_study.folder}#red", most=1000)
    assert len(red) == store.count(concept=store.manifest.concepts.index("red"))


def test_what_decides_a_group_is_in_its_digest(pictures, toy_study):
    places = [
        f"imagefolder:{pictures}", f"imagefolder:{pictures}#red", "concept:red", "concept:blue", str(toy_study.folder),
        f"{toy_study.folder}#red",
    ]  # fmt: skip
    digests = [open_group("any", place, MODEL, most, "train").digest() for place in places for most in (10, 1)]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("place", "error", "why"),
    [
        ("concept:redd", ConfigError, r"model 'toy' has no concept 'redd'.*\n.*group=any"),
        ("imagefolder:/nowhere", DataError, "/nowhere"),
        ("nothing", DataError, "has no kind"),
    ],
)
def test_what_is_not_there_is_told_with_the_group(place, error, why):
    with pytest.raises(error, match=f"(?s){why}"):
        open_group("any", place, MODEL, 10, "train")


def test_an_unknown_concept_of_a_source_or_store_is_told(pictures, toy_study):
    for place in (f"imagefolder:{pictures}", toy_study.folder):
        with pytest.raises(ConfigError, match=f"{str(place)!r} has no concept 'mauve'; it has: "):
            open_group("any", f"{place}#mauve", MODEL, 10, "train")


def test_tokens_of_another_model_are_refused(toy_study):
    with pytest.raises(StoreError, match="was written with 'toy'"):
        open_group("any", str(toy_study.folder), ToyAdapter(grid=(2, 2), name="toy:2x2"), 10, "train")


def test_splits_go_by_place():
    grids = Grids(tokens=torch.zeros(20, 1, 1, dtype=torch.int32), image_ids=tuple(map(str, range(20))))
    assert grids.rows("test").tolist() == [8, 9, 18, 19]
    assert len(grids.rows("train", "validation")) == 16
