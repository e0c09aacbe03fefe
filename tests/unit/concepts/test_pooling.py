from __future__ import annotations

import pickle

import pytest
import torch

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.concepts.pooling import (
    PoolCounts,
    all_concept_tokens,
    best_tokens,
    concept_tokens,
    count_image_tokens,
    tokens_table,
)
from vqcortex.errors import ConfigError, DataError, ShapeError, TokenError

# Two images of concept 0, one of concept 1; importance falls from left to right.
TOKENS = torch.tensor([[[3, 3, 1]], [[2, 3, 0]], [[2, 1, 1]]])
FALLING = torch.tensor([[3.0, 2.0, 1.0]]).expand(3, 1, 3)
CONCEPT = torch.tensor([0, 0, 1])


def pool(positions=(1, 2, 3), tokens=TOKENS, importance=FALLING, concept=CONCEPT, k=5, concepts=3) -> PoolCounts:
    return count_image_tokens(tokens, importance, concept, k=k, concepts=concepts, positions=positions)


def dense(counts: PoolCounts) -> list:
    return [
        counts.images.tolist(),
        [one.toarray().tolist() for one in (*counts.cells, *counts.having, counts.everywhere)],
    ]


def test_counts_by_hand():
    found = concept_tokens(pool(), 0, 2)
    assert found.images == 2
    assert found.codes.tolist() == [3, 2]
    assert found.counts.tolist() == [3, 1]
    assert found.share.tolist() == [1.0, 0.5]
    assert found.frequency.tolist() == pytest.approx([3 / 6, 1 / 6])
    assert found.lift.tolist() == pytest.approx([(3.5 / 5) / (0.5 / 3), (1.5 / 5) / (1.5 / 3)])


def test_an_interval_by_hand():
    found = concept_tokens(pool(), 0, 2)
    # Two images, one with code 2: resamples have 0, 1 or 2 of them with probability 1/4, 1/2, 1/4.
    assert (found.low.tolist(), found.high.tolist()) == ([1.0, 0.0], [1.0, 1.0])


def test_equal_counts_are_ordered_by_lift_then_code():
    tokens = torch.tensor([[[4, 1, 2, 3]], [[1, 0, 0, 0]]])
    falling = torch.tensor([[4.0, 3, 2, 1]]).expand(2, 1, 4)
    found = concept_tokens(pool((4,), tokens, falling, torch.tensor([0, 1])), 0, 4)
    assert found.codes.tolist() == [2, 3, 4, 1]


def test_keep_cuts_the_list_and_none_keeps_all():
    assert concept_tokens(pool(), 0, 3, keep=2).codes.tolist() == [3, 0]
    assert concept_tokens(pool(), 0, 3, keep=None).codes.tolist() == [3, 0, 2, 1]


def test_every_position_of_the_grid_may_be_kept():
    found = concept_tokens(pool((3,)), 0, 3, keep=None)
    assert torch.equal(found.frequency, found.counts.double() / 6)


