"""Slow twins of the audit: pair by pair, image by image, from the formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import fisher_exact, norm

from vqcortex.audit.carriers import find_carriers
from vqcortex.audit.cost import diversity, frechet_distance
from vqcortex.audit.effect import cliffs_delta, compare_histograms, count_histogram, live_codes
from vqcortex.audit.rates import estimate_rates, solve_rates
from vqcortex.audit.repair import GroupSteering, code_frequency, evidence_kept
from vqcortex.audit.shortcuts import measure_enrichment


def slow_effect(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Delta and its interval, from all pairs."""
    n, m = len(ours), len(theirs)
    pairs = [[(a > b) - (a < b) for b in theirs] for a in ours]
    d = sum(map(sum, pairs)) / (n * m)
    rows = [sum(one) / m for one in pairs]
    columns = [sum(one[j] for one in pairs) / n for j in range(m)]
    each = sum((x - d) ** 2 for one in pairs for x in one)
    variance = (m**2 * sum((x - d) ** 2 for x in rows) + n**2 * sum((x - d) ** 2 for x in columns) - each) / (
        n * m * (n - 1) * (m - 1)
    )
    variance = max(variance, (1 - d**2) / (n * m - 1))
    z = norm.ppf(0.975)
    spread = z * math.sqrt(variance * ((1 - d**2) ** 2 + z**2 * variance))
    bottom = 1 - d**2 + z**2 * variance
    return d, max(-1, (d - d**3 - spread) / bottom), min(1, (d - d**3 + spread) / bottom)


@pytest.mark.parametrize("seed", range(4))
def test_delta_and_interval_are_those_of_all_pairs(seed):
    rng = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randint(5, (17,), generator=rng), torch.randint(1, 7, (11,), generator=rng)
    found = cliffs_delta(ours, theirs)
    wanted = slow_effect(ours.tolist(), theirs.tolist())
    assert (found.delta.item(), found.low.item(), found.high.item()) == pytest.approx(wanted, abs=1e-12)


def test_every_code_is_compared_as_if_it_were_alone():
    rng = torch.Generator().manual_seed(5)
    a, b = torch.randint(9, (20, 3, 3), generator=rng), torch.randint(2, 12, (15, 3, 3), generator=rng)
    codes = live_codes(a, b)
    found = compare_histograms(count_histogram(a, codes), count_histogram(b, codes))
    for place, code in enumerate(codes.tolist()):
        alone = cliffs_delta(*((x == code).flatten(1).sum(1) for x in (a, b)))
        for name in ("delta", "low", "high", "p"):
            assert getattr(found, name)[place].item() == pytest.approx(getattr(alone, name).item(), abs=1e-12)


def test_an_excess_is_the_share_less_what_the_groups_would_give():
    rng = torch.Generator().manual_seed(6)
    groups = {name: torch.randint(6, (30, 2, 2), generator=rng) for name in ("a", "b", "c")}
    neutral, even = torch.randint(7, (40, 2, 2), generator=rng), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = find_carriers(groups, neutral, live_codes(*groups.values(), neutral), even)
    for place, code in enumerate(found.codes.tolist()):
        shares = [sum(code in grid.flatten().tolist() for grid in one) / len(one) for one in groups.values()]
        assert found.expected[place].item() == pytest.approx(
            sum(w * s for w, s in zip(even.tolist(), shares, strict=True))
        )
        assert found.neutral[place].item() == pytest.approx(sum(code in g.flatten().tolist() for g in neutral) / 40)


def test_two_groups_without_levels_are_rogans_and_gladens():
    answers = torch.tensor([[0.8, 0.1], [0.2, 0.9]], dtype=torch.float64)
    said = torch.tensor([[0.31, 0.69], [0.05, 0.95], [0.85, 0.15]], dtype=torch.float64)
    wanted = [min(1, max(0, (one - 0.1) / (0.8 - 0.1))) for one in said[:, 0].tolist()]
    assert solve_rates(answers.expand(3, -1, -1), said)[:, 0].tolist() == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("groups", [2, 3])
def test_answers_of_several_levels_give_the_rates_of_greatest_likelihood(groups):
    rng = np.random.default_rng(groups)
    for _ in range(5):
        answers, shares = rng.dirichlet(np.ones(6), groups).T, rng.dirichlet(np.ones(6))
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 401)] * (groups - 1)), -1).reshape(-1, groups - 1)
        grid = np.concatenate([grid, 1 - grid.sum(1, keepdims=True)], 1)
        grid = grid[grid[:, -1] >= 0]
        likelihood = np.log(grid @ answers.T) @ shares
        rate = solve_rates(torch.from_numpy(answers)[None], torch.from_numpy(shares)[None])[0]
        assert rate.tolist() == pytest.approx(grid[likelihood.argmax()].tolist(), abs=6e-3)
        assert np.log(answers @ rate.numpy()) @ shares >= likelihood.max() - 1e-6


