from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqcortex.errors import ConfigError, TokenError
from vqcortex.tokens.grid import check_tokens, smallest_id_type


def test_tokens_inside_the_codebook_pass_at_both_ends():
    check_tokens(torch.tensor([[0, 16383]]), 16384)


def test_no_tokens_are_inside_any_codebook():
    check_tokens(torch.zeros(0, 2, 2, dtype=torch.int64), 1)


@pytest.mark.parametrize("tokens", [[0, 16391], [-1, 3]])
def test_a_token_outside_names_the_span_and_the_rule(tokens):
    message = (
        rf"tokens span \[{min(tokens)}, {max(tokens)}\] but this codebook holds indices \[0, 16383\]; was the store"
    )
    with pytest.raises(TokenError, match=message):
        check_tokens(torch.tensor(tokens), 16384)


@pytest.mark.parametrize(
    ("k", "kind"),
    [
        (1, np.uint8),
        (256, np.uint8),
        (257, np.uint16),
        (65536, np.uint16),
        (65537, np.uint32),
        (2**32, np.uint32),
    ],
)
def test_the_id_type_is_the_smallest_that_holds_the_last_code(k, kind):
    assert smallest_id_type(k) == kind


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2**32))
def test_the_last_code_survives_its_id_type(k):
    assert int(np.array([k - 1]).astype(smallest_id_type(k))[0]) == k - 1


@pytest.mark.parametrize("k", [0, -3, 2**32 + 1])
def test_an_impossible_codebook_has_no_id_type(k):
    with pytest.raises(ConfigError, match=f"k={k} codes cannot be stored; a codebook holds 1 to 4294967296"):
        smallest_id_type(k)