@pytest.mark.parametrize(("k", "concepts"), [(8, 8), (300_000, 40)])
def test_shards_and_order_change_nothing(k, concepts):
    """The larger sizes count by sorting, the smaller in a dense table."""
    toy = ToyAdapter()
    concept = torch.arange(50) % 8
    tokens = toy.generate(concept, [str(i) for i in range(50)], 0) * (k // 8)
    importance = torch.rand(50, 4, 4)
    whole = pool((1, 4, 16), tokens, importance, concept, k, concepts)
    order = torch.randperm(50)
    parts = [pool((16, 1, 4, 4), tokens[part], importance[part], concept[part], k, concepts) for part in order.split(7)]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + part
    assert torch.equal(joined.images, whole.images)
    for one, other in zip(
        (*joined.cells, *joined.having, joined.everywhere),
        (*whole.cells, *whole.having, whole.everywhere),
        strict=True,
    ):
        assert abs(one - other).sum() == 0
        assert other.sum() > 0


def test_the_painted_colour_is_the_concept_token():
    toy, concept = ToyAdapter(), torch.arange(8).repeat(20)
    tokens = toy.generate(concept, [str(i) for i in range(160)], 0)
    importance = (tokens == concept[:, None, None]).float()
    counts = count_image_tokens(tokens, importance, concept, k=8, concepts=8, positions=(4,))
    assert [int(concept_tokens(counts, one, 4).codes[0]) for one in range(8)] == list(range(8))


def test_an_empty_shard_counts_nothing():
    empty = pool(tokens=TOKENS[:0], importance=FALLING[:0], concept=CONCEPT[:0])
    assert empty.images.tolist() == [0, 0, 0]
    assert dense(empty + pool()) == dense(pool())


def test_counts_travel_between_processes():
    assert dense(pickle.loads(pickle.dumps(pool()))) == dense(pool())


def test_without_other_concepts_there_is_no_lift():
    found = concept_tokens(pool(tokens=TOKENS[:2], importance=FALLING[:2], concept=CONCEPT[:2]), 0, 3)
    assert found.lift.isnan().all()
    assert found.codes.tolist() == [3, 0, 1, 2]
    assert {row["lift"] for row in tokens_table([found], ["a"]).rows} == {None}


def test_the_table_has_a_row_per_token_and_names_the_concept():
    table = tokens_table([concept_tokens(pool(), 0, 2), concept_tokens(pool(), 1, 2)], ["cat", "dog", "owl"])
    assert [(row["concept"], row["rank"], row["code"]) for row in table.rows] == [
        ("cat", 1, 3),
        ("cat", 2, 2),
        ("dog", 1, 1),
        ("dog", 2, 2),
    ]
    assert table.rows[0]["count"] == 3


def test_best_tokens_come_best_first():
    rising = FALLING.flip(2)
    assert best_tokens(TOKENS, rising, 2).tolist() == [[1, 3], [0, 3], [1, 1]]


def test_small_ids_are_counted_like_large_ones():
    assert dense(pool(tokens=TOKENS.to(torch.int16))) == dense(pool())


@pytest.mark.parametrize("positions", [(1, 4), (0,), ()])
def test_more_positions_than_the_grid_has_are_an_error(positions):
    with pytest.raises(
        ConfigError, match=r"positions=.* must be whole numbers from 1 to 3, the positions of a 1x3 grid"
    ):
        pool(positions)


def test_a_position_count_that_was_not_counted_is_an_error():
    with pytest.raises(ConfigError, match="n=3 was not counted; counted: 1, 2"):
        concept_tokens(pool((1, 2)), 0, 3)


def test_a_concept_without_images_is_an_error():
    with pytest.raises(ConfigError, match="concept 2 has no images among the 3 counted"):
        concept_tokens(pool(), 2, 1)


@pytest.mark.parametrize("concept", [-1, 3])
def test_a_concept_outside_the_list_is_an_error(concept):
    with pytest.raises(ConfigError, match=rf"concept={concept} is not one of \[0, 2\]"):
        concept_tokens(pool(), concept, 1)


def test_keeping_nothing_is_an_error():
    with pytest.raises(ConfigError, match="keep=0 must be at least 1"):
        concept_tokens(pool(), 0, 1, keep=0)


def test_a_token_outside_the_codebook_is_an_error():
    with pytest.raises(TokenError, match=r"tokens span \[0, 3\] but this codebook holds indices \[0, 2\]"):
        pool(k=3)


def test_grids_of_two_sizes_are_an_error():
    with pytest.raises(ShapeError, match="must have one shape"):
        best_tokens(TOKENS, torch.zeros(3, 3, 1), 1)


def test_nan_importance_is_an_error():
    with pytest.raises(DataError, match="importance holds NaN"):
        pool(importance=FALLING * torch.nan)


def test_counts_of_two_settings_do_not_add_up():
    with pytest.raises(ConfigError, match="do not add up"):
        pool((1, 2)) + pool((1, 3))


@pytest.mark.parametrize("keep", [1, 3, None])
def test_all_concepts_at_once_are_what_each_is_alone(keep):
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 30, (60, 4, 4), generator=rng)
    importance = torch.randn(60, 4, 4, generator=rng)
    concept = torch.randint(0, 5, (60,), generator=rng)
    concept[concept == 3] = 4  # one concept has no images
    counts = pool((2, 5), tokens, importance, concept, k=30, concepts=6)
    for n in (2, 5):
        together = all_concept_tokens(counts, n, keep)
        assert [one.concept for one in together] == [0, 1, 2, 4]
        for one in together:
            alone = concept_tokens(counts, one.concept, n, keep)
            assert one.images == alone.images
            for name in ("codes", "counts", "share", "low", "high", "lift", "frequency"):
                assert torch.equal(getattr(one, name), getattr(alone, name)), name


def test_one_concept_alone_has_no_lift_either_way():
    counts = pool((2,), TOKENS[:2], FALLING[:2], CONCEPT[:2])
    (one,) = all_concept_tokens(counts, 2)
    assert one.lift.isnan().all()
