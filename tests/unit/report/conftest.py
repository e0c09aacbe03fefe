"""A study that never was: pictures of garments from simple shapes, numbers drawn with a plausible slope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vqcortex.evaluation.intervals import Resampling
from vqcortex.evaluation.tables import evidence_table, verdict_table
from vqcortex.evaluation.values import Condition, Evidence
from vqcortex.exhibit import ClusterExhibit, CodeExhibit, ConceptExhibit, Exhibit, SearchExhibit
from vqcortex.pipelines.together import GroupValues, PairValues, Strictness, group_table, pair_table
from vqcortex.results import Column, Table

NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
OURS = "noisy_gradient_x_embedding"
ARMS = {OURS: 0.42, "tis": 0.27, "random": 0.13, "centre": 0.16, "brightness": 0.09, "token_frequency": 0.14}
FILLS = {"black": 0.75, "grey": 0.9, "mean_code": 1.0, "resampled_codes": 0.8}
NUMBERS = (1, 2, 5, 10, 25)
JUDGES = ("cnn", "patch")
SIDE, CELLS = 28, 7


def garment(kind: int, draws: np.random.Generator) -> np.ndarray:
    """A 28x28 picture (H, W, 3)."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) * 2 - 1
    x, y = x * draws.uniform(0.9, 1.1), y * draws.uniform(0.95, 1.08)
    torso = (abs(x) < 0.45) & (abs(y) < 0.8)
    sleeve = draws.uniform(-0.1, 0.75) if kind in (0, 6) else 0.75
    arms = (abs(x) < 0.85) & (abs(x) > 0.5) & (y > -0.75) & (y < sleeve)
    shapes = {
        1: (abs(x) < 0.42) & (abs(y) < 0.9) & ((abs(x) > 0.09) | (y < -0.4)),
        3: (abs(x) < 0.18 + 0.18 * (y + 1)) & (abs(y) < 0.9),
        5: (abs(y - 0.3 * x - 0.3) < 0.09) | ((abs(x) < 0.8) & (abs(y - 0.55) < 0.09)),
        7: (abs(x) < 0.85) & (y > -0.15 - 0.3 * (x > 0.3)) & (y < 0.42),
        8: ((abs(x) < 0.75) & (y > -0.1) & (y < 0.7)) | (abs(np.hypot(x, y + 0.1) - 0.45) < 0.07),
        9: ((x > 0.0) & (x < 0.7) & (abs(y) < 0.8)) | ((abs(x) < 0.75) & (y > 0.2) & (y < 0.8)),
    }
    shape = shapes.get(kind, torso | arms)
    light = draws.uniform(0.55, 0.95) * (0.82 + 0.18 * np.sin(9 * x * draws.uniform(0.3, 1)))
    grey = np.where(shape, light + draws.normal(0, 0.04, x.shape), 0.0)
    return np.repeat((grey.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, 2)


def importance_of(images: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Importance (e, h, w), high at edges."""
    cells = images[..., 0].reshape(len(images), CELLS, SIDE // CELLS, CELLS, SIDE // CELLS) / 255
    return (cells.std((2, 4)) * 3 + draws.normal(0, 0.25, (len(images), CELLS, CELLS)) - 0.2).astype(np.float32)


def patches_of(images: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """Squares of 3x3 positions (p, 12, 12, 3)."""
    corners = [(int(row) * 4, int(column) * 4) for row, column in draws.integers(0, CELLS - 2, (count, 2))]
    return np.stack([images[i % len(images), y : y + 12, x : x + 12] for i, (y, x) in enumerate(corners)])


def concept_of(kind: int, name: str, draws: np.random.Generator) -> ConceptExhibit:
    images = np.stack([garment(kind, draws) for _ in range(8)])
    importance = importance_of(images, draws)
    scaled = importance / abs(importance).max((1, 2), keepdims=True)
    codes = [
        CodeExhibit(
            code=int(code),
            numbers={
                "count": float(300 - 13 * rank),
                "share": (share := 0.62 - 0.027 * rank),
                "low": share - 0.05,
                "high": share + 0.05,
                "lift": float(draws.uniform(1, 9)),
                "local_rank": float(rank + 1),
                "global_rank": float(draws.integers(1, 256)),
                "effect": float(draws.normal(0.1, 0.2)),
            },
            patches=patches_of(images, 6, draws),
        )
        for rank, code in enumerate(draws.choice(256, 20, replace=False))
    ]
    swaps = [
        {
            "code": int(draws.integers(256)),
            "row": int(draws.integers(CELLS)),
            "column": int(draws.integers(CELLS)),
            "estimated": (estimated := 2.4 - 0.05 * place),
            "measured": float(0.7 * estimated + draws.normal(0, 0.15)),
            "measured_error": float(draws.uniform(0.04, 0.16)),
        }
        for place in range(20)
    ]
    return ConceptExhibit(
        name=name,
        image_ids=tuple(f"generate/{kind}/{number:06d}" for number in range(8)),
        images=images,
        importance=importance,
        activation=scaled.mean(0),
        activation_error=scaled.std(0) / np.float32(8**0.5),
        images_averaged=300,
        codes=tuple(codes),
        best_swaps=tuple(swaps),
    )


def evidence_of(level: Any, arms: Mapping[Condition, float], metrics: Mapping[str, float], count: int) -> Evidence:
    """Values per image around a slope per condition; the second judge believes a little less."""
    draws = torch.Generator().manual_seed(len(arms))
    images, strengths = 50, torch.tensor(list(arms.values()))
    concept = torch.arange(images) % count
    shape = (len(arms), 2, images)
    drop = strengths[:, None, None] * torch.tensor([1.0, 1.2])[:, None] + torch.randn(shape, generator=draws) * 0.12
    return Evidence(
        level=level,
        conditions=tuple(arms),
        judges=JUDGES,
        image_ids=tuple(f"image {number:04d}" for number in range(images)),
        concept=(concept + 1) % count if level == "codebook" else concept,
        source=concept if level == "codebook" else None,
        positions=CELLS * CELLS,
        before=0.9 - 0.1 * torch.rand(2, images, generator=draws),
        metrics={name: drop * scale for name, scale in metrics.items()},
        touched=torch.tensor([float(one.chosen or 9) for one in arms])[:, None].expand(-1, images).contiguous(),
    )


def image_conditions() -> dict[Condition, float]:
    return {
        Condition(arm=arm, masking="positions", fill=fill, chosen=n): (
            (0.55 if fill == "black" and arm in ("centre", "brightness") else strength) * weight * (n / 25) ** 0.6
        )
        for arm, strength in ARMS.items()
        for fill, weight in FILLS.items()
        for n in NUMBERS
    }


def concept_conditions() -> dict[Condition, float]:
    arms = {"concept_tokens": 0.35, "token_frequency": 0.3, "random_codes": 0.08}
    return {
        Condition(arm=arm, masking=masking, fill=fill): strength * weight
        for masking in ("by_id", "area_matched")
        for arm, strength in arms.items()
        for fill, weight in FILLS.items()
    }


def codebook_conditions() -> dict[Condition, float]:
    arms = {"token_selection": 0.6, "embedding_optimisation": 0.42, "random_codes": 0.05}
    return {Condition(arm=arm, masking="search", fill="none"): value for arm, value in arms.items()}


def all_tables(names: tuple[str, ...]) -> dict[str, Table]:
    drops = {"probability_drop": 1.0, "log_odds_drop": 6.0}
    rises = {"target_probability": 1.0, "target_rise": 0.95, "target_log_odds_rise": 7.0, "source_drop": 0.8}
    found = {
        "image": evidence_of("image", image_conditions(), drops, len(names)),
        "concept": evidence_of("concept", concept_conditions(), drops, len(names)),
        "codebook": evidence_of("codebook", codebook_conditions(), {**rises, "changed_tokens": 12.0}, len(names)),
    }
    fast = Resampling(resamples=50)
    tables = {f"{k}_level": evidence_table(v, names, name=f"{k}_level", resampling=fast) for k, v in found.items()}
    ours = {"image": OURS, "concept": "concept_tokens", "codebook": "token_selection"}
    verdicts = [verdict_table(v, ours[k], names, resampling=fast) for k, v in found.items()]
    tables["verdicts"] = Table("verdicts", verdicts[0].columns, [row for one in verdicts for row in one.rows])
    tables["search_stability"] = Table(
        "search_stability",
        {
            "pair": Column(unit="name", meaning="Source and target."),
            "strategy": Column(unit="name", meaning="Search."),
            "jaccard": Column(
                unit="share, 0 to 1",
                meaning="Mean pairwise overlap of chosen codes over restarts.",
                better="higher",
            ),
        },
        [{"pair": f"{names[0]} to {names[1]}", "strategy": "token_selection", "jaccard": 0.41}],
    )
    return tables | together_tables(names)


def together_tables(names: tuple[str, ...]) -> dict[str, Table]:
    """Pairs of three kinds, and too few images for them, for every concept but the last."""
    rules = {(0, 1): (0, 0, 0, 4), (0, 2): (0, 4, 4, 0), (1, 2): (0, 1, 2, 3)}
    pairs = [
        PairValues(
            concept=number, codes=(first + number, second + number), form=form,
            values=torch.tensor(rule).double().expand(1, images, 4), interaction=torch.zeros(images),
        )
        for number in range(len(names) - 1)
        for form, images in (("removal", 9), ("insertion", 4))
        for (first, second), rule in rules.items()
    ]  # fmt: skip
    groups = [
        GroupValues(
            concept=number, codes=(number, number + 1), values=torch.tensor([5.0, 2.0, 1.0, 1.0]).expand(1, 9, 4),
            shapley=(1.0, None), cells=4.0, control_cells=3.0,
        )
        for number in range(len(names) - 1)
    ]  # fmt: skip
    found = (pair_table(pairs, names, Strictness()), group_table(groups, names, Strictness()))
    return {table.name: table for table in found}


def search_of(kind: int, names: tuple[str, ...], draws: np.random.Generator) -> SearchExhibit:
    before = np.stack([garment(kind, draws) for _ in range(8)])
    other = np.stack([garment(kind + 1, draws) for _ in range(8)])
    free = np.zeros((CELLS, CELLS), bool)
    free[1:6, 1:6] = True
    pixels = free.repeat(4, 0).repeat(4, 1)[None, :, :, None]
    noise = draws.integers(0, 255, before.shape).astype(np.uint8)
    after = {
        "token_selection": np.where(pixels, other, before),
        "embedding_optimisation": np.where(pixels, other // 2 + before // 3, before),
        "random_codes": np.where(pixels, noise, before),
    }
    return SearchExhibit(
        source=names[kind], target=names[(kind + 1) % len(names)], free=free, before=before, after=after
    )


def cluster_of(number: int, concepts: tuple[ConceptExhibit, ...], draws: np.random.Generator) -> ClusterExhibit:
    return ClusterExhibit(
        number=number,
        codes=tuple(range(number * 21, number * 21 + 33 - 2 * number)),
        stability=0.93 - 0.045 * number,
        profile=draws.dirichlet(np.full(len(concepts), 0.3)).astype(np.float32),
        patches=patches_of(concepts[number % len(concepts)].images, 6, draws),
    )


def build_exhibit(names: tuple[str, ...] = NAMES) -> Exhibit:
    """The whole of it, with a concept per name, at least two."""
    draws = np.random.default_rng(0)
    concepts = tuple(concept_of(kind, name, draws) for kind, name in enumerate(names))
    history = [
        {
            "epoch": e,
            "train_loss": 2 / e + 0.2,
            "validation_loss": 1.8 / e + 0.35,
            "validation_accuracy": 0.93 - 0.7 / e,
        }
        for e in range(1, 31)
    ]
    return Exhibit(
        title="What makes a Fashion-MNIST garment",
        model={
            "name": "zoo:fashion",
            "identity": "sha256:4be1f0c2a7d9",
            "codes": "256",
            "width": "64 channels",
            "grid": "7 × 7",
            "pixels": "28 × 28",
            "images in the store": "3,000 generated",
        },
        extractor={
            "architecture": "conv8",
            "parameters": "1.24 M",
            "accuracy on held-out images": "92.4 %",
            "calibration error": "0.021",
        },
        history=tuple(history),
        concepts=concepts,
        clusters=tuple(cluster_of(number, concepts, draws) for number in range(12)),
        searches=tuple(search_of(kind, names, draws) for kind in range(len(names))),
        tables=all_tables(names),
        stages=tuple(
            {
                "stage": stage,
                "command": f"vqcortex {stage} --out study --model zoo:fashion --seed 0",
                "settings": {"seed": 0, "model": "zoo:fashion", "positions": [1, 3, 5, 10]},
                "versions": {"vqcortex": "0.1.0", "torch": "2.14.0"},
            }
            for stage in ("tokens", "train", "score", "concepts", "traverse", "search", "evaluate")
        ),
        notes=("With black pixels, hiding the centre of the image hurts more than any explanation does.",),
    )


@pytest.fixture(scope="session")
def exhibit() -> Exhibit:
    """Like a demo study, with four of its ten concepts."""
    return build_exhibit(NAMES[:4])


@pytest.fixture(scope="session")
def demo() -> Exhibit:
    """As large as a demo study."""
    return build_exhibit()


@pytest.fixture(scope="session")
def named(exhibit: Exhibit) -> Callable[[str], Exhibit]:
    """Makes a small study of two concepts whose first has a name of the caller's choice."""

    def build(name: str) -> Exhibit:
        first, second = exhibit.concepts[:2]
        groups = {"all": "all", first.name: name, f"{first.name} to {second.name}": f"{name} to {second.name}"}
        tables = {
            key: Table(
                key,
                table.columns,
                [{**row, "concept": groups[row["concept"]]} for row in table.rows if row["concept"] in groups],
            )
            for key, table in exhibit.tables.items()
            if "concept" in table.columns
        }
        return replace(
            exhibit,
            concepts=(replace(first, name=name), second),
            searches=(replace(exhibit.searches[0], source=name),),
            tables=tables,
        )

    return build


@pytest.fixture(scope="session")
def bare(exhibit: Exhibit) -> Exhibit:
    """A study of which only the first stages are done."""
    return replace(
        exhibit, concepts=exhibit.concepts[:2], tables={}, clusters=(), searches=(), history=(), notes=(), stages=()
    )
