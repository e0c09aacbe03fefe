"""Every attribution method and the pooling again, naively, from their formulas."""

from __future__ import annotations

from collections import Counter
from statistics import NormalDist, pstdev

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from vqcortex.attribution import METHODS
from vqcortex.attribution.baselines import DrawnCodes
from vqcortex.attribution.protocol import build_method
from vqcortex.attribution.reference import published_gradient, published_tis
from vqcortex.concepts.pooling import concept_tokens, count_image_tokens
from vqcortex.extractors.protocol import build_extractor
from vqcortex.seeds import generator_for

IDS = ["n01/1", "n01/2", "n02/1"]
BASELINE = torch.linspace(-0.5, 0.5, 5)


CODEBOOK = torch.linspace(-2, 2, 35).reshape(7, 5).sin()
FREQUENCY = torch.tensor([3.0, 0.0, 1.0, 0.5, 0.0, 8.0, 2.0])


def slow_noises(shape, name, draws, seed, sampling):
    rng = generator_for(seed, name, "noise")
    if sampling == "plain":
        return [torch.randn(shape, generator=rng) for _ in range(draws)]
    if sampling == "antithetic":
        halves = [torch.randn(shape, generator=rng) for _ in range((draws + 1) // 2)]
        return [sign * z for z in halves for sign in (1, -1)][:draws]
    size = shape.numel()
    order = torch.rand(size, draws, generator=rng).argsort(1).tolist()
    found = []
    for draw in range(draws):
        inside = torch.rand(size, dtype=torch.float64, generator=rng).tolist()
        shares = [(order[at][draw] + inside[at]) / draws for at in range(size)]
        found.append(torch.tensor([NormalDist().inv_cdf(one) for one in shares]).reshape(shape))
    return found


def slow_mean_gradient(net, x, concept, name, *, draws, noise, seed, sampling="plain"):
    noises = slow_noises(x.shape, name, draws, seed, sampling)
    spread = noise * (x.max() - x.min())
    return torch.stack([slow_clean_gradient(net, x + spread * z, concept) for z in noises]).mean(0)


def slow_clean_gradient(net, x, concept):
    y = x.clone().requires_grad_()
    net(y[None])[0, concept].backward()
    return y.grad


def slow_grid(baseline, x, name, draw):
    """The baseline everywhere; of drawn codes, the code whose share of the cumulated frequencies was hit."""
    _, h, w = x.shape
    grid = torch.empty_like(x)
    rng = generator_for(4, name, "baseline", draw)
    hits = torch.rand(h, w, dtype=torch.float64, generator=rng)
    for i in range(h):
        for j in range(w):
            code, passed = 0, float(FREQUENCY[0] / FREQUENCY.sum())
            while passed <= float(hits[i, j]):
                code += 1
                passed += float(FREQUENCY[code] / FREQUENCY.sum())
            grid[:, i, j] = CODEBOOK[code] if baseline == "resampled" else BASELINE
    return grid


def slow_draws(baseline):
    return range(3 if baseline == "resampled" else 1)


def slow_value(net, x, concept, fill, hidden):
    """The logit with the positions of a set (row by row) replaced."""
    y = x.clone()
    for at in hidden:
        y[:, at // x.shape[2], at % x.shape[2]] = fill[:, at // x.shape[2], at % x.shape[2]]
    return float(net(y[None])[0, concept])


def slow_integrated_gradients(net, x, concept, name, baseline, sampling):
    out = torch.zeros(x.shape[1:])
    at, weight = np.polynomial.legendre.leggauss(5)
    for draw in slow_draws(baseline):
        start = slow_grid(baseline, x, name, draw)
        mean = sum(
            float(weight[i] / 2) * slow_clean_gradient(net, start + float(at[i] + 1) / 2 * (x - start), concept)
            for i in range(5)
        )
        out += (mean * (x - start)).sum(0) / len(slow_draws(baseline))
    return out


def slow_occlusion(net, x, concept, name, baseline, sampling):
    _, h, w = x.shape
    falls = {at: [] for at in range(h * w)}
    for i in range(h - 1):
        for j in range(w - 1):
            block = {(i + a) * w + j + b for a in (0, 1) for b in (0, 1)}
            without = [
                slow_value(net, x, concept, slow_grid(baseline, x, name, one), block) for one in slow_draws(baseline)
            ]
            fall = slow_value(net, x, concept, x, ()) - sum(without) / len(without)
            for at in block:
                falls[at].append(fall / 4)
    return torch.tensor([sum(falls[at]) / len(falls[at]) for at in range(h * w)]).reshape(h, w)


def slow_orders(n, name, sampling):
    """Five orders of n positions."""
    rng = generator_for(9, name, "permutations")
    if sampling == "plain":
        return [torch.randperm(n, generator=rng).tolist() for _ in range(5)]
    if sampling == "antithetic":
        firsts = [torch.randperm(n, generator=rng).tolist() for _ in range(3)]
    else:
        base = torch.randperm(n, generator=rng).tolist()
        firsts = [base[turn:] + base[:turn] for turn in (0, n // 3, 2 * n // 3)]
    return [order for first in firsts for order in (first, first[::-1])][:5]


def slow_shapley(net, x, concept, name, baseline, sampling):
    n = x[0].numel()
    out = torch.zeros(n)
    for one, order in enumerate(slow_orders(n, name, sampling)):
        fill = slow_grid(baseline, x, name, one if sampling == "plain" else one // 2)
        for place, at in enumerate(order):
            before = slow_value(net, x, concept, fill, order[:place])
            out[at] += (before - slow_value(net, x, concept, fill, order[: place + 1])) / 5
    return out.reshape(x.shape[1:])


def slow_masks(n, name, sampling):
    """Eight lists of +1 (shown) and -1 (hidden), and the draw of the baseline each goes with."""
    rng = generator_for(9, name, "masks")
    if sampling == "plain":
        return [((torch.rand(n, generator=rng) < 0.5).long() * 2 - 1, one) for one in range(8)]
    if sampling == "antithetic":
        firsts = [(torch.rand(n, generator=rng) < 0.5).long() * 2 - 1 for _ in range(4)]
    else:
        signs = 1 - 2 * (torch.rand(n, generator=rng) < 0.5).long()
        rows = torch.randperm(16, generator=rng)[:4].tolist()
        # Shown where the matrix has -1 or the sign flips it, not both.
        firsts = [-torch.as_tensor(hadamard(16))[row, :n] * signs for row in rows]
    return [(sign * first, one) for one, first in enumerate(firsts) for sign in (1, -1)]


def slow_banzhaf(net, x, concept, name, baseline, sampling):
    n = x[0].numel()
    asked = [
        (
            signs.tolist(),
            slow_value(net, x, concept, slow_grid(baseline, x, name, draw), [at for at in range(n) if signs[at] < 0]),
        )
        for signs, draw in slow_masks(n, name, sampling)
    ]
    out = torch.zeros(n)
    for at in range(n):
        if sampling == "plain":
            out[at] = 2 * float(np.cov([signs[at] for signs, _ in asked], [value for _, value in asked])[0, 1])
        else:
            shown = [value for signs, value in asked if signs[at] > 0]
            gone = [value for signs, value in asked if signs[at] < 0]
            out[at] = sum(shown) / len(shown) - sum(gone) / len(gone)
    return out.reshape(x.shape[1:])


def slow_greedy_removal(net, x, concept, name, baseline, sampling):
    n = x[0].numel()
    fills = [slow_grid(baseline, x, name, draw) for draw in slow_draws(baseline)]

    def without(removed):
        return sum(slow_value(net, x, concept, fill, removed) for fill in fills)

    removed, scores = [], torch.zeros(n)
    for score in range(n, 0, -1):
        removed.append(min(set(range(n)) - set(removed), key=lambda at: without([*removed, at])))
        scores[removed[-1]] = score
    return scores.reshape(x.shape[1:])


def slow_ensemble(net, x, concept, name, baseline, sampling):
    out = torch.zeros(x.shape[1:])
    for one in (net, SECOND):
        scores = slow_occlusion(one, x, concept, name, baseline, sampling)
        out += scores / pstdev(scores.flatten().tolist()) / 2
    return out


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


def slow_attention_rollout(net, x):
    """Softmax of queries with keys, head by head; half of it and half of the identity, block after block."""
    _, h, w = x.shape
    tokens = net.lift(x.flatten(1).T) * net.settings.width**0.5
    tokens = (torch.cat([net.class_token[0], tokens]) + net.positions[0])[None]
    joint = torch.eye(h * w + 1)
    for block in net.blocks:
        seen = block.attention_norm(tokens)[0] if net.settings.norm == "pre" else tokens[0]
        width, heads = block.attention.embed_dim, block.attention.num_heads
        query, key, _ = (seen @ block.attention.in_proj_weight.T + block.attention.in_proj_bias).split(width, 1)
        size, each = width // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            each.append((query[:, part] @ key[:, part].T / size**0.5).softmax(1))
        joint = (torch.stack(each).mean(0) / 2 + torch.eye(h * w + 1) / 2) @ joint
        tokens = block(tokens)
    return joint[0, 1:].reshape(h, w)


SLOW = {
    "tis": slow_tis,
    "gradient": slow_gradient,
    "gradient_x_embedding": slow_gradient_x_embedding,
    "noisy_gradient_x_embedding": slow_noisy_gradient_x_embedding,
}


SLOW_BY_BASELINE = {
    "integrated_gradients": slow_integrated_gradients,
    "occlusion": slow_occlusion,
    "shapley": slow_shapley,
    "banzhaf": slow_banzhaf,
    "greedy_removal": slow_greedy_removal,
    "ensemble": slow_ensemble,
}
SLOW_OF_ANOTHER_SHAPE = {"attention_rollout": slow_attention_rollout}


def network(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7), nn.GELU(), nn.Flatten(), nn.Linear(7 * 12, 4))
    return net.eval()


SECOND = network(1)


@pytest.fixture
def case():
    return (
        network(0),
        torch.randn(3, 5, 3, 4) * torch.tensor([1, 3, 0.2])[:, None, None, None],
        torch.tensor([2, 0, 3]),
    )


def test_every_method_has_a_slow_twin():
    assert set(SLOW) | set(SLOW_BY_BASELINE) | set(SLOW_OF_ANOTHER_SHAPE) == set(METHODS)


@pytest.mark.parametrize("reduce", ["max", "mean", "abs_max", "abs_mean", "norm"])
@pytest.mark.parametrize("name", sorted(SLOW))
def test_a_method_equals_its_slow_twin(name, reduce, case):
    net, embedded, concept = case
    method = build_method(name, draws=4, noise=0.3, seed=9, reduce=reduce, baseline=BASELINE)
    slow = [SLOW[name](net, *one, reduce) for one in zip(embedded, concept, IDS, strict=True)]
    torch.testing.assert_close(method(net, embedded, concept, IDS), torch.stack(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draws", [4, 5])
@pytest.mark.parametrize("sampling", ["antithetic", "quasi"])
def test_paired_and_stratified_noise_equal_their_slow_twins(sampling, draws, case):
    net, embedded, concept = case
    method = build_method("tis", draws=draws, noise=0.3, seed=9, reduce="mean", sampling=sampling)
    settings = {"draws": draws, "noise": 0.3, "seed": 9, "sampling": sampling}
    slow = [slow_mean_gradient(net, *one, **settings).mean(0) for one in zip(embedded, concept, IDS, strict=True)]
    torch.testing.assert_close(method(net, embedded, concept, IDS), torch.stack(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "baseline", "sampling"),
    [
        (name, baseline, sampling)
        for name in sorted(SLOW_BY_BASELINE)
        for baseline in ("fixed", "resampled")
        for sampling in (("plain", "antithetic", "quasi") if name in ("shapley", "banzhaf") else ("plain",))
    ],
)
def test_a_method_equals_its_slow_twin_with_one_code_and_with_drawn_ones(name, baseline, sampling, case):
    net, embedded, concept = case
    drawn = DrawnCodes(codebook=CODEBOOK, frequency=FREQUENCY, draws=3, seed=4)
    settings = {"nodes": 5, "block": 2, "permutations": 5, "masks": 8, "seed": 9, "sampling": sampling}
    settings |= {"method": "occlusion", "extractors": (SECOND,)}
    method = build_method(name, baseline=drawn if baseline == "resampled" else BASELINE, **settings)
    rows = zip(embedded, concept, IDS, strict=True)
    with torch.no_grad() if name != "integrated_gradients" else torch.enable_grad():
        slow = [SLOW_BY_BASELINE[name](net, *one, baseline, sampling) for one in rows]
    torch.testing.assert_close(method(net, embedded, concept, IDS), torch.stack(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["transformer", "transformer_postnorm"])
def test_attention_rollout_equals_its_slow_twin(architecture, case):
    _, embedded, concept = case
    net = build_extractor(architecture, d=5, grid=(3, 4), concepts=4, seed=0, width=16, heads=2, depth=3).eval()
    for weight in net.blocks.parameters():
        weight.data *= 2  # fresh attention is nearly even
    with torch.no_grad():
        before = net(embedded)
        slow = torch.stack([slow_attention_rollout(net, x) for x in embedded])
        found = build_method("attention_rollout")(net, embedded, concept, IDS)
        torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-6)
        assert torch.equal(net(embedded), before)
    assert float(found.std()) > 1e-3


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
