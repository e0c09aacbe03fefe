"""A comparison that never was: methods, controls and an oracle at chosen levels, with noise per image."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch

from vqcortex.evaluation.comparison import (
    DECISIVE,
    DROP,
    NONE,
    Cost,
    Figures,
    Measure,
    agreement_table,
    best_of,
    comparison_rows,
    comparison_table,
    cost_table,
    pairs_table,
    recommendation_table,
    stability_table,
)
from vqcortex.evaluation.intervals import Resampling
from vqcortex.pipelines.compare import ComparisonExhibit

COSTS = {
    "tis": Cost(extractors=1, forward=20, backward=20),
    "gradient_x_embedding": Cost(extractors=1, forward=1, backward=1),
    "occlusion": Cost(extractors=1, forward=50, backward=0),
    "banzhaf": Cost(extractors=1, forward=128, backward=0),
    "ensemble:noisy_gradient_x_embedding": Cost(extractors=3, forward=60, backward=60),
    "ensemble:occlusion": Cost(extractors=3, forward=150, backward=0),
    "occlusion@pictures:1": Cost(extractors=1, forward=50, backward=0),
}
METHODS = dict(zip(COSTS, (0.16, 0.20, 0.22, 0.23, 0.245, 0.25, 0.19), strict=True))
CONTROLS = {"brightness": 0.04, "centre": 0.09, "random": 0.06, "token_frequency": 0.11}
FILLS, JUDGES, COUNTS = ("mean_code", "resampled_codes", "grey"), ("cnn", "patch"), (3, 5, 10, 20)
IMAGES = 60
FEW = Resampling(resamples=200)


def comparison(
    methods: Mapping[str, float] = METHODS, notes: tuple[str, ...] = (), oracle: bool = True
) -> ComparisonExhibit:
    """What a page shows of methods that reach these mean drops."""
    random = torch.Generator().manual_seed(4)
    arms = {**methods, **CONTROLS}
    level = torch.tensor(list(arms.values()))[:, None, None, None]
    noise = 0.1 * torch.randn(1, 3, 2, IMAGES, generator=random) + 0.02 * torch.randn(
        len(arms), 3, 2, IMAGES, generator=random
    )
    drops = level * torch.tensor([1.0, 0.8, 1.1])[:, None, None] + noise
    unit = "probability, -1 to 1"
    ids = tuple(f"image-{number:03d}" for number in range(IMAGES))
    values = {Measure(DECISIVE, None, unit, "higher"): drops}
    values |= {Measure(DROP, n, unit, "higher"): drops * n**0.5 / 2 for n in COUNTS}
    values[Measure("deletion_auc", None, "probability, 0 to 1", "lower")] = 0.9 - drops
    figures = Figures(arms=tuple(arms), fills=FILLS, judges=JUDGES, image_ids=ids, values=values)
    infidelity = Measure("infidelity", None, "squared logits", "lower")
    alone = Figures(
        arms=tuple(methods), fills=(NONE,), judges=(NONE,), image_ids=ids[:9],
        values={infidelity: torch.rand(len(methods), 1, 1, 9, generator=random)},
    )  # fmt: skip
    constant = dict.fromkeys(arms, 0.0)
    rows = comparison_rows(figures, constant, FEW) + comparison_rows(alone, constant, FEW)
    oracles = None
    if oracle:
        asked = 0.15 + 0.05 * torch.randn(3, 3, 2, 20, generator=random)
        asked[1, :, 0] = asked[2, :, 1] = torch.nan
        oracles = Figures(
            arms=("oracle", "oracle:cnn", "oracle:patch"), fills=FILLS, judges=JUDGES, image_ids=ids[:20],
            values={Measure(DECISIVE, None, unit, "higher"): asked},
        )  # fmt: skip
        rows += comparison_rows(oracles, dict.fromkeys(oracles.arms, 0.0), FEW)
    costs = cost_table(figures, {name: COSTS[name] for name in methods}, FEW)
    others = dict.fromkeys((*CONTROLS, *({"tis"} & set(methods)), best_of(costs)["method"]))
    pairs = pairs_table(figures, list(methods), list(others), oracles, FEW)
    alike = {pair: torch.rand(IMAGES, generator=random) * 2 - 1 for pair in combinations(arms, 2)}
    steady = {(name, over): torch.rand(9, generator=random) for name in methods for over in ("seeds", "extractors")}
    tables = (
        comparison_table(rows), pairs, costs, agreement_table(alike, FEW), stability_table(steady, FEW),
        recommendation_table(costs, pairs, list(CONTROLS), 0.85, notes),
    )  # fmt: skip
    return ComparisonExhibit(
        model="zoo:fashion", split="validation", images=IMAGES, concepts=10, methods=tuple(methods),
        controls=tuple(CONTROLS), fills=FILLS, judges=JUDGES, counts=COUNTS, deciding=(3, 5), positions=49,
        tables={one.name: one for one in tables},
    )  # fmt: skip
