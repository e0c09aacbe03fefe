"""Counts of codes against plain Python, and figures against their definitions."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leveled import SHARED, TWO, grids_of

from vqcortex.adapters.protocol import Level, one_level
from vqcortex.concepts import usage as module
from vqcortex.concepts.usage import (
    LEVEL_COLUMNS,
    UsageCounts,
    check_levels,
    codes_of_half,
    count_codes,
    entropy_of,
    gini_of,
    levels_table,
    measure_usage,
    no_counts,
    union,
    usage_table,
)
from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError

ONE = one_level((3, 4), 40)
CASES = pytest.mark.parametrize("levels", [ONE, TWO, SHARED], ids=["one", "two", "shared"])
COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=40)


def slow_counts(tokens: torch.Tensor, levels: tuple[Level, ...]) -> list[tuple[Counter, Counter]]:
    """Tokens and images per code, level by level, one token at a time."""
    found = []
    start = 0
    for level in levels:
        held, images = Counter(), Counter()
        for row in tokens.flatten(1).tolist():
            part = row[start : start + level.length]
            held.update(part)
            images.update(set(part))
        found.append((held, images))
        start += level.length
    return found


def as_dicts(counts: UsageCounts) -> list[tuple[dict[int, int], dict[int, int]]]:
    return [
        (
            dict(zip(one.codes.tolist(), one.tokens.tolist(), strict=True)),
            dict(zip(one.codes.tolist(), one.images.tolist(), strict=True)),
        )
        for one in counts.levels
    ]


@CASES
def test_counts_are_those_of_plain_python(levels):
    tokens = grids_of(levels, 23)
    counts = count_codes(tokens, levels)
    assert counts.images == 23
    assert as_dicts(counts) == [(dict(held), dict(images)) for held, images in slow_counts(tokens, levels)]


@CASES
@pytest.mark.parametrize("size", [1, 4, 23])
def test_the_batch_size_changes_nothing(levels, size):
    tokens = grids_of(levels, 23)
    total = no_counts(levels)
    for part in tokens.split(size):
        total = total + count_codes(part, levels)
    assert total.images == 23
    assert as_dicts(total) == as_dicts(count_codes(tokens, levels))
    assert all(one.codes.tolist() == sorted(one.codes.tolist()) for one in total.levels)


@pytest.mark.parametrize("tokens", [grids_of(ONE, 5).int(), grids_of(ONE, 5).to(torch.int16)])
def test_the_type_of_the_ids_changes_nothing(tokens):
    assert as_dicts(count_codes(tokens, ONE)) == as_dicts(count_codes(grids_of(ONE, 5), ONE))


def test_huge_codebooks_are_counted_without_a_place_per_code():
    levels = one_level((1, 4), 2**40)
    counts = count_codes(torch.tensor([[[2**39, 5, 5, 2**40 - 1]], [[5, 6, 7, 8]]]), levels)
    assert as_dicts(counts) == [
        ({5: 3, 6: 1, 7: 1, 8: 1, 2**39: 1, 2**40 - 1: 1}, {5: 2, 6: 1, 7: 1, 8: 1, 2**39: 1, 2**40 - 1: 1})
    ]
    found = measure_usage(counts, levels)
    assert found.all.dead == 2**40 - 6
    assert found.all.dead_codes(7) == [0, 1, 2, 3, 4, 9, 10]
    assert [row["code"] for row in usage_table(found).rows] == [5, 6, 7, 8, 2**39, 2**40 - 1]


def test_a_batch_of_no_images_counts_nothing():
    assert as_dicts(count_codes(grids_of(TWO, 0), TWO)) == [({}, {}), ({}, {})]
    assert count_codes(grids_of(ONE, 0), ONE).images == 0


@pytest.mark.parametrize(("code", "span"), [(8, r"span \[\d, 8\]"), (-1, r"span \[-1, \d\]")])
def test_a_code_in_a_level_that_is_not_its_own_is_named(code, span):
    tokens = grids_of(TWO, 3)
    tokens[1, 0, 2] = code
    with pytest.raises(TokenError, match=rf"tokens of level 'top' {span} but its codes are \[0, 7\]; was the store"):
        count_codes(tokens, TWO)


def test_a_row_of_another_length_than_the_levels_is_refused():
    with pytest.raises(ShapeError, match=r"but \(\.\.\., 1, 20\) is needed"):
        count_codes(grids_of(TWO, 3)[..., :-1], TWO)


def test_the_joint_usage_counts_a_shared_code_once_and_separate_codes_apart():
    shared = measure_usage(count_codes(torch.tensor([[[0, 0, 0, 1, 1, 2, 7]]]), SHARED), SHARED)
    assert (shared.all.size, shared.all.live, shared.all.tokens) == (8, 4, 7)
    assert shared.all.codes.tolist() == [0, 1, 2, 7]
    assert shared.all.counts.tolist() == [3, 2, 1, 1]
    assert shared.all.dead_codes() == [3, 4, 5, 6]
    assert shared.all.images_with is None
    two = measure_usage(count_codes(grids_of(TWO, 30), TWO), TWO)
    assert (two.all.size, two.all.live) == (16, sum(one.live for one in two.levels))
    assert [one.tokens for one in (*two.levels, two.all)] == [120, 480, 600]


def test_one_level_is_all_levels():
    found = measure_usage(count_codes(grids_of(ONE, 30), ONE), ONE)
    first, joint = levels_table(found).rows
    assert {**first, "level": "all"} == joint


@settings(max_examples=80)
@given(COUNTS)
def test_entropy_is_minus_the_sum_of_p_ln_p_whatever_the_order(counts):
    shares = [Fraction(one, sum(counts)) for one in counts]
    slow = -sum(float(one) * math.log(one) for one in shares)
    assert entropy_of(counts) == pytest.approx(slow, abs=1e-12)
    assert entropy_of(counts) == entropy_of(sorted(counts)) == entropy_of(counts[::-1])


@settings(max_examples=80)
@given(COUNTS, st.integers(0, 30))
def test_gini_is_half_the_mean_difference_over_the_mean(counts, dead):
    every = [*counts, *[0] * dead]
    n, mean = len(every), Fraction(sum(every), len(every))
    slow = sum(abs(one - other) for one in every for other in every) / (2 * n * n * mean)
    assert gini_of(sorted(counts, reverse=True), n) == pytest.approx(float(slow), abs=1e-12)


@settings(max_examples=80)
@given(COUNTS)
def test_half_is_the_fewest_codes_with_half_of_the_tokens(counts):
    ordered = sorted(counts, reverse=True)
    slow = next(n for n in range(1, len(ordered) + 1) if 2 * sum(ordered[:n]) >= sum(ordered))
    assert codes_of_half(ordered) == slow


def test_codes_used_alike_have_the_perplexity_of_their_number_and_no_inequality():
    levels = one_level((1, 8), 8)
    found = measure_usage(count_codes(torch.arange(8).view(1, 1, 8), levels), levels).all
    assert (found.perplexity, found.gini, found.half, found.dead) == (pytest.approx(8), 0, 4, 0)
    assert found.corrected_perplexity == 8
    assert found.perplexity <= 8


def test_a_single_code_has_perplexity_one_and_most_inequality():
    levels = one_level((2, 2), 5)
    found = measure_usage(count_codes(torch.full((3, 2, 2), 4), levels), levels).all
    assert (found.perplexity, found.corrected_perplexity, found.top_share, found.half) == (1, 1, 1, 1)
    assert found.gini == 0.8
    assert found.dead_codes() == [0, 1, 2, 3]


def test_a_codebook_of_one_code_is_even():
    levels = one_level((2, 2), 1)
    found = measure_usage(count_codes(torch.zeros(3, 2, 2, dtype=torch.long), levels), levels).all
    assert (found.perplexity, found.gini, found.dead_codes()) == (1, 0, [])


def test_the_corrected_perplexity_adds_live_less_one_per_two_tokens():
    levels = one_level((1, 6), 100)
    found = measure_usage(count_codes(torch.tensor([[[0, 0, 0, 9, 9, 50]]]), levels), levels).all
    entropy = -(1 / 2 * math.log(1 / 2) + 1 / 3 * math.log(1 / 3) + 1 / 6 * math.log(1 / 6))
    assert found.perplexity == pytest.approx(math.exp(entropy))
    assert found.corrected_perplexity == pytest.approx(math.exp(entropy + 2 / 12))


@pytest.mark.slow
def test_the_correction_removes_most_of_the_bias_of_few_tokens():
    levels = one_level((16, 16), 512)
    rng = torch.Generator().manual_seed(0)
    found = measure_usage(count_codes(torch.randint(0, 512, (8, 16, 16), generator=rng), levels), levels).all
    assert found.perplexity < 465
    assert abs(found.corrected_perplexity - 512) < 12


@CASES
@pytest.mark.parametrize("most", [0, 1, 5, None])
def test_dead_codes_are_those_that_no_image_holds(levels, most):
    tokens = grids_of(levels, 2)
    found = measure_usage(count_codes(tokens, levels), levels)
    for level, one, (held, _) in zip(levels, found.levels, slow_counts(tokens, levels), strict=True):
        assert one.dead_codes(most) == [code for code in range(*level.codes) if code not in held][:most]
        assert one.dead == len(one.dead_codes())


def test_ranges_that_touch_are_one_and_others_stay_apart():
    assert union([(0, 8), (8, 16)]) == ((0, 16),)
    assert union([(2, 3), (10, 12), (0, 2)]) == ((0, 3), (10, 12))
    gap = (Level(name="a", grid=(1, 1), codes=(0, 2)), Level(name="b", grid=(1, 1), codes=(5, 7)))
    found = measure_usage(count_codes(torch.tensor([[[1, 5]]]), gap), gap).all
    assert (found.size, found.dead_codes(), found.dead_codes(1)) == (4, [0, 6], [0])


@CASES
def test_the_table_has_every_code_of_every_level_most_used_first(levels):
    tokens = grids_of(levels, 12)
    rows = usage_table(measure_usage(count_codes(tokens, levels), levels)).rows
    assert len(rows) == sum(one.codes[1] - one.codes[0] for one in levels)
    for level, (held, images) in zip(levels, slow_counts(tokens, levels), strict=True):
        mine = [row for row in rows if row["level"] == level.name]
        order = sorted(range(*level.codes), key=lambda code: (-held[code], code))
        assert [row["code"] for row in mine] == order
        assert [row["count"] for row in mine] == [held[code] for code in order]
        assert [row["images_with_code"] for row in mine] == [images[code] for code in order]
        assert sum(row["share"] for row in mine) == pytest.approx(1)
        assert [row["rank"] for row in mine] == [n if held[code] else None for n, code in enumerate(order, 1)]


def test_dead_codes_of_a_very_large_codebook_have_no_rows_but_are_counted(monkeypatch):
    monkeypatch.setattr(module, "LISTED", 39)
    found = measure_usage(count_codes(grids_of(ONE, 2), ONE), ONE)
    assert len(usage_table(found).rows) == found.all.live < 40
    assert levels_table(found).rows[0]["dead"] == 40 - found.all.live > 0


def test_every_column_of_the_levels_is_described():
    table = levels_table(measure_usage(count_codes(grids_of(TWO, 5), TWO), TWO))
    assert [row["level"] for row in table.rows] == ["top", "bottom", "all"]
    assert list(table.rows[0]) == list(LEVEL_COLUMNS)


def test_no_image_has_no_usage():
    with pytest.raises(ConfigError, match="the codes of 0 images were counted; at least 1 image"):
        measure_usage(no_counts(ONE), ONE)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((), "has no levels"),
        ((TWO[0], TWO[0]), r"level name 'top' is taken \(top, top, all\)"),
        ((TWO[0], Level(name="all", grid=(1, 1), codes=(0, 2))), "level name 'all' is taken"),
        (one_level((1, 1), 0), r"level 'tokens' has codes=\(0, 0\)"),
        ((Level(name="x", grid=(1, 1), codes=(-1, 2)),), r"level 'x' has codes=\(-1, 2\)"),
    ],
)
def test_levels_that_cannot_be_told_apart_are_refused(levels, said):
    with pytest.raises(ModelError, match=said):
        check_levels(levels)
