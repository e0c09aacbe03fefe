"""Every measurement of `evaluation` again, in plain loops, one image, judge and position at a time."""

from __future__ import annotations

import math

import pytest
import torch

from vqcortex.adapters.toy import COLOURS, ToyAdapter
from vqcortex.evaluation.arms import score_arms
from vqcortex.evaluation.choose import arms_for, fills_for
from vqcortex.evaluation.codebook_level import measure_codebook_level, random_codes
from vqcortex.evaluation.concept_level import (
    frequency_lists,
    measure_concept_level,
    random_lists,
    same_length,
)
from vqcortex.evaluation.drop import measure_drop
from vqcortex.evaluation.fills import code_frequency
from vqcortex.evaluation.intervals import Resampling, interval
from vqcortex.seeds import generator_for

GRID = (3, 5)
TOY = ToyAdapter(grid=GRID)
IDS = [f"image-{i}" for i in range(5)]
CONCEPT = torch.tensor([1, 4, 4, 7, 2])
TOKENS = TOY.generate(CONCEPT, IDS, seed=2)
FREQUENCY = code_frequency(TOKENS, 8)
COUNTS = torch.stack([torch.bincount(TOKENS[c == CONCEPT].flatten(), minlength=8) for c in range(8)])
FILLS = ("black", "grey", "mean_code", "resampled_codes")


class Ruler:
    """Log-softmax of colour shares, soft or hard."""

    def __init__(self, sharpness: float):
        self.name, self.sharpness = f"ruler-{sharpness}", sharpness

    def __call__(self, pixels):
        away = (pixels[:, None] - TOY.codebook[None, :, :, None, None]).square().sum(2)
        return (10 * torch.exp(-self.sharpness * away).mean((2, 3))).log_softmax(1)


JUDGES = (Ruler(1.0), Ruler(9.0))


def slow_hidden(scores, n):
    """Best n cells of one image, ties in reading order."""
    cells = [(-float(scores[i, j]), i, j) for i in range(GRID[0]) for j in range(GRID[1])]
    return {(i, j) for _, i, j in sorted(cells)[:n]}


