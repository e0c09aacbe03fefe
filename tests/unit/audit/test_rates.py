"""Rates come out right whatever the classifier's errors are, and the interval knows what is not known."""

import pytest
import torch

from vqcortex.audit.rates import (
    confusion_of,
    estimate_rates,
    reference_rates,
    skill_of,
    solve_rates,
)
from vqcortex.errors import ConfigError, DataError

ERRS = torch.tensor([[800, 100], [200, 900]])  # finds 80 % of the first group, calls 10 % of the second so


def test_errors_are_taken_out():
    # 30 % of the first group: 0.3 * 0.8 + 0.7 * 0.1 = 0.31 are called so.
    found = estimate_rates(ERRS, torch.tensor([310, 690]))
    assert found.said[0].item() == pytest.approx(0.31)
    assert found.rate.tolist() == pytest.approx([0.3, 0.7])
    assert found.low[0].item() < 0.3 < found.high[0].item()


def test_a_perfect_classifier_is_believed():
    found = estimate_rates(torch.tensor([[500, 0], [0, 500]]), torch.tensor([70, 30]))
    assert found.rate[0].item() == pytest.approx(0.7)
    assert found.low[0].item() == pytest.approx(0.6, abs=0.02)


def test_what_no_rates_could_have_made_stays_between_zero_and_one():
    found = estimate_rates(ERRS, torch.tensor([95, 905]))
    assert found.rate.tolist() == [0, 1]
    assert found.low[0].item() == 0
    assert found.high[0].item() > 0


def test_several_groups_are_solved_together():
    answers = torch.tensor([[0.8, 0.1, 0.2], [0.1, 0.7, 0.2], [0.1, 0.2, 0.6]], dtype=torch.float64)
    truth = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    torch.testing.assert_close(solve_rates(answers[None], (answers @ truth)[None])[0], truth, atol=1e-3, rtol=0)


def test_few_known_images_widen_the_interval():
    narrow, wide = (estimate_rates(ERRS // by, torch.tensor([310, 690])) for by in (1, 50))
    assert (wide.high - wide.low)[0].item() > 1.5 * (narrow.high - narrow.low)[0].item()


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng, hits = torch.Generator().manual_seed(0), 0
    for number in range(200):
        known = [torch.rand(150, generator=rng) < share for share in (0.9, 0.15)]
        confusion = torch.tensor([[int(one.sum()) for one in known], [int((~one).sum()) for one in known]])
        carries = torch.rand(300, generator=rng) < 0.65
        called = torch.where(carries, torch.rand(300, generator=rng) < 0.9, torch.rand(300, generator=rng) < 0.15)
        found = estimate_rates(confusion, torch.tensor([int(called.sum()), int((~called).sum())]), seed=number)
        hits += found.low[0].item() <= 0.65 <= found.high[0].item()
    assert 178 <= hits <= 199


def test_the_tolerance_is_not_counted_as_bias():
    found = estimate_rates(torch.tensor([[500, 0], [0, 500]]), torch.tensor([540, 460]))
    assert found.p_beyond(0, 0.5, 0.05) > 0.5
    assert found.p_beyond(0, 0.5, 0.0) < 0.05
    assert found.p_beyond(1, 0.5, 0.0) < 0.05
    assert found.distance(0, 0.5) == pytest.approx(0.04 / found.draws[:, 0].std().item())


def test_a_classifier_at_chance_says_nothing():
    with pytest.raises(DataError, match=r"cannot tell the groups apart \(skill 0.04 "):
        estimate_rates(torch.tensor([[52, 48], [48, 52]]), torch.tensor([5, 5]))


@pytest.mark.parametrize(
    ("confusion", "said", "why"),
    [
        (torch.tensor([[5, 0], [0, 5]]), torch.tensor([0, 0]), "rates among 0 images"),
        (torch.tensor([[5, 0], [0, 0]]), torch.tensor([1, 1]), "group number 1 has no known images"),
    ],
)
def test_nothing_to_go_by_is_refused(confusion, said, why):
    with pytest.raises(DataError, match=why):
        estimate_rates(confusion, said)


def test_bad_settings_are_listed():
    with pytest.raises(ConfigError, match=r"(?s)level=1 must.*draws=10 must be at least 100"):
        estimate_rates(ERRS, torch.tensor([1, 1]), level=1, draws=10)


def test_references_are_shares():
    assert reference_rates((), 4).tolist() == [0.25] * 4
    assert reference_rates((3, 1), 2).tolist() == [0.75, 0.25]
    with pytest.raises(ConfigError, match=r"reference=1,0 must be 2 shares above 0"):
        reference_rates((1, 0), 2)
    with pytest.raises(ConfigError, match=r"reference=0.5,0.5 must be 3 shares"):
        reference_rates((0.5, 0.5), 3)


def test_confusion_and_skill():
    confusion = confusion_of(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
    assert confusion.tolist() == [[1, 1], [0, 2]]
    assert skill_of(confusion) == pytest.approx(2 / 3)