def likeliest(answers, said):
    """The first of two rates, by a search along it."""
    return minimize_scalar(
        lambda rate: -(said * np.log(answers @ [rate, 1 - rate] + 1e-12)).sum(), bounds=(0, 1), method="bounded"
    ).x  # fmt: skip


def test_an_interval_ends_where_audits_simulated_one_by_one_seldom_find_as_much():
    known, answered = torch.tensor([[30, 4], [50, 11], [14, 45], [6, 40]]), torch.tensor([80, 120, 60, 40])
    found = estimate_rates(known, answered)
    truth = (known.double() + 0.25).numpy()
    truth /= truth.sum(0)
    rng = np.random.default_rng(1)
    for end, far in ((float(found.low[0]), np.greater_equal), (float(found.high[0]), np.less_equal)):
        hits = 0
        for _ in range(1500):
            answers = np.stack([rng.multinomial(100, one) / 100 for one in truth.T], 1)
            said = rng.multinomial(300, truth @ [end, 1 - end]) / 300
            hits += far(likeliest(answers, said), float(found.rate[0]))
        assert 0.012 < hits / 1500 < 0.042


def test_enrichment_is_fishers_exact_test():
    holding, images = torch.tensor([[8, 2], [3, 9], [1, 5]]), torch.tensor([10, 12, 9])
    found = measure_enrichment(holding, images)
    p = {}
    for concept in range(3):
        for code in range(2):
            has, others = int(holding[concept, code]), int(holding[:, code].sum() - holding[concept, code])
            rest = int(images.sum() - images[concept])
            table = [[has, int(images[concept]) - has], [others, rest - others]]
            p[concept, code] = fisher_exact(table, "greater").pvalue
    ordered = sorted(p, key=p.__getitem__)
    least, wanted = 1.0, {}
    for rank, key in reversed(list(enumerate(ordered, start=1))):
        least = min(least, p[key] * len(p) / rank)
        wanted[key] = least
    for (concept, code), value in wanted.items():
        assert found.q[concept, code].item() == pytest.approx(value, abs=1e-12)


def test_frechet_distance_and_diversity_from_their_formulas():
    rng = torch.Generator().manual_seed(7)
    a, b = torch.randn(30, 3, generator=rng).double(), 0.5 + 2 * torch.randn(25, 3, generator=rng).double()
    one, other = torch.cov(a.T), torch.cov(b.T)
    values = torch.linalg.eigvals(one @ other)
    wanted = (a.mean(0) - b.mean(0)).square().sum() + one.trace() + other.trace() - 2 * values.real.sqrt().sum()
    assert frechet_distance(a, b) == pytest.approx(wanted.item())
    pairs = [(a[i] - a[j]).norm().item() for i in range(30) for j in range(i)]
    assert diversity(a) == pytest.approx(sum(pairs) / len(pairs))


def test_a_group_steering_is_the_expected_weight_of_what_may_still_come():
    rng = torch.Generator().manual_seed(8)
    c, k, h, w = 3, 5, 2, 2
    frequency = torch.rand(c, k, h, w, generator=rng, dtype=torch.float64).softmax(1)
    rates = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    weight, before = torch.randn(c, generator=rng).double(), torch.rand(h, w, generator=rng).double()
    steering = GroupSteering(evidence=frequency.log(), before=before, rates=rates, weight=weight)
    drawn, order = torch.randint(k, (4, 3), generator=rng), torch.tensor([2, 0, 3])
    found = steering.bias(drawn, order, 1)
    for image in range(4):
        for code in range(k):
            likely = []
            for group in range(c):
                said = math.prod(
                    frequency[group, drawn[image, at], order[at] // w, order[at] % w].item() for at in range(3)
                )
                likely.append(rates[group].item() * said ** before[0, 1].item() * frequency[group, code, 0, 1].item())
            shares = [one / sum(likely) for one in likely]
            wanted = math.log(sum(share * math.exp(one) for share, one in zip(shares, weight.tolist(), strict=True)))
            assert found[image, code].item() == pytest.approx(wanted)


def test_the_factor_on_evidence_is_the_best_of_a_fine_grid():
    rng = torch.Generator().manual_seed(9)
    groups = [torch.randint(low, low + 4, (40, 1, 4), generator=rng) for low in (0, 1)]
    evidence = torch.stack([code_frequency(one, 5) for one in groups]).log()
    found = evidence_kept(groups, evidence)[0]
    for place in range(1, 4):

        def surprise(factor, place=place):
            total = 0.0
            for group, tokens in enumerate(groups):
                for grid in tokens:
                    flat = grid.flatten().tolist()
                    odds = [
                        factor * sum(one[flat[at], 0, at].item() for at in range(place))
                        + one[flat[place], 0, place].item()
                        for one in evidence
                    ]
                    total -= odds[group] - math.log(sum(map(math.exp, odds)))
            return total

        best = min((step / 100 for step in range(301)), key=surprise)
        assert found[place].item() == pytest.approx(best, abs=0.02)
