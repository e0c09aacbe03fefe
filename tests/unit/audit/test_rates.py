"""Rates come out right whatever the classifier's errors are, and the interval knows what is not known."""

import math

import numpy as np
import pytest
import torch

from vqcortex.audit.rates import estimate_rates, known_answers, reference_rates, skill_of, solve_rates
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


def test_groups_that_are_answered_alike_share_what_they_have_and_no_answers_tell_nothing():
    answers = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]], dtype=torch.float64)
    rates = solve_rates(answers.expand(2, -1, -1), torch.tensor([[0.5, 0.5], [0, 0]], dtype=torch.float64))
    assert rates[0].tolist() == pytest.approx([0.25, 0.25, 0.5], abs=1e-4)
    assert rates[1].tolist() == pytest.approx([1 / 3] * 3)


def test_several_groups_have_intervals_that_hold_their_rates():
    rng, hits = np.random.default_rng(0), torch.zeros(3)
    answers, truth = np.array([[0.8, 0.1, 0.2], [0.1, 0.7, 0.2], [0.1, 0.2, 0.6]]), np.array([0.6, 0.38, 0.02])
    for seed in range(25):
        known = torch.from_numpy(np.stack([rng.multinomial(80, one) for one in answers.T], 1))
        found = estimate_rates(known, torch.from_numpy(rng.multinomial(300, answers @ truth)), draws=200, seed=seed)
        hits += (found.low <= torch.from_numpy(truth)) & (torch.from_numpy(truth) <= found.high)
    assert (hits >= 20).all()


def test_two_groups_have_one_interval_between_them():
    found = estimate_rates(ERRS, torch.tensor([310, 690]))
    assert found.low.flip(0).tolist() == pytest.approx((1 - found.high).tolist())
    assert found.ends(1, 0.95) == pytest.approx((found.low[1].item(), found.high[1].item()), abs=2e-3)


