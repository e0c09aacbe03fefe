"""The parity table that users see is what is measured."""

import json

import pytest
from parity.golden import CASES, END, LISTED, NUMBERS, PAGE, START, Parity, family_table, measure, table

ROWS = [Parity(**row) for row in json.loads(NUMBERS.read_text())]
FLOATS = 1e-4  # what other kernels of the same library may change


def test_every_case_has_a_row():
    assert [(row.family, row.model) for row in ROWS] == [(case.family, case.title) for case in CASES]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.folder for case in CASES])
def test_a_row_is_what_is_measured(number):
    found, row = measure(CASES[number]), ROWS[number]
    assert (found.tokens, found.tokens_equal) == (row.tokens, row.tokens)
    assert found.codes <= FLOATS
    assert found.official == row.official
    assert (found.pixels is None) == (row.pixels is None)
    assert found.pixels is None or max(found.pixels, row.pixels) <= FLOATS
    # bfloat16 rounds differently on every processor: the stated error must be of the right size, no more.
    for now, stated, slack in (
        (found.bfloat16_tokens, row.bfloat16_tokens, 0.05),
        (found.bfloat16_pixels, row.bfloat16_pixels, 0.05),
    ):
        assert (now is None) == (stated is None)
        assert now is None or abs(now - stated) <= slack


def test_the_page_shows_these_numbers():
    shown = PAGE.read_text().partition(START)[2].partition(END)[0].strip()
    assert shown == table(ROWS)
    assert PAGE.read_text().partition(LISTED)[2].partition(END)[0].strip() == family_table()
