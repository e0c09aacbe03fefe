"""Marks: perfect, inverted and constant scores come out in the right order, and chance finds nothing."""

import pytest
import torch

from vqcortex.errors import DataError
from vqcortex.worlds.measure import find_codes, mark, mean_per_code, rank_list, ranks_of

TRUTH = torch.tensor([[True, False, False, True]])


def test_perfect_constant_and_inverted_scores_are_marked_in_that_order():
    perfect, constant, inverted = (
        mark(torch.tensor([one]), TRUTH, 2) for one in ([4.0, 1, 2, 3], [1.0] * 4, [1.0, 4, 3, 2])
    )
    assert [float(one.auroc) for one in (perfect, constant, inverted)] == [1, 0.5, 0]
    assert [float(one.precision) for one in (perfect, constant, inverted)] == [1, 0, 0]
    assert [float(one.recall) for one in (perfect, constant, inverted)] == [1, 0, 0]
    assert [int(one.worst) for one in (perfect, constant, inverted)] == [2, 4, 4]


def test_a_code_that_was_never_seen_comes_last():
    scores = torch.tensor([[-torch.inf, -5.0, -torch.inf, -1.0]])
    assert float(mark(scores, TRUTH, 1).auroc) == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert ranks_of(scores, TRUTH).tolist() == [[4, 2, 3, 1]]


def test_rows_without_a_question_and_scores_without_a_rank_are_errors():
    with pytest.raises(DataError, match="all or none are true"):
        mark(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool), 1)
    with pytest.raises(DataError, match="NaN, which has no rank"):
        mark(torch.full((1, 4), torch.nan), TRUTH, 1)


def test_codes_are_averaged_where_they_stand():
    tokens, importance = torch.tensor([[[0, 1]], [[1, 3]]]), torch.tensor([[[1.0, 2]], [[4.0, -1]]])
    assert mean_per_code(tokens, importance, 5).tolist() == [1, 3, -torch.inf, -1, -torch.inf]


def test_equals_are_ranked_together_at_the_last_of_their_places():
    assert rank_list(torch.tensor([3.0, 5.0, 3.0]), [0, 1]) == [3, 1]


def drawn(images, seed=0):
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(30, (images, 4, 4), generator=source)
    return tokens, torch.rand(tokens.shape, generator=source), torch.randint(2, (images,), generator=source)


def test_a_code_whose_importance_goes_with_the_concept_is_found_and_no_other():
    tokens, importance, truth = drawn(200)
    tokens[tokens == 7] = 8
    tokens[truth == 1, 0, 0] = 7
    assert find_codes(tokens, importance, truth, 30).codes.tolist() == [7]


def test_chance_is_found_in_a_twentieth_of_all_worlds_at_most():
    runs = 60
    hits = sum(bool(len(find_codes(*drawn(60, seed), 30, draws=499, seed=seed).codes)) for seed in range(runs))
    assert hits <= 9  # 3 expected; of such counts 1 in 1,000 is larger than 9


def test_codes_without_an_image_are_not_tested_and_one_sided_images_are_an_error():
    tokens, importance, truth = drawn(40)
    assert find_codes(tokens, importance, truth, 50).tested.max() < 30
    with pytest.raises(DataError, match="40 images with and 0 without the concept make no pair"):
        find_codes(tokens, importance, torch.ones_like(truth), 30)