def test_few_known_images_widen_the_interval():
    narrow, wide = (estimate_rates(ERRS // by, torch.tensor([310, 690])) for by in (1, 50))
    assert (wide.high - wide.low)[0].item() > 1.5 * (narrow.high - narrow.low)[0].item()


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng, hits = torch.Generator().manual_seed(0), 0
    for number in range(100):
        known = [torch.rand(150, generator=rng) < share for share in (0.9, 0.15)]
        confusion = torch.tensor([[int(one.sum()) for one in known], [int((~one).sum()) for one in known]])
        carries = torch.rand(300, generator=rng) < 0.65
        called = torch.where(carries, torch.rand(300, generator=rng) < 0.9, torch.rand(300, generator=rng) < 0.15)
        found = estimate_rates(
            confusion, torch.tensor([int(called.sum()), int((~called).sum())]), draws=300, seed=number
        )
        hits += found.low[0].item() <= 0.65 <= found.high[0].item()
    assert 89 <= hits <= 100


def test_the_tolerance_is_not_counted_as_bias():
    found = estimate_rates(torch.tensor([[500, 0], [0, 500]]), torch.tensor([540, 460]))
    assert found.p_beyond(0, 0.5, 0.05) == 1
    assert found.p_beyond(0, 0.5, 0.0) < 0.05
    assert found.p_beyond(1, 0.5, 0.0) < 0.05
    assert found.p_beyond(0, 0.5, 0.0) < found.p_beyond(0, 0.5, 0.01) < found.p_beyond(0, 0.5, 0.03)
    assert found.distance(0, 0.5) == pytest.approx(0.04 / (0.25 / 1000) ** 0.5, rel=0.1)


def test_the_interval_is_what_the_p_value_does_not_exclude():
    found = estimate_rates(ERRS, torch.tensor([310, 690]), level=0.9)
    for end in (found.low[0].item(), found.high[0].item()):
        assert found.p_beyond(0, end, 0.0) == pytest.approx(0.1, abs=0.01)


def test_answers_that_are_no_mixture_of_the_known_ones_are_told_from_those_that_are():
    known = torch.tensor([[30, 1], [60, 9], [9, 50], [1, 40]])
    times, p = estimate_rates(known, torch.tensor([155, 345, 295, 205])).misfit()  # half of each
    assert times < 0.05
    assert p > 0.9
    odd = estimate_rates(known, torch.tensor([400, 100, 100, 400]))  # surer of both
    times, p = odd.misfit()
    assert times > 20
    assert p == pytest.approx(1 / 1001)
    low, high = odd.ends(0, 0.95, dispersion=times)
    assert high - low > 3 * float(odd.high[0] - odd.low[0])
    assert estimate_rates(ERRS, torch.tensor([310, 690])).misfit()[1] > 0.3


def test_a_mixture_is_seldom_taken_for_none():
    truth, alarms = torch.arange(2).repeat_interleave(200), 0
    for seed in range(100):
        here = (torch.rand(1000, generator=torch.Generator().manual_seed(seed)) >= 0.65).long()
        known = known_answers(scored(truth, 1.6, 1.4, seed + 1000), truth)
        answered = known.of(scored(here, 1.6, 1.4, seed + 2000)).bincount(minlength=8)
        alarms += estimate_rates(known.counts, answered, draws=100).misfit()[1] <= 0.05
    assert 1 <= alarms <= 11


def test_errs_is_the_worst_group():
    assert estimate_rates(ERRS, torch.tensor([310, 690])).errs == pytest.approx(0.2)


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
    with pytest.raises(ConfigError, match=r"reference=0.5,nan must be 2 shares above 0"):
        reference_rates((0.5, math.nan), 2)


def test_confusion_and_skill():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    known = known_answers(probabilities, torch.tensor([0, 1, 1, 1]))
    assert known.levels == 1
    assert known.counts.tolist() == known.confusion.tolist() == [[1, 1], [0, 2]]
    assert skill_of(known.confusion) == pytest.approx(2 / 3)


def scored(groups, centre, spread, seed):
    """Probabilities of two groups whose log-odds lie around +-centre."""
    noise = torch.randn(len(groups), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    odds = torch.where(groups == 0, centre, -centre) + spread * noise
    return torch.stack([odds, -odds], 1).div(2).softmax(1)


def test_answers_tell_sure_images_from_unsure_ones():
    truth = torch.arange(2).repeat_interleave(120)
    probabilities = scored(truth, 2.0, 1.5, 0)
    known = known_answers(probabilities, truth)
    assert known.levels == 4
    assert known.counts.sum(0).tolist() == [120, 120]
    called, right = known.counts.view(2, 4, 2).sum(2), known.counts.view(2, 4, 2)[[0, 1], :, [0, 1]]
    assert (called.max(1).values - called.min(1).values <= 1).all()  # as many of each level
    assert (right[:, 3] / called[:, 3] > right[:, 0] / called[:, 0]).all()
    assert torch.equal(known.of(probabilities).bincount(minlength=8), known.counts.sum(1))
    # Of every level the least sure image is surer than the surest of the level below.
    sure, answers = probabilities.max(1).values, known.of(probabilities)
    for named in (0, 4):
        for level in range(named, named + 3):
            assert sure[answers == level].max() < sure[answers == level + 1].min()


@pytest.mark.parametrize(("images", "levels"), [(29, 1), (60, 2), (119, 3), (1000, 4)])
def test_few_known_images_make_few_levels(images, levels):
    truth = torch.arange(2).repeat_interleave(images)
    assert known_answers(scored(truth, 1.0, 1.0, 0), truth).levels == levels


def test_a_classifier_that_names_one_group_only_has_answers_for_it():
    known = known_answers(torch.tensor([[0.9, 0.1], [0.6, 0.4]] * 10), torch.tensor([0, 1] * 10))
    assert known.levels == 1
    assert known.confusion.tolist() == [[10, 10], [0, 0]]


def test_equally_sure_images_are_of_one_level():
    sure = torch.tensor([[1 - 1e-9, 1e-9], [1e-12, 1 - 1e-12]], dtype=torch.float64).repeat(50, 1)
    known = known_answers(sure, torch.tensor([0, 1] * 50))
    assert (known.counts.sum(1) > 0).sum() == 2


def levels_of(seed, one_level, clear=0.0, draws=200):
    """A rate of 0.65 among 300 images, by 150 known ones of each group; `clear` moves the images at hand apart."""
    truth = torch.arange(2).repeat_interleave(150)
    here = (torch.rand(300, generator=torch.Generator().manual_seed(seed)) >= 0.65).long()
    known = known_answers(scored(truth, 1.6, 1.4, seed + 1000), truth)
    answered = known.of(scored(here, 1.6 + clear, 1.4, seed + 2000)).bincount(minlength=len(known.counts))
    if one_level:
        return estimate_rates(known.confusion, answered.view(2, -1).sum(1), draws=draws, seed=seed)
    return estimate_rates(known.counts, answered, draws=draws, seed=seed)


def test_levels_narrow_the_interval_and_it_holds_the_truth_as_often():
    fine, coarse = ([levels_of(seed, one) for seed in range(60)] for one in (False, True))
    hits = sum(one.low[0].item() <= 0.65 <= one.high[0].item() for one in fine)
    assert 54 <= hits <= 60
    widths = [sum((one.high - one.low)[0].item() for one in some) for some in (fine, coarse)]
    assert widths[0] < 0.95 * widths[1]
    assert fine[0].said.tolist() == pytest.approx(coarse[0].said.tolist())


def test_clearer_images_than_the_known_ones_are_corrected_less_with_levels():
    fine, coarse = (
        sum(levels_of(seed, one, clear=1.5, draws=100).rate[0].item() - 0.65 for seed in range(40)) / 40
        for one in (False, True)
    )
    assert coarse > 0.03
    assert abs(fine) < 0.6 * coarse


@pytest.mark.parametrize(("rate", "least"), [(1.0, 53), (0.97, 53), (0.9, 53)])
def test_intervals_hold_where_a_group_hardly_comes_and_the_classifier_errs_often(rate, least):
    truth, hits = torch.arange(2).repeat_interleave(100), 0
    for seed in range(60):
        here = (torch.rand(400, generator=torch.Generator().manual_seed(seed)) >= rate).long()
        known = known_answers(scored(truth, 1.6, 1.4, seed + 1000), truth)
        answered = known.of(scored(here, 1.6, 1.4, seed + 2000)).bincount(minlength=len(known.counts))
        found = estimate_rates(known.counts, answered, draws=200, seed=seed)
        hits += found.low[0].item() <= rate <= found.high[0].item()
    assert hits >= least


def test_an_answer_that_no_known_image_got_tells_nothing():
    known = torch.tensor([[0, 0], [50, 0], [0, 50], [0, 0]])
    found = estimate_rates(known, torch.tensor([500, 30, 10, 0]))
    assert found.rate.tolist() == pytest.approx([0.75, 0.25])
    assert found.said.tolist() == pytest.approx([530 / 540, 10 / 540])
    assert found.misfit()[1] == pytest.approx(1 / 1001)
