from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcortex.concepts.saliency import activation_map, check_concepts, rank_positions, rank_tokens, sum_maps
from vqcortex.errors import ConfigError, DataError, ShapeError


def test_positions_come_best_first_and_ties_row_by_row():
    importance = torch.tensor([[[0.0, 2.0, -1.0], [2.0, -0.0, 3.0]]])
    tokens = torch.tensor([[[10, 11, 12], [13, 14, 15]]])
    found = rank_tokens(importance, tokens)
    assert found.tokens.tolist() == [[15, 11, 13, 10, 14, 12]]
    assert found.rows.tolist() == [[1, 0, 1, 0, 1, 0]]
    assert found.columns.tolist() == [[2, 1, 0, 0, 1, 2]]
    assert found.importance.tolist() == [[3, 2, 2, 0, 0, -1]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=6, max_size=6),
    st.integers(1, 6),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_numbers_are_ranked_as_python_sorts_them(numbers, keep, dtype):
    importance = torch.tensor(numbers, dtype=dtype).view(1, 2, 3)
    wanted = sorted(range(6), key=lambda at: (-numbers[at], at))[:keep]
    assert rank_positions(importance, keep).tolist() == [wanted]


def test_many_images_are_ranked_like_one():
    importance = torch.randint(0, 50, (9000, 4, 4)).float()
    alone = torch.cat([rank_positions(importance[i : i + 1], 5) for i in (0, 8191, 8192, 8999)])
    assert torch.equal(rank_positions(importance, 5)[[0, 8191, 8192, 8999]], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_ranked_exactly(dtype):
    importance = torch.tensor([[[0.5, -2.0], [0.75, 0.5]]], dtype=dtype)
    assert rank_positions(importance).tolist() == [[2, 0, 3, 1]]


@pytest.mark.parametrize("keep", [0, 7])
def test_keeping_more_than_the_grid_or_nothing_is_an_error(keep):
    with pytest.raises(ConfigError, match=f"{keep} positions of a 2x3 grid cannot be kept; 1 to 6 can"):
        rank_positions(torch.zeros(1, 2, 3), keep)


def test_nan_has_no_rank():
    with pytest.raises(DataError, match="the importance holds NaN"):
        rank_positions(torch.tensor([[[0.0, torch.nan]]]))


def test_infinities_of_both_signs_are_ranked():
    assert rank_positions(torch.tensor([[[torch.inf, 0.0, -torch.inf]]])).tolist() == [[0, 1, 2]]


def test_an_unsigned_map_runs_from_zero_to_one_and_ignores_shift_and_scale():
    importance = torch.randn(3, 8, 8)
    found = activation_map(importance)
    assert found.amin((1, 2)).tolist() == [0, 0, 0]
    assert found.amax((1, 2)).tolist() == [1, 1, 1]
    torch.testing.assert_close(activation_map(5 * importance - 3), found, rtol=1e-4, atol=1e-5)


def test_the_ends_are_the_quantiles_of_torch():
    importance = torch.randn(4, 7, 7)
    low, high = importance.flatten(1).quantile(torch.tensor([0.02, 0.98]), dim=1)[:, :, None, None]
    torch.testing.assert_close(activation_map(importance), ((importance - low) / (high - low)).clamp(0, 1))


def test_a_signed_map_keeps_sign_and_zero():
    importance = torch.randn(3, 8, 8)
    importance[:, 0, 0] = 0
    found = activation_map(importance, signed=True)
    assert torch.equal(found.sign(), importance.sign())
    assert found.abs().amax((1, 2)).tolist() == [1, 1, 1]
    torch.testing.assert_close(activation_map(-importance, signed=True), -found)


def test_one_extreme_position_does_not_darken_the_rest():
    importance = torch.linspace(0, 1, 256).view(1, 16, 16).clone()
    importance[0, 3, 3] = 1e6
    assert activation_map(importance).median() > 0.4


@pytest.mark.parametrize("signed", [False, True])
def test_a_lone_peak_on_a_flat_map_is_seen(signed):
    importance = torch.zeros(1, 16, 16)
    importance[0, 5, 6] = 2
    assert activation_map(importance, signed=signed).nonzero().tolist() == [[0, 5, 6]]


@pytest.mark.parametrize("signed", [False, True])
def test_a_flat_map_is_zero(signed):
    assert activation_map(torch.zeros(2, 3, 3), signed=signed).tolist() == torch.zeros(2, 3, 3).tolist()


def test_means_and_errors_per_concept_are_those_of_torch_whatever_the_shards():
    maps, concept = torch.rand(20, 2, 3), torch.tensor([0, 1] * 10)
    found = sum_maps(maps[:7], concept[:7], 3) + sum_maps(maps[7:], concept[7:], 3)
    assert found.images.tolist() == [10, 10, 0]
    for one in (0, 1):
        mine = maps[concept == one].double()
        torch.testing.assert_close(found.mean[one], mine.mean(0))
        torch.testing.assert_close(found.error[one], mine.std(0) / 10**0.5)
    assert found.mean[2].isnan().all()


def test_one_image_has_no_standard_error():
    assert sum_maps(torch.rand(1, 2, 2), torch.tensor([0]), 1).error.isnan().all()


def test_concepts_must_match_images_and_the_list():
    with pytest.raises(ShapeError, match="3 images came with 2 concepts"):
        check_concepts(torch.tensor([0, 1]), 3, 2)
    with pytest.raises(ConfigError, match=r"concepts span \[0, 2\] but 2 concepts are numbered \[0, 1\]"):
        check_concepts(torch.tensor([0, 2]), 2, 2)
