"""Cliff's delta against what is known of it: closed forms, coverage of its interval, a test that keeps its level."""

import pytest
import torch
from scipy.stats import mannwhitneyu

from vqcortex.audit.effect import (
    check_groups,
    cliffs_delta,
    compare_histograms,
    count_histogram,
    live_codes,
    paired_signs,
)
from vqcortex.errors import ConfigError, DataError, TokenError


def test_groups_that_do_not_overlap_have_delta_one_and_an_interval_that_their_size_decides():
    few, many = (cliffs_delta(torch.arange(n) + 1000.0, torch.arange(n)) for n in (5, 100))
    assert few.delta.item() == many.delta.item() == 1
    assert few.high.item() == 1
    assert few.low.item() < many.low.item() < 1


def test_turned_round_it_changes_its_sign_and_nothing_else():
    a, b = torch.tensor([1, 2, 2, 5]), torch.tensor([0, 2, 3])
    ours, theirs = cliffs_delta(a, b), cliffs_delta(b, a)
    assert ours.delta.item() == -theirs.delta.item()
    torch.testing.assert_close(ours.low, -theirs.high)
    torch.testing.assert_close(ours.p, theirs.p)


def test_the_p_value_is_that_of_the_rank_test():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randint(6, (40,), generator=rng), torch.randint(1, 7, (30,), generator=rng)
    wanted = mannwhitneyu(a.numpy(), b.numpy(), method="asymptotic", use_continuity=False).pvalue
    assert cliffs_delta(a, b).p.item() == pytest.approx(wanted, rel=1e-9)


def test_equal_constants_differ_by_nothing_with_certainty():
    found = cliffs_delta(torch.zeros(4), torch.zeros(5))
    assert (found.delta.item(), found.p.item()) == (0, 1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    a = torch.distributions.Binomial(10, torch.tensor(0.5)).sample((300_000,))
    b = torch.distributions.Binomial(10, torch.tensor(0.42)).sample((300_000,))
    truth = cliffs_delta(a, b).delta.item()
    rng, hits = torch.Generator().manual_seed(1), 0
    for _ in range(200):
        ours, theirs = (x[torch.randint(len(x), (60,), generator=rng)] for x in (a, b))
        found = cliffs_delta(ours, theirs)
        hits += found.low.item() <= truth <= found.high.item()
    assert 178 <= hits <= 199


def test_histograms_count_images_and_not_tokens():
    tokens = torch.tensor([[[3, 3], [5, 5]], [[5, 9], [9, 9]]])
    codes = live_codes(tokens)
    assert codes.tolist() == [3, 5, 9]
    assert count_histogram(tokens, codes).tolist() == [[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0]]


def test_codes_that_are_not_asked_for_are_passed_over():
    found = count_histogram(torch.tensor([[[1, 7]]]), torch.tensor([2, 7]))
    assert found.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_pieces_change_no_histogram(monkeypatch):
    tokens = torch.randint(20, (33, 3, 3), generator=torch.Generator().manual_seed(0))
    whole = count_histogram(tokens, live_codes(tokens))
    monkeypatch.setattr("vqcortex.audit.effect.AT_ONCE", 20)
    assert torch.equal(count_histogram(tokens, live_codes(tokens)), whole)


def test_signs_are_those_of_the_images():
    assert paired_signs(torch.tensor([3, 1, 2]), torch.tensor([1, 1, 5])).tolist() == [1, 0, -1]


@pytest.mark.parametrize("size", [0, 1])
def test_a_group_too_small_to_spread_is_refused(size):
    grid = torch.zeros(size, 2, 2, dtype=torch.int64)
    with pytest.raises(DataError, match=rf"group 'few' has {size} image\(s\); at least 2"):
        check_groups({"many": torch.zeros(5, 2, 2, dtype=torch.int64), "few": grid})
    with pytest.raises(DataError, match=f"groups of 3 and {size} images cannot be compared"):
        compare_histograms(torch.tensor([[2, 1]]), torch.tensor([[size, 0]]))


def test_one_group_is_no_comparison():
    with pytest.raises(ConfigError, match=r"1 attribute group\(s\) given"):
        check_groups({"only": torch.zeros(5, 2, 2, dtype=torch.int64)})


def test_bad_values_are_refused():
    with pytest.raises(DataError, match="values hold NaN"):
        cliffs_delta(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]))
    with pytest.raises(DataError, match="groups of 0 and 0 images"):
        cliffs_delta(torch.zeros(0), torch.zeros(0))
    with pytest.raises(TokenError, match="tokens begin at -2"):
        live_codes(torch.tensor([[[-2, 3]]]))
