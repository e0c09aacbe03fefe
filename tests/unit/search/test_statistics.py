from __future__ import annotations

import pytest
import torch

from vqcortex.errors import ConfigError, ShapeError, TokenError
from vqcortex.search.protocol import Regulariser
from vqcortex.search.statistics import count_tokens, neighbours_of

TOKENS = torch.tensor([[[0, 1], [0, 1]], [[0, 1], [2, 2]]])


def test_codes_and_neighbours_are_counted():
    found = count_tokens(TOKENS, 4)
    assert isinstance(found, Regulariser)
    assert found.counts.tolist() == [3, 3, 2, 0]
    assert dict(zip(found.across.met.tolist(), found.across.times.tolist(), strict=True)) == {1: 3, 10: 1}
    assert dict(zip(found.down.met.tolist(), found.down.times.tolist(), strict=True)) == {0: 1, 5: 1, 2: 1, 6: 1}


def test_codes_that_meet_more_often_than_chance_have_log_odds_above_zero():
    found = count_tokens(TOKENS, 4)
    zero, one, never = (torch.tensor(code) for code in (0, 1, 3))
    expected = torch.tensor((3 + 1) / (4 * 3 / 8 * 3 / 8 + 1)).log()
    torch.testing.assert_close(found.log_odds(zero, one, across=True), expected)
    assert found.log_odds(one, zero, across=True) < 0
    assert found.log_odds(never, never, across=True) == 0  # nothing was to be expected of them


def test_counts_add_up_over_images():
    both = count_tokens(TOKENS[:1], 4) + count_tokens(TOKENS[1:], 4)
    whole = count_tokens(TOKENS, 4)
    for one, other in ((both.across, whole.across), (both.down, whole.down)):
        assert torch.equal(one.met, other.met)
        assert torch.equal(one.times, other.times)
    assert torch.equal(both.counts, whole.counts)


def test_no_image_says_that_all_grids_are_alike():
    nothing = count_tokens(TOKENS[:0], 4)
    worth = nothing(TOKENS, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(worth, torch.full((2,), 4 * -torch.tensor(4.0).log().item()))
    assert torch.equal((nothing + count_tokens(TOKENS, 4)).counts, count_tokens(TOKENS, 4).counts)


def test_levels_have_no_neighbours_in_each_other():
    around = neighbours_of([(1, 1), (2, 2)])
    assert around[:, 0].tolist() == [-1] * 4
    assert around[:, 1].tolist() == [-1, 2, -1, 3]
    found = count_tokens(torch.tensor([[[5, 0, 1, 2, 3]]]), 6, [(1, 1), (2, 2)])
    assert found.across.met.tolist() == [0 * 6 + 1, 2 * 6 + 3]
    assert found.down.met.tolist() == [0 * 6 + 2, 1 * 6 + 3]


def test_means_are_over_the_region_and_the_pairs_that_touch_it():
    found = count_tokens(TOKENS, 4)
    free = torch.tensor([[True, False], [False, False]])
    frequency, odds = found.means(TOKENS, free)
    torch.testing.assert_close(frequency, found.log_frequency[torch.tensor([0, 0])])
    zero, one = torch.tensor(0), torch.tensor(1)
    first = (found.log_odds(zero, one, across=True) + found.log_odds(zero, zero, across=False)) / 2
    torch.testing.assert_close(odds[0], first)


def test_mistakes_are_named():
    with pytest.raises(TokenError, match=r"tokens span \[0, 2\] but this codebook holds indices \[0, 1\]"):
        count_tokens(TOKENS, 2)
    with pytest.raises(ShapeError, match=r"statistics of 4 codes on .* and of 5 on .* do not add up"):
        count_tokens(TOKENS, 4) + count_tokens(TOKENS, 5)
    with pytest.raises(ShapeError, match="have 5 positions but the grids 4"):
        count_tokens(TOKENS, 4, [(1, 1), (2, 2)])
    with pytest.raises(ConfigError, match=r"smoothing=0.0 must be above 0"):
        count_tokens(TOKENS, 4, smoothing=0.0)
