"""Paired comparison again, in plain loops: differences, ratios of resampled means, sign flips and Holm's steps."""

from __future__ import annotations

import pytest
import torch

from vqcortex.evaluation.comparison import DECISIVE, Figures, Measure, pairs_table
from vqcortex.evaluation.intervals import Resampling
from vqcortex.seeds import generator_for

IMAGES, DRAWS = 12, 9999
MEASURE = Measure(DECISIVE, None, "probability, -1 to 1", "higher")
FEW = Resampling(resamples=40, seed=5)


def mean(values):
    return sum(values) / len(values)


def slow_figure(values, arm, fill, image):
    """Over the fills that are meant and both judges."""
    return mean([values[arm, one, judge, image].item() for one in fill for judge in range(2)])


def slow_resamples():
    """Images of every resample."""
    rng = generator_for(FEW.seed, IMAGES, "bootstrap")
    return torch.randint(IMAGES, (FEW.resamples, IMAGES), generator=rng).tolist()


def slow_quantile(values, share):
    ordered = sorted(values)
    spot = share * (len(ordered) - 1)
    below = min(int(spot), len(ordered) - 2)
    return ordered[below] + (spot - below) * (ordered[below + 1] - ordered[below])


def slow_p(differences):
    signs = torch.randint(2, (IMAGES, DRAWS), generator=generator_for(FEW.seed, IMAGES, "signs")) * 2 - 1
    observed = abs(sum(differences)) - 1e-12 * sum(map(abs, differences))
    beaten = 0
    for draw in signs.T.tolist():
        beaten += abs(sum(sign * one for sign, one in zip(draw, differences, strict=True))) >= observed
    return (1 + beaten) / (1 + DRAWS)


def slow_holm(p):
    adjusted, most = {}, 0.0
    for step, place in enumerate(sorted(range(len(p)), key=lambda one: p[one])):
        most = max(most, min(1.0, p[place] * (len(p) - step)))
        adjusted[place] = most
    return [adjusted[place] for place in range(len(p))]


def test_every_column_of_the_pairs_is_what_loops_give():
    generator = torch.Generator().manual_seed(2)
    values = torch.rand(3, 2, 2, IMAGES, generator=generator) + torch.tensor([0.3, 0.1, 0.0])[:, None, None, None]
    figures = Figures(
        arms=("ours", "tis", "random"), fills=("grey", "mean_code"), judges=("cnn", "patch"),
        image_ids=tuple(f"{number:02d}" for number in range(IMAGES)), values={MEASURE: values},
    )  # fmt: skip
    table = pairs_table(figures, ("ours", "tis"), ("random", "tis"), None, FEW)
    fills = {"grey": [0], "mean_code": [1], "mean": [0, 1]}
    for name, fill in fills.items():
        rows = table.where(fill=name)
        assert [(row["method"], row["other"]) for row in rows] == [
            ("ours", "random"),
            ("ours", "tis"),
            ("tis", "random"),
        ]
        tests = []
        for row in rows:
            ours, other = (
                [slow_figure(values, figures.arms.index(row[side]), fill, image) for image in range(IMAGES)]
                for side in ("method", "other")
            )
            gaps = [one - two for one, two in zip(ours, other, strict=True)]
            assert row["difference"] == pytest.approx(mean(gaps), abs=1e-6)
            drawn = [mean([gaps[image] for image in images]) for images in slow_resamples()]
            assert row["low"] == pytest.approx(slow_quantile(drawn, 0.025), abs=1e-6)
            assert row["high"] == pytest.approx(slow_quantile(drawn, 0.975), abs=1e-6)
            ratios = [mean([ours[i] for i in images]) / mean([other[i] for i in images]) for images in slow_resamples()]
            assert row["ratio"] == pytest.approx(mean(ours) / mean(other), rel=1e-5)
            assert row["ratio_low"] == pytest.approx(slow_quantile(ratios, 0.025), rel=1e-5)
            assert row["ratio_high"] == pytest.approx(slow_quantile(ratios, 0.975), rel=1e-5)
            tests.append(slow_p(gaps))
        assert [row["p"] for row in rows] == pytest.approx(tests, abs=1e-12)
        assert [row["p_holm"] for row in rows] == pytest.approx(slow_holm(tests), abs=1e-12)
