from __future__ import annotations

import shutil

import pytest
import torch

from vqcortex.editing.protocol import Task
from vqcortex.errors import ConfigError
from vqcortex.judges import load_judges
from vqcortex.pipelines.loaded import EXPLAINED, load_all
from vqcortex.pipelines.means import choosers_of, code_places, footprint_of, live_codes, open_means, place_of
from vqcortex.pipelines.study import Study


def test_choosers_are_the_extractors_or_whoever_is_named(toy_study):
    loaded, judges = load_all(toy_study, "cpu"), load_judges("toy")
    assert list(choosers_of((), loaded, judges, loaded.concepts)) == ["conv8", "pictures"]
    found = choosers_of(("judge:soft", "conv8"), loaded, judges, loaded.concepts)
    embedded = loaded.model.embed(loaded.store.read(0).tokens[:3])
    torch.testing.assert_close(found["judge:soft"](embedded), judges[0](loaded.model.decode(embedded)))
    calibrated = (loaded.trained.module(embedded) / loaded.trained.temperature).log_softmax(1)
    torch.testing.assert_close(found["conv8"](embedded), calibrated)
    with pytest.raises(ConfigError, match=r"nobody called 'soft' .*: conv8, pictures, judge:soft, judge:hard"):
        choosers_of(("soft",), loaded, judges, loaded.concepts)


def test_codes_are_counted_where_they_stand_in_explained_images(toy_study):
    store = load_all(toy_study, "cpu").store
    found = code_places(store, [2, 5])
    wanted = torch.zeros(8, 4, 4, dtype=torch.int64)
    for number in range(len(store.shards)):
        batch = store.read(number)
        for grid, concept, split in zip(batch.tokens, batch.concept.tolist(), batch.split, strict=True):
            if concept == 5 and split in EXPLAINED:
                wanted.scatter_add_(0, grid[None], torch.ones_like(grid[None]))
    assert torch.equal(found[5], wanted)


def test_what_the_study_has_not_made_yet_is_left_out(toy_study, tmp_path):
    loaded = load_all(toy_study, "cpu")
    alive = live_codes(loaded)
    full = open_means(toy_study, loaded, [1, 4], alive, tuple(choosers_of((), loaded, (), loaded.concepts).values()))
    assert set(full.listed) == set(full.places) == set(full.effects) == {1, 4}
    shutil.copytree(toy_study.folder, tmp_path / "copy")
    for stage in ("concepts", "traverse"):
        shutil.rmtree(tmp_path / "copy" / stage)
    bare = open_means(Study(tmp_path / "copy"), loaded, [1, 4], alive)
    assert not bare.listed
    assert not bare.effects
    assert bare.search is None


def test_the_search_that_is_wired_in_stays_in_its_region_and_finds_the_target(toy_study):
    loaded = load_all(toy_study, "cpu")
    choosers = tuple(choosers_of((), loaded, (), loaded.concepts).values())
    means = open_means(toy_study, loaded, [1], live_codes(loaded), choosers, budget=60)
    batch = next(loaded.store.batches(2, split="test", concept=4))
    free = torch.zeros(4, 4, dtype=torch.bool)
    free[:3] = True
    task = Task(
        tokens=batch.tokens, free=free.expand(2, -1, -1), source=batch.concept, target=torch.tensor([1, 1]),
        image_ids=batch.image_ids,
    )  # fmt: skip
    found = means.search(task, free)
    assert torch.equal(found[:, 3], batch.tokens[:, 3])
    assert (found[:, :3] == 1).sum() > (batch.tokens[:, :3] == 1).sum()


def test_the_toy_decoder_has_no_footprint(toy_study):
    loaded = load_all(toy_study, "cpu")
    assert footprint_of(loaded, live_codes(loaded), 0).radius() == 0
    assert place_of(loaded.model).grid == (4, 4)
