from __future__ import annotations

import numpy as np
import pytest
import torch

from vqcortex.concepts import clusters as module
from vqcortex.concepts.clusters import cluster_codes, concept_profile
from vqcortex.errors import ConfigError, TokenError

GROUPINGS = ["jensen-shannon", "cosine", "k-means"]


def planted(images: int = 60, mix: float = 0.1):
    """Concepts 0, 1, 2; codes 0-3, 4-7, 8-9 belong to them, with a share of strangers; 10 and 11 are never seen."""
    rng = torch.Generator().manual_seed(0)
    concept = torch.arange(images) % 3
    first, size = torch.tensor([0, 4, 8])[concept], torch.tensor([4, 4, 2])[concept]
    own = first[:, None] + (torch.rand(images, 6, generator=rng) * size[:, None]).long()
    strangers = torch.randint(0, 10, (images, 6), generator=rng)
    return torch.where(torch.rand(images, 6, generator=rng) < mix, strangers, own), concept


def clustered(codes, concept, **settings):
    return cluster_codes(codes, concept, **{"k": 12, "concepts": 3, "clusters": 3, "resamples": 20, **settings})


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_planted_groups_are_found_and_stable(grouping):
    found = clustered(*planted(), grouping=grouping)
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 2 + [-1] * 2
    assert found.size.tolist() == [4, 4, 2]
    assert found.top_concept.tolist() == [0, 1, 2]
    assert (found.stability > 0.9).all()
    assert found.profile.sum(1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups_of_pure_chance_are_less_stable(grouping):
    chance = clustered(*planted(mix=1.0), grouping=grouping)
    assert float(chance.stability.mean()) < 0.75


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_same_seed_gives_the_same_and_another_another_stability(grouping):
    codes, concept = planted(mix=0.8)
    first, second = (clustered(codes, concept, grouping=grouping, seed=3) for _ in range(2))
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.stability, second.stability)
    assert not torch.equal(first.stability, clustered(codes, concept, grouping=grouping, seed=4).stability)


def test_the_profile_does_not_lean_to_the_concept_with_more_images():
    codes = torch.tensor([[0, 1]] * 6 + [[0, 0]])
    concept = torch.tensor([0] * 6 + [1])
    # Half the image tokens of concept 0 and all those of concept 1 are code 0.
    assert concept_profile(codes, concept, k=3, concepts=2).tolist() == [
        pytest.approx([1 / 3, 2 / 3]),
        [1.0, 0.0],
        [0.0, 0.0],
    ]


def slow_stability(codes, concept, found, seed, resamples):
    """Jaccard overlaps with sets, resampling by building the drawn images one after the other."""
    total = [0.0] * len(found.size)
    for r in range(resamples):
        weights = module._resampled(concept.numpy(), seed, r).astype(int)
        drawn = [i for i, times in enumerate(weights) for _ in range(times)]
        assert torch.equal(concept[drawn].bincount(), concept.bincount())
        again = clustered(codes[drawn], concept[drawn], resamples=0).labels
        new = [set(np.flatnonzero(again == one).tolist()) for one in range(int(again.max()) + 1)]
        for at in range(len(total)):
            old = set(np.flatnonzero(found.labels == at).tolist())
            total[at] += max(len(old & one) / len(old | one) for one in new)
    return [one / resamples for one in total]


def test_stability_equals_its_slow_twin():
    codes, concept = planted(images=18, mix=0.6)
    found = clustered(codes, concept, resamples=8, seed=5)
    assert found.stability.tolist() == pytest.approx(slow_stability(codes, concept, found, 5, 8))
    assert min(found.stability.tolist()) < 1


def test_small_ids_are_clustered_like_large_ones():
    codes, concept = planted()
    small = clustered(codes.to(torch.int16), concept.to(torch.int32))
    assert torch.equal(small.stability, clustered(codes, concept).stability)


def test_without_resamples_there_is_no_stability():
    found = clustered(*planted(), resamples=0)
    assert found.stability.isnan().all()
    assert found.resamples == 0


def test_rare_codes_can_be_left_out():
    codes, concept = planted()
    codes[0, 0] = 11
    assert clustered(codes, concept).labels[11] >= 0
    assert clustered(codes, concept, least=2).labels[11] == -1


def test_codes_of_one_profile_share_a_cluster_even_when_more_are_wanted():
    codes, concept = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 1])
    for grouping in GROUPINGS:
        found = cluster_codes(codes, concept, k=4, concepts=2, clusters=4, resamples=2, grouping=grouping)
        assert found.labels.tolist() == [0, 0, 1, 1]


def test_one_code_is_one_cluster():
    for grouping in GROUPINGS:
        found = cluster_codes(
            torch.tensor([[2], [2]]), torch.tensor([0, 1]), k=4, concepts=2, clusters=1, resamples=2, grouping=grouping
        )
        assert found.labels.tolist() == [-1, -1, 0, -1]
        assert found.stability.tolist() == [1.0]


def test_everything_wrong_is_said_at_once():
    with pytest.raises(
        ConfigError, match=r"clusters=11 must be 1 to 10, .*resamples=-1 must.*grouping='ward' must be one of jensen"
    ):
        clustered(*planted(), clusters=11, resamples=-1, grouping="ward")


def test_a_codebook_too_large_for_a_tree_points_to_k_means(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_TREE", 9)
    with pytest.raises(
        ConfigError, match="10 codes are seen but grouping='cosine' serves at most 9; use grouping='k-m"
    ):
        clustered(*planted(), grouping="cosine")
    assert clustered(*planted(), grouping="k-means").size.sum() == 10


def test_a_code_outside_the_codebook_is_an_error():
    with pytest.raises(TokenError, match=r"codes span \[0, 9\] but this codebook holds indices \[0, 4\]"):
        clustered(*planted(mix=0.5), k=5)