def slow_filled(tokens, hidden, fill, name):
    """Pixels of one image with hidden cells filled, from the definition of each fill."""
    codes = TOY.embed(tokens[None])[0].clone()
    drawn = torch.rand(GRID[0] * GRID[1], 1, dtype=torch.float64, generator=generator_for(0, name, "fill"))
    for i, j in hidden:
        if fill == "mean_code":
            codes[:, i, j] = sum(float(FREQUENCY[k]) * TOY.codebook[k] for k in range(8))
        if fill == "resampled_codes":
            upto, code = 0.0, -1
            while upto <= drawn[i * GRID[1] + j, 0]:
                code += 1
                upto += float(FREQUENCY[code])
            codes[:, i, j] = TOY.codebook[code]
    pixels = TOY.decode(codes[None])[0].clone()
    for i, j in hidden if fill in ("black", "grey") else ():
        pixels[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = 0.0 if fill == "black" else 0.5
    return pixels


def slow_belief(judge, pixels, concept):
    """Probability and log-odds by one judge of one image."""
    p = judge(pixels[None])[0].double().exp()
    mine = p[concept].item()
    return mine, math.log(mine / sum(p[c].item() for c in range(len(COLOURS)) if c != concept))


def slow_drop(judge, tokens, hidden, fill, name, concept):
    before = slow_belief(judge, TOY.decode(TOY.embed(tokens[None]))[0], concept)
    after = slow_belief(judge, slow_filled(tokens, hidden, fill, name), concept)
    return before[0] - after[0], before[1] - after[1]


def assert_same(found, condition, judge, image, expected):
    both = [found.metrics[m][condition, judge, image].item() for m in ("probability_drop", "log_odds_drop")]
    assert both == pytest.approx(expected, abs=2e-6)


def fills():
    return fills_for(FILLS, frequency=FREQUENCY)


@pytest.mark.parametrize("masking", ["positions", "by_id"])
def test_image_level_equals_its_slow_twin(masking):
    arms = arms_for(("random", "brightness", "token_frequency"), counts=COUNTS)
    scores = score_arms(arms, TOY, TOKENS, CONCEPT, IDS)
    found = measure_drop(TOY, JUDGES, TOKENS, CONCEPT, IDS, scores, (1, 4), fills(), masking=masking, batch=2)
    for number, one in enumerate(found.conditions):
        for image, name in enumerate(IDS):
            tokens, concept = TOKENS[image], int(CONCEPT[image])
            hidden = slow_hidden(scores[one.arm][image], one.chosen)
            if masking == "by_id":
                ids = {int(tokens[i, j]) for i, j in hidden}
                hidden = {(i, j) for i in range(3) for j in range(5) if int(tokens[i, j]) in ids}
            assert found.touched[number, image] == len(hidden)
            for j, judge in enumerate(JUDGES):
                expected = slow_drop(judge, tokens, hidden, one.fill, name, concept)
                assert_same(found, number, j, image, expected)


def test_control_arms_equal_their_slow_twins():
    arms = arms_for(("random", "centre", "brightness", "token_frequency"), counts=COUNTS)
    found = score_arms(arms, TOY, TOKENS, CONCEPT, IDS)
    for b, name in enumerate(IDS):
        order = torch.randperm(15, generator=generator_for(0, name, "random"))
        for i in range(3):
            for j in range(5):
                code = int(TOKENS[b, i, j])
                assert found["random"][b, i, j] == order[i * 5 + j]
                assert found["centre"][b, i, j] == -((i - 1) ** 2 + (j - 2) ** 2)
                assert found["brightness"][b, i, j].item() == pytest.approx(bin(code).count("1") / 3)
                assert found["token_frequency"][b, i, j] == COUNTS[CONCEPT[b], code]


def slow_listed(tokens, listed, last, budget):
    """Cells of one image in the order of the list, then of position, then at random; the first `budget`."""
    keys = {}
    for i in range(3):
        for j in range(5):
            code = int(tokens[i, j])
            on_list = code in listed
            keys[i, j] = (0, listed.index(code), i, j) if on_list else (1, last[i * 5 + j], i, j)
    return set(sorted(keys, key=keys.__getitem__)[:budget])


def test_concept_level_equals_its_slow_twin():
    ours = frequency_lists(COUNTS.roll(1, 1), 3)
    lists = same_length(
        {"concept_tokens": ours, "frequency": frequency_lists(COUNTS, 2), "random": random_lists(COUNTS, 2)}
    )
    found = measure_concept_level(TOY, JUDGES, TOKENS, CONCEPT, IDS, lists, fills(), cap=0.4, batch=3)
    for number, one in enumerate(found.conditions):
        for b, name in enumerate(IDS):
            tokens, concept = TOKENS[b], int(CONCEPT[b])
            named = {arm: [c for c in codes[concept].tolist() if c >= 0] for arm, codes in lists.items()}
            by_id = {
                arm: {(i, j) for i in range(3) for j in range(5) if int(tokens[i, j]) in codes}
                for arm, codes in named.items()
            }
            last = torch.randperm(15, generator=generator_for(0, name, "random")).tolist()
            budget = min(len(by_id["concept_tokens"]), int(0.4 * 15))
            matched = slow_listed(tokens, named[one.arm], last, budget)
            hidden = by_id[one.arm] if one.masking == "by_id" else matched
            assert found.touched[number, b] == len(hidden)
            for j, judge in enumerate(JUDGES):
                assert_same(found, number, j, b, slow_drop(judge, tokens, hidden, one.fill, name, concept))


def test_codebook_level_equals_its_slow_twin():
    target = (CONCEPT + 3) % 8
    free = torch.zeros(GRID, dtype=torch.bool)
    free[1:, 1:4] = True
    searched = {
        "random_codes": random_codes(TOKENS, free, 8, IDS, restarts=3),
        "target_colour": torch.where(free, target[:, None, None], TOKENS)[:, None],
    }
    found = measure_codebook_level(TOY, JUDGES, TOKENS, CONCEPT, target, IDS, searched, batch=2)
    for number, grids in enumerate(searched.values()):
        for b in range(5):
            source, aim = int(CONCEPT[b]), int(target[b])
            start = TOY.decode(TOY.embed(TOKENS[b : b + 1]))[0]
            for j, judge in enumerate(JUDGES):
                ends = [TOY.decode(TOY.embed(one[None]))[0] for one in grids[b]]
                after = [slow_belief(judge, end, aim) for end in ends]
                left = [slow_belief(judge, end, source)[0] for end in ends]
                p, odds = slow_belief(judge, start, aim)
                n = len(ends)
                expected = {
                    "target_probability": sum(a for a, _ in after) / n,
                    "target_rise": sum(a for a, _ in after) / n - p,
                    "target_log_odds_rise": sum(o for _, o in after) / n - odds,
                    "source_drop": slow_belief(judge, start, source)[0] - sum(left) / n,
                    "changed_tokens": sum(int((one != TOKENS[b]).sum()) for one in grids[b]) / n,
                }
                values = {name: value[number, j, b].item() for name, value in found.metrics.items()}
                assert values == pytest.approx(expected, abs=2e-6)


def test_the_bootstrap_equals_its_slow_twin():
    values, settings = torch.rand(7, generator=torch.Generator().manual_seed(0)), Resampling(resamples=200)
    drawn = torch.randint(7, (200, 7), generator=generator_for(0, 7, "bootstrap"))
    means = sorted(sum(float(values[i]) for i in row) / 7 for row in drawn.tolist())
    one = interval(values, settings)
    for found, share in ((one.low, 0.025), (one.high, 0.975)):
        spot = share * 199
        below = int(spot)
        expected = means[below] + (spot - below) * (means[below + 1] - means[below])
        assert found == pytest.approx(expected, abs=1e-9)
