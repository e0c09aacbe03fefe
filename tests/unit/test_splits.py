from __future__ import annotations

import pytest

from vqcortex.splits import SPLITS, split_of


@pytest.mark.parametrize(
    ("word", "split"), [("train", "train"), ("Val", "validation"), ("valid", "validation"), ("dev", None), ("", None)]
)
def test_a_split_is_known_by_its_spellings(word, split):
    assert split_of(word) == split


def test_a_split_is_its_own_spelling():
    assert [split_of(one) for one in SPLITS] == ["train", "validation", "test"]
