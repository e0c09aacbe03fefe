from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from vqcortex.concepts.pooling import ConceptTokens
from vqcortex.concepts.two_scale import join_scales, rank_agreement
from vqcortex.errors import ConfigError, ShapeError


def tokens(codes: list[int], counts: list[int]) -> ConceptTokens:
    share = torch.tensor(counts) / 10
    return ConceptTokens(
        concept=0,
        n=5,
        images=10,
        codes=torch.tensor(codes),
        counts=torch.tensor(counts),
        share=share,
        low=share,
        high=share,
        lift=share,
        frequency=share,
    )


EFFECT = torch.tensor([0.5, -1.0, 3.0, 0.5, 2.0])


def test_rows_join_both_scales_with_both_ranks():
    table = join_scales(tokens([2, 0, 1], [9, 4, 1]), EFFECT, "cat")
    assert [(r["code"], r["local_rank"], r["global_rank"], r["count"]) for r in table.rows] == [
        (2, 1, 1, 9),
        (0, 2, 3, 4),
        (1, 3, 5, 1),
    ]
    assert [row["effect"] for row in table.rows] == [3.0, 0.5, -1.0]
    assert {(row["concept"], row["agreement"]) for row in table.rows} == {("cat", 1.0)}


def test_codes_that_only_the_codebook_finds_can_be_added():
    table = join_scales(tokens([0, 1, 2], [9, 4, 1]), EFFECT, "cat", also=2)
    assert table.rows[-1]["code"] == 4
    assert table.rows[-1]["local_rank"] is None
    assert table.rows[-1]["global_rank"] == 2
    assert len(table.rows) == 4


def test_agreement_is_spearman_with_ties():
    torch.manual_seed(0)
    counts, effect = torch.randint(0, 6, (30,)), torch.randint(0, 9, (40,)).float()
    found = tokens(torch.randperm(40)[:30].tolist(), counts.tolist())
    wanted = spearmanr(counts.numpy(), effect[found.codes].numpy()).statistic
    assert rank_agreement(found, effect) == pytest.approx(wanted)


@pytest.mark.parametrize(("codes", "counts"), [([0, 1], [2, 1]), ([0, 1, 2], [3, 3, 3]), ([0, 3, 3], [3, 2, 1])])
def test_agreement_that_does_not_exist_is_none(codes, counts):
    assert rank_agreement(tokens(codes, counts), EFFECT) is None


def test_a_relevance_of_another_codebook_is_an_error():
    with pytest.raises(ShapeError, match="concept token 7 has no relevance: 5 are given"):
        join_scales(tokens([7], [1]), EFFECT, "cat")


def test_adding_more_codes_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match="also=6 must be 0 to 5"):
        join_scales(tokens([2], [1]), EFFECT, "cat", also=6)
