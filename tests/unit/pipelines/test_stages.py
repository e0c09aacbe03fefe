"""What each stage leaves behind, on the toy world."""

import math

import pytest
import torch
from safetensors.torch import load_file

from vqcortex.errors import ConfigError, ModelError
from vqcortex.judges import load_judges
from vqcortex.pipelines.concepts import concept_lists, load_maps
from vqcortex.pipelines.evaluate import OrderedJudge, counts_at, digest, images_to_judge, judges_at
from vqcortex.pipelines.exhibit import gather
from vqcortex.pipelines.loaded import EXPLAINED, code_counts, load_all
from vqcortex.pipelines.models import list_models, list_registries
from vqcortex.pipelines.search import load_found, read_pairs, read_region
from vqcortex.pipelines.settings import ScoreSettings


def test_scores_hold_the_chosen_and_the_published_method(toy_study):
    import pyarrow.parquet as pq

    names = pq.read_schema(toy_study.path("score") / "scores-00000.parquet").names
    assert names == ["image_id", f"importance:{ScoreSettings().method}", "importance:tis", "probability"]


def test_maps_and_labels_have_the_study_s_shapes(toy_study):
    maps = load_maps(toy_study)
    assert maps["mean"].shape == (8, 4, 4)
    assert maps["labels"].shape == (8,)
    assert maps["images"].tolist() == [24] * 8


def test_lists_of_concept_tokens_are_in_order(toy_study):
    lists = concept_lists(toy_study, load_all(toy_study, "cpu").concepts, 3)
    first = toy_study.table("concept_tokens").where(concept="red", n=3)
    assert lists[4].tolist()[: len(first)] == [row["code"] for row in first]


def test_effects_cover_every_code_and_position_and_the_estimate_is_checked(toy_study):
    effect = load_file(toy_study.path("traverse") / "effects.safetensors")["effect"]
    assert effect.shape == (8, 8, 4, 4)
    for row in toy_study.table("traversal_cells").rows:
        number = load_all(toy_study, "cpu").concepts.index(row["concept"])
        assert math.isclose(effect[number, row["code"], row["row"], row["column"]], row["estimated"], abs_tol=1e-6)
    assert {row["concept"] for row in toy_study.table("traversal_error").rows} == set(
        load_all(toy_study, "cpu").concepts
    )


def test_both_ranks_stand_in_the_two_scale_table(toy_study):
    rows = toy_study.table("two_scale").where(concept="blue")
    assert any(row["local_rank"] is not None for row in rows)
    assert all(row["global_rank"] >= 1 for row in rows)


def test_a_search_changes_free_tokens_only(toy_study):
    found = load_found(toy_study)
    assert set(found.tokens) == {"token_selection", "embedding_optimisation", "random_codes", "greedy"}
    assert found.extractors == ("conv8",)
    for grids in found.tokens.values():
        assert grids.shape == (16, 2, 4, 4)
        frozen = ~found.free
        assert torch.equal(grids[:, :, frozen], found.start[:, None, frozen].expand(-1, 2, -1))
    assert {name: one.shape for name, one in found.scratch.items()} == dict.fromkeys(
        ("token_selection", "greedy"), (8, 2, 4, 4)
    )


def test_pairs_and_regions_are_read():
    names = ("a", "b", "c")
    assert read_pairs((), names) == [(0, 1), (1, 2), (2, 0)]
    assert read_pairs(("c > a",), names) == [(2, 0)]
    assert read_region("centre", (16, 16)).sum() == 16
    assert read_region("centre", (16, 16))[6:10, 6:10].all()
    assert read_region("all", (2, 3)).all()
    with pytest.raises(ConfigError, match="searches for what is there already"):
        read_pairs(("a>a",), names)


def test_evidence_has_every_arm_fill_and_judge_and_equal_areas(toy_study):
    rows = toy_study.table("image_level").where(concept="all", metric="probability_drop")
    arms = {row["arm"] for row in rows}
    assert arms == {ScoreSettings().method, "tis", "random", "centre", "brightness", "token_frequency"}
    assert {row["fill"] for row in rows} == {"black", "mean_code"}
    assert {row["judge"] for row in rows} == {"soft", "hard"}
    assert all(math.isclose(row["hidden_share"], row["n"] / 16) for row in rows)
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)


def test_a_judge_speaks_in_the_order_of_the_study():
    judge = load_judges("toy")[0]
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = OrderedJudge(judge, ("red", "blue"))(pixels)
    torch.testing.assert_close(turned, judge(pixels)[:, [4, 1]].log_softmax(1))
    with pytest.raises(ConfigError, match="does not know 'dog'"):
        OrderedJudge(judge, ("red", "dog"))


def test_other_weights_are_other_judges():
    one, other = load_judges("toy"), load_judges("toy")
    assert digest(one) == digest(other)
    other[0].network.colours[0, 0] += 1
    assert digest(one) != digest(other)
    assert [judge.name for judge in judges_at("toy", "cpu", ("red", "blue"), digest(one))] == ["soft", "hard"]
    with pytest.raises(ModelError, match="judges at 'toy' are not the ones that work was given out for"):
        judges_at("toy", "cpu", ("red", "blue"), digest(other))


def test_as_many_images_of_each_concept_are_judged(toy_study):
    loaded = load_all(toy_study, "cpu")
    images = images_to_judge(toy_study, loaded, 24)
    assert images.batch.concept.bincount().tolist() == [3] * 8
    assert set(images.batch.split) == {"test"}
    assert {len(maps) for maps in images.importance.values()} == {24}
    parts = images.parts(10)
    assert [len(part.batch) for part in parts] == [10, 10, 4]
    assert sum((part.batch.image_ids for part in parts), ()) == images.batch.image_ids


def test_counts_can_be_made_where_they_are_needed(toy_study):
    counts = counts_at(toy_study.folder, toy_study.fingerprint("tokens"))
    assert torch.equal(counts, code_counts(load_all(toy_study, "cpu").store, EXPLAINED))


def test_the_exhibit_holds_everything_the_page_shows(toy_study):
    exhibit = gather(toy_study, 2, "cpu", 100)
    assert [one.name for one in exhibit.concepts] == list(load_all(toy_study, "cpu").concepts)
    assert exhibit.concepts[0].images.shape == (2, 16, 16, 3)
    assert exhibit.concepts[0].codes[0].patches.shape[1:] == (12, 12, 3)
    assert {"image_level", "concept_level", "codebook_level", "verdicts", "two_scale"} <= set(exhibit.tables)
    assert exhibit.stages[0]["stage"] == "tokens"


def test_what_can_be_chosen_is_listed():
    assert any(row[0] == "toy" for row in list_models())
    kinds = dict(list_registries())
    assert len(kinds) == 10
    assert "conv8" in kinds["extractor"]
