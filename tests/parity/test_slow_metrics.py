"""Curves, metrics and oracle again, in plain loops from their definitions, or by SciPy, scikit-learn and Captum."""

from __future__ import annotations

import math

import pytest
import torch
from captum.metrics import infidelity, sensitivity_max
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.evaluation.choose import fills_for
from vqcortex.evaluation.curves import measure_curves
from vqcortex.evaluation.fills import code_frequency
from vqcortex.evaluation.metrics import METRICS
from vqcortex.evaluation.metrics.infidelity import Infidelity
from vqcortex.evaluation.metrics.sensitivity import MaxSensitivity
from vqcortex.evaluation.oracle import greedy_on_judge
from vqcortex.judges.toy import toy_judges
from vqcortex.seeds import generator_for

GRID = (3, 3)
TOY = ToyAdapter(grid=GRID)
IDS = ["a", "b", "c"]
CONCEPT = torch.tensor([1, 4, 6])
TOKENS = TOY.generate(CONCEPT, IDS, seed=2)
COUNTS = (1, 4, 9)
JUDGES = toy_judges()
RNG = torch.Generator().manual_seed(0)
SCORES = {"drawn": torch.randn(3, *GRID, generator=RNG), "tied": torch.randint(0, 3, (3, *GRID), generator=RNG).float()}
FILLS = fills_for(("grey", "mean_code", "resampled_codes"), frequency=code_frequency(TOKENS, 8))
EMBEDDED = torch.randn(3, 2, *GRID, generator=RNG)
LABEL = torch.tensor([0, 2, 1])
NET = nn.Sequential(nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
CODE = torch.tensor([0.3, -0.2])


def slow_order(score):
    """Cells of one image, best first, ties in reading order."""
    cells = [(-float(score[i, j]), i, j) for i in range(GRID[0]) for j in range(GRID[1])]
    return [(i, j) for _, i, j in sorted(cells)]


def slow_belief(judge, fill, image, cells):
    """Probability of the concept in one image with some cells hidden."""
    hidden = torch.zeros(1, *GRID, dtype=torch.bool)
    for cell in cells:
        hidden[0][cell] = True
    pixels = fill(TOY, TOKENS[[image]], hidden, IDS[image : image + 1])
    return judge(pixels)[0, CONCEPT[image]].exp().item()


@pytest.fixture(scope="module")
def curves():
    return measure_curves(TOY, JUDGES, TOKENS, CONCEPT, IDS, SCORES, COUNTS, FILLS)


@pytest.fixture(scope="module")
def slow():
    """Probabilities by (arm, fill, judge, image): with the best 0 to 9 hidden, and with all but the best 0 to 9."""
    found = {}
    for a, score in enumerate(SCORES.values()):
        for f, fill in enumerate(FILLS):
            for j, judge in enumerate(JUDGES):
                for b in range(3):
                    order = slow_order(score[b])
                    removed = [slow_belief(judge, fill, b, order[:n]) for n in (0, *COUNTS)]
                    kept = [slow_belief(judge, fill, b, order[n:]) for n in (0, *COUNTS)]
                    found[a, f, j, b] = removed, kept
    return found


def test_curves_equal_their_slow_twin(curves, slow):
    for (a, f, j, b), (removed, kept) in slow.items():
        assert curves.before[j, b].item() == pytest.approx(removed[0], abs=2e-6)
        assert curves.removed[a, f, :, j, b].tolist() == pytest.approx(removed[1:], abs=2e-6)
        assert curves.kept[a, f, :, j, b].tolist() == pytest.approx(kept[1:], abs=2e-6)
        assert curves.empty[f, j, b].item() == pytest.approx(kept[0], abs=2e-6)


def slow_area(heights):
    """By trapezoids over shares of the nine positions."""
    shares = [n / 9 for n in (0, *COUNTS)]
    ends = zip(shares, shares[1:], heights, heights[1:], strict=False)
    return sum((right - left) * (low + high) / 2 for left, right, low, high in ends)


SLOW = {
    "deletion_auc": lambda removed, kept: slow_area(removed),
    "insertion_auc": lambda removed, kept: slow_area(kept),
    "drop": lambda removed, kept: sum(removed[0] - one for one in removed[1:]) / 3,
    "comprehensiveness": lambda removed, kept: sum(removed[0] - one for one in removed[1:]) / 3,
    "sufficiency": lambda removed, kept: sum(removed[0] - one for one in kept[1:]) / 3,
}


def test_no_metric_of_curves_is_without_a_twin():
    assert set(SLOW) == {name for name in METRICS if METRICS[name].reads == "curves"}


@pytest.mark.parametrize("name", sorted(SLOW))
def test_metrics_of_curves_equal_their_slow_twins(curves, slow, name):
    found = METRICS[name]()(curves)
    for place, both in slow.items():
        assert found[place].item() == pytest.approx(SLOW[name](*both), abs=2e-6)


def slow_lowest(odds):
    """Cells from the lowest log-odds up; neighbours nearer than a hundred-thousandth of the largest are equal."""
    near, run, runs = 1e-5 * max(1, *map(abs, odds.values())), 0, {}
    ascending = sorted(odds, key=odds.__getitem__)
    for before, cell in zip([ascending[0], *ascending], ascending, strict=False):
        run += odds[cell] - odds[before] > near
        runs[cell] = run
    return sorted(odds, key=lambda cell: (runs[cell], cell))


@pytest.mark.parametrize("fill", FILLS, ids=lambda fill: fill.name)
def test_the_oracle_equals_its_slow_twin(fill):
    found = greedy_on_judge(TOY, JUDGES[0], TOKENS, CONCEPT, IDS, fill, 3)
    for b in range(3):
        gone, left = [], [(i, j) for i in range(GRID[0]) for j in range(GRID[1])]
        for _ in range(3):
            chance = {cell: slow_belief(JUDGES[0], fill, b, [*gone, cell]) for cell in left}
            ordered = slow_lowest({cell: math.log(p / (1 - p)) for cell, p in chance.items()})
            gone, left = [*gone, ordered[0]], sorted(ordered[1:])
        expected = torch.zeros(GRID)
        for place, cell in enumerate([*gone, *ordered[1:]]):
            expected[cell] = 9 - place
        assert torch.equal(found[b].float(), expected)


def maps_of(embedded, concept, image_ids):
    """A method that moves with the codes."""
    return (embedded[:, 0] * concept[:, None, None] + embedded[:, 1]).tanh()


def test_infidelity_equals_its_slow_twin():
    metric = Infidelity(fill=CODE, draws=6, share=0.7, seed=3, at_once=4)
    found = metric(maps_of, NET, EMBEDDED, LABEL, IDS)
    maps = maps_of(EMBEDDED, LABEL, IDS)
    for b, name in enumerate(IDS):
        rng = generator_for(3, name, "infidelity")
        count, drawn = torch.randint(1, 7, (6, 1), generator=rng), torch.rand(6, 9, generator=rng)
        pairs = []
        for s in range(6):
            cells = sorted(range(9), key=drawn[s].tolist().__getitem__)[: int(count[s])]
            changed = EMBEDDED[b].clone()
            for cell in cells:
                changed[:, cell // 3, cell % 3] = CODE
            fall = (NET(EMBEDDED[[b]]) - NET(changed[None]))[0, LABEL[b]].item()
            pairs.append((sum(maps[b].flatten()[cell].item() for cell in cells), fall))
        factor = max(0.0, sum(i * f for i, f in pairs) / sum(i * i for i, _ in pairs))
        assert found[b].item() == pytest.approx(sum((factor * i - f) ** 2 for i, f in pairs) / 6, rel=1e-4)


def test_infidelity_is_that_of_captum_where_the_best_factor_is_not_negative():
    weight = torch.stack([NET(EMBEDDED[[b]])[0, LABEL[b]] for b in range(3)])
    maps = torch.ones(3, *GRID) * weight.sign()[:, None, None] + 0.1 * EMBEDDED[:, 0]
    metric = Infidelity(fill=CODE, draws=8)
    hidden = metric.replaced(IDS, GRID)  # (b, s, h, w)
    taken = iter(range(8))

    def forward(kept, image):
        """Logit with a share of each position kept: 1 its code, 0 the fill."""
        mixed = torch.where(kept[:, None] > 0.5, EMBEDDED[image], CODE[:, None, None])
        return NET(mixed).gather(1, LABEL[image][:, None])[:, 0]

    def perturb(kept):
        gone = hidden[:, next(taken)].float()
        return gone, kept - gone

    everything, every = torch.ones(3, *GRID), torch.arange(3)
    theirs = infidelity(forward, perturb, everything, maps, additional_forward_args=every, n_perturb_samples=8,
                        max_examples_per_batch=3, normalize=True)  # fmt: skip
    ours = metric(lambda e, c, i: maps, NET, EMBEDDED, LABEL, IDS)
    falls = torch.stack([forward(everything, every) - forward(1 - hidden[:, s].float(), every) for s in range(8)], 1)
    positive = ((hidden.flatten(2) * maps.flatten(1)[:, None]).sum(2) * falls).mean(1) > 0
    assert positive.any()
    torch.testing.assert_close(ours[positive], theirs[positive], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[~positive], falls[~positive].square().mean(1))


def test_max_sensitivity_equals_its_slow_twin_and_captum():
    metric = MaxSensitivity(radius=0.3, draws=4, seed=1)
    found = metric(maps_of, NET, EMBEDDED, LABEL, IDS)
    for b, name in enumerate(IDS):
        image, here = EMBEDDED[b], (LABEL[[b]], [name])
        most, length = 0.0, maps_of(image[None], *here).norm().item()
        for draw in range(4):
            noise = torch.rand(2, *GRID, generator=generator_for(1, name, "sensitivity", draw)) * 2 - 1
            moved = image + 0.3 * (image.max() - image.min()) * noise
            most = max(most, (maps_of(moved[None], *here) - maps_of(image[None], *here)).norm().item())
        assert found[b].item() == pytest.approx(most / length, rel=1e-5)
    draws = iter(range(4))

    def maps(images):  # a tuple for a tuple: Captum would take a lone tensor apart
        return (maps_of(images[0], LABEL, IDS),) if isinstance(images, tuple) else maps_of(images, LABEL, IDS)

    def perturb(images):
        return images + metric.perturbation(EMBEDDED, IDS, next(draws))

    theirs = sensitivity_max(maps, EMBEDDED, perturb, n_perturb_samples=4, max_examples_per_batch=3)
    torch.testing.assert_close(found, theirs.float(), rtol=1e-5, atol=1e-7)


def test_rank_agreement_is_that_of_scipy():
    found = METRICS["rank_agreement"]()(SCORES["drawn"], SCORES["tied"])
    expected = [spearmanr(SCORES["drawn"][b].flatten(), SCORES["tied"][b].flatten()).statistic for b in range(3)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_overlap_of_the_top_equals_its_slow_twin():
    found = METRICS["top_overlap"](share=0.4)(SCORES["drawn"], SCORES["tied"])
    for b in range(3):
        one, two = (set(slow_order(score[b])[:4]) for score in SCORES.values())
        assert found[b].item() == pytest.approx(len(one & two) / len(one | two))


def test_localisation_equals_its_twins():
    relevant = SCORES["drawn"] + SCORES["tied"] > 1
    auroc, precision = (METRICS[f"localisation_{name}"]()(SCORES["tied"], relevant) for name in ("auroc", "precision"))
    for b in range(3):
        assert auroc[b].item() == pytest.approx(roc_auc_score(relevant[b].flatten(), SCORES["tied"][b].flatten()))
        best = slow_order(SCORES["tied"][b])[: int(relevant[b].sum())]
        assert precision[b].item() == pytest.approx(sum(bool(relevant[b][cell]) for cell in best) / len(best))
