"""What stages share."""

import pickle

import pytest
import torch
from leveled import study_of

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import StudyError
from vqcortex.pipelines.loaded import (
    Scored,
    carry,
    code_counts,
    first_images,
    load_all,
    load_at,
    read_scores,
    scored_shards,
    write_scores,
)
from vqcortex.tokens.store import open_store


def test_scores_survive_the_disk(tmp_path):
    one = Scored(("a", "b"), {"tis": torch.rand(2, 3, 2)}, torch.tensor([0.25, 0.5]))
    write_scores(one, tmp_path / "s.parquet")
    back = read_scores(tmp_path / "s.parquet", (3, 2))
    assert back.image_ids == one.image_ids
    assert torch.equal(back.importance["tis"], one.importance["tis"])
    assert torch.equal(back.probability, one.probability)


def test_torn_scores_are_named(tmp_path):
    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    with pytest.raises(StudyError, match=r"scores .*s\.parquet.* cannot be read"):
        read_scores(tmp_path / "s.parquet", (3, 2))


def test_counts_of_codes_match_a_naive_loop(toy_study):
    store = open_store(toy_study.path("tokens"))
    counts = code_counts(store, ("train", "test"))
    naive = torch.zeros(8, 8, dtype=torch.int64)
    for batch in store.batches(50):
        for concept, split, grid in zip(batch.concept.tolist(), batch.split, batch.tokens, strict=True):
            for code in grid.flatten().tolist() if split != "validation" else []:
                naive[concept, code] += 1
    assert torch.equal(counts, naive)


def test_only_the_wanted_splits_come_with_their_scores(toy_study):
    store = open_store(toy_study.path("tokens"))
    seen = [name for batch, _ in scored_shards(toy_study, store, ("test",)) for name in batch.split]
    assert seen == ["test"] * 48


def test_a_study_is_carried_by_its_folder_and_what_it_holds(toy_study):
    loaded = load_all(toy_study, "cpu")
    there = pickle.loads(pickle.dumps(carry(toy_study, "cpu", loaded))).value
    assert there.store.manifest == loaded.store.manifest
    assert there.model.identity == loaded.model.identity
    assert there.trained.identity == loaded.trained.identity


def test_work_for_another_state_of_a_study_is_refused(toy_study):
    with pytest.raises(StudyError, match=r"stage 'tokens' of study .* is not the one that work was given out for"):
        load_at(toy_study.folder, "cpu", "other", toy_study.fingerprint("train"))


@pytest.mark.parametrize(("most", "counts"), [(48, [6] * 8), (20, [2] * 8), (4, [1, 0, 1, 0, 1, 0, 1, 0])])
def test_first_images_are_spread_over_the_concepts(toy_study, most, counts):
    images = first_images(open_store(toy_study.path("tokens")), "test", most)
    assert images.concept.bincount(minlength=8).tolist() == counts
    assert set(images.split) == {"test"}


def test_a_split_without_images_is_told(tmp_path):
    study = study_of(tmp_path / "s", ToyAdapter(), [torch.zeros(4, 4, 4, dtype=torch.long)])
    with pytest.raises(StudyError, match="has no test images; make more with --per-concept"):
        first_images(open_store(study.path("tokens")), "test", 8)
