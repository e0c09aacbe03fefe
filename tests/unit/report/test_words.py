from __future__ import annotations

import math

import pytest

from vqcortex.report.words import (
    cell,
    count_of,
    estimate,
    interval,
    is_number,
    listed,
    number,
    percent,
    plain_name,
    signed,
)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.2", True])
def test_what_is_no_number_is_a_dash(value):
    assert not is_number(value)
    assert number(value) == signed(value) == percent(value) == "–"


def test_numbers_have_a_true_minus_and_no_needless_digits():
    assert [number(value) for value in (-0.25, 3.0, 12345, 0.1239)] == ["−0.250", "3", "12,345", "0.124"]
    assert [signed(value, 1) for value in (0.26, 0.0, -0.26)] == ["+0.3", "0", "−0.3"]
    assert percent(0.256) == "26 %"


def test_a_small_negative_number_rounds_to_a_zero_without_a_sign():
    assert number(-0.0001, 2) == "0.00"
    assert interval(-0.001, 0.5, 2) == "[0.00, 0.50]"


def test_an_interval_that_is_not_there_is_not_shown():
    assert estimate(0.5, 0.4, 0.6, 2) == "0.50 [0.40, 0.60]"
    assert estimate(0.5, None, None, 2) == "0.50"
    assert interval(None, 0.2) == ""


def test_names_lose_their_underscores():
    assert plain_name("noisy_gradient_x_embedding") == "noisy gradient × embedding"
    assert plain_name("tis") == "TIS (published)"
    assert plain_name("Ankle boot") == "Ankle boot"


def test_a_concept_may_be_called_like_a_fill():
    assert plain_name("black") == "black pixels"
    assert cell("black") == "black"


def test_nouns_follow_their_number():
    assert [count_of(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]


def test_words_are_joined_as_in_a_sentence():
    assert [listed(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_a_table_cell_says_what_it_holds():
    assert [cell(value) for value in (None, True, 0.5, 7, "a<b", [1, 2])] == ["–", "yes", "0.500", "7", "a<b", "1, 2"]
    assert cell(list(range(20))).endswith("7, … (20 in all)")
