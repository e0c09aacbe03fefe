"""Every attribution method and the pooling again, naively, from their formulas."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from vqcortex.attribution import METHODS
from vqcortex.attribution.protocol import build_method
from vqcortex.attribution.reference import published_gradient, published_tis
from vqcortex.concepts.pooling import concept_tokens, count_image_tokens
from vqcortex.seeds import generator_for

IDS = ["n01/1", "n01/2", "n02/1"]
BASELINE = torch.linspace(-0.5, 0.5, 5)


def slow_mean_gradient(net, x, concept, name, *, draws, noise, seed):
    rng, grads = generator_for(seed, name, "noise"), []
    for _ in range(draws):
        y = (x + noise * (x.max() - x.min()) * torch.randn(x.shape, generator=rng)).requires_grad_()
        net(y[None])[0, concept].backward()
        grads.append(y.grad)
    return torch.stack(grads).mean(0)


def slow_clean_gradient(net, x, concept):
    y = x.clone().requires_grad_()
    net(y[None])[0, concept].backward()
    return y.grad


def slow_reduce(gradient, reduce):
    """Channel by channel, position by position."""
    d, h, w = gradient.shape
    out = torch.empty(h, w)
    for i in range(h):
        for j in range(w):
            values = [float(gradient[c, i, j]) for c in range(d)]
            out[i, j] = {
                "max": max(values),
                "mean": sum(values) / d,
                "abs_max": max(map(abs, values)),
                "abs_mean": sum(map(abs, values)) / d,
                "norm": sum(v * v for v in values) ** 0.5,
            }[reduce]
    return out


def slow_product(gradient, x, baseline):
    d, h, w = x.shape
    return torch.tensor(
        [
            [sum(float(gradient[c, i, j] * (x[c, i, j] - baseline[c])) for c in range(d)) for j in range(w)]
            for i in range(h)
        ]
    )


def slow_tis(net, x, concept, name, reduce):
    return slow_reduce(slow_mean_gradient(net, x, concept, name, draws=4, noise=0.3, seed=9), reduce)


def slow_gradient(net, x, concept, name, reduce):
    return slow_reduce(slow_clean_gradient(net, x, concept), reduce)


def slow_gradient_x_embedding(net, x, concept, name, reduce):
    return slow_product(slow_clean_gradient(net, x, concept), x, BASELINE)


def slow_noisy_gradient_x_embedding(net, x, concept, name, reduce):
    return slow_product(slow_mean_gradient(net, x, concept, name, draws=4, noise=0.3, seed=9), x, BASELINE)


SLOW = {
    "tis": slow_tis,
    "gradient": slow_gradient,
    "gradient_x_embedding": slow_gradient_x_embedding,
    "noisy_gradient_x_embedding": slow_noisy_gradient_x_embedding,
}


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7), nn.GELU(), nn.Flatten(), nn.Linear(7 * 12, 4))
    return (
        net.eval(),
        torch.randn(3, 5, 3, 4) * torch.tensor([1, 3, 0.2])[:, None, None, None],
        torch.tensor([2, 0, 3]),
    )


def test_every_method_has_a_slow_twin():
    assert set(SLOW) == set(METHODS)


@pytest.mark.parametrize("reduce", ["max", "mean", "abs_max", "abs_mean", "norm"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_equals_its_slow_twin(name, reduce, case):
    net, embedded, concept = case
    method = build_method(name, draws=4, noise=0.3, seed=9, reduce=reduce, baseline=BASELINE)
    slow = [SLOW[name](net, *one, reduce) for one in zip(embedded, concept, IDS, strict=True)]
    torch.testing.assert_close(method(net, embedded, concept, IDS), torch.stack(slow), rtol=1e-4, atol=1e-5)


def test_the_published_loop_and_one_backward_give_the_same_bits(case):
    net, embedded, concept = case
    noises = torch.randn(3, *embedded.shape)
    fast = published_gradient(net, embedded, concept, noises, draws=3)
    slow = published_gradient(net, embedded, concept, noises, draws=3, one_backward_per_sample=True)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-7)


def test_the_published_score_without_its_quirk_is_ours(case):
    net, embedded, concept = case
    rngs = [generator_for(0, name, "noise") for name in IDS]
    noises = torch.stack([torch.stack([torch.randn(5, 3, 4, generator=rng) for rng in rngs]) for _ in range(4)])
    published = published_tis(net, embedded, concept, noises, draws=4, batch_noise_scale=False)
    ours = build_method("tis", draws=4)(net, embedded, concept, IDS)
    torch.testing.assert_close(published.float(), ours)


def slow_counts(tokens, importance, concepts, wanted, n):
    """Counter of best tokens, Counter of images that have them, for the images of one concept."""
    counts, having = Counter(), Counter()
    for grid, scores, concept in zip(tokens, importance, concepts, strict=True):
        if concept != wanted:
            continue
        best = sorted(range(len(scores)), key=lambda at: (-scores[at], at))[:n]
        counts.update(grid[at] for at in best)
        having.update({grid[at] for at in best})
    return counts, having


@pytest.mark.parametrize("n", [1, 3, 12])
def test_pooling_equals_its_slow_twin(n):
    torch.manual_seed(3)
    tokens = torch.randint(0, 9, (40, 3, 4))
    importance = torch.randint(-3, 4, (40, 3, 4)).float()  # many ties
    concept = torch.randint(0, 3, (40,))
    pool = count_image_tokens(tokens, importance, concept, k=9, concepts=3, positions=(1, 3, 12))
    grids, scores, names = tokens.flatten(1).tolist(), importance.flatten(1).tolist(), concept.tolist()
    per = [slow_counts(grids, scores, names, one, n) for one in range(3)]
    for one, (counts, having) in enumerate(per):
        found = concept_tokens(pool, one, n, keep=None)
        images, others = names.count(one), 40 - names.count(one)
        lift = {
            code: ((counts[code] + 0.5) / (n * images + 1))
            / ((sum(c[code] for i, (c, _) in enumerate(per) if i != one) + 0.5) / (n * others + 1))
            for code in counts
        }
        order = sorted(counts, key=lambda code: (-counts[code], -lift[code], code))
        everywhere = Counter(t for grid, name in zip(grids, names, strict=True) if name == one for t in grid)
        assert found.codes.tolist() == order
        assert found.counts.tolist() == [counts[code] for code in order]
        assert found.share.tolist() == pytest.approx([having[code] / images for code in order])
        assert found.lift.tolist() == pytest.approx([lift[code] for code in order])
        assert found.frequency.tolist() == pytest.approx([everywhere[code] / (12 * images) for code in order])


def test_the_interval_is_where_a_bootstrap_with_many_resamples_ends_up():
    torch.manual_seed(0)
    tokens = torch.randint(0, 6, (30, 2, 2))
    importance, concept = torch.rand(30, 2, 2), torch.zeros(30, dtype=torch.int64)
    pool = count_image_tokens(tokens, importance, concept, k=6, concepts=1, positions=(2,))
    found = concept_tokens(pool, 0, 2)
    flat = tokens.flatten(1)
    best = flat.gather(1, importance.flatten(1).argsort(1, descending=True)[:, :2])
    rng = torch.Generator().manual_seed(1)
    drawn = torch.randint(0, 30, (40_000, 30), generator=rng)
    for code, low, high in zip(found.codes, found.low, found.high, strict=True):
        shares = (best == code).any(1).double()[drawn].mean(1)
        # A binomial count moves in steps of one image; the quantile of the draws may sit one step off.
        assert float(low) == pytest.approx(float(shares.quantile(0.025)), abs=1.01 / 30)
        assert float(high) == pytest.approx(float(shares.quantile(0.975)), abs=1.01 / 30)
        assert float(((shares >= low) & (shares <= high)).double().mean()) >= 0.95
