"""Shortcuts in planted worlds: is the planted patch the first suspect, and is a true cause ever called a shortcut?

The world `shortcut` on the toy model: two codes make the concept, a patch of another goes with its noisy labels, and
the extractor learns from those. The judge is the world's own rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.audit.shortcuts import measure_enrichment
from vqcortex.extractors.protocol import build_extractor
from vqcortex.extractors.train import TrainData, TrainSettings, train_extractor
from vqcortex.pipelines.interactions import Question
from vqcortex.pipelines.settings import ShortcutsSettings
from vqcortex.pipelines.shortcuts import examine_question, shortcuts_table
from vqcortex.tokens.store import TokenBatch
from vqcortex.worlds.planting import build_world
from vqcortex.worlds.protocol import CONCEPTS, WITH, Parameters, World

RUNS, IMAGES = 10, 1200
MODEL = ToyAdapter()


def measure_worlds() -> dict[str, Any]:
    """Counts over runs: other codes, places, images and weights in each."""
    names = ("first", "patches", "causes", "causes_tried", "others", "others_tried")
    found: dict[str, Any] = {"runs": RUNS, **dict.fromkeys(names, 0)}
    for seed in range(RUNS):
        world = planted(seed)
        rows = suspects(world, taught(world, seed))
        decoys, causes = world.decoy_codes.tolist(), world.causal_codes.tolist()
        found["first"] += rows[0]["code"] in decoys and rows[0]["verdict"] == "shortcut"
        for row in rows:
            kind = "patches" if row["code"] in decoys else "causes" if row["code"] in causes else "others"
            found[kind] += row["verdict"] == "shortcut"
            if kind != "patches":
                found[f"{kind}_tried"] += 1
    return found


def planted(seed: int) -> World:
    """One world."""
    base = torch.randint(MODEL.k, (IMAGES, *MODEL.grid), generator=torch.Generator().manual_seed(seed))
    return build_world(
        "shortcut", base, [f"world/{number}" for number in range(IMAGES)], frequency=torch.ones(MODEL.k),
        parameters=Parameters(correlation=0.95, label_noise=0.2, patch=1, plant_rate=0.1, seed=seed),
    )  # fmt: skip


def taught(world: World, seed: int) -> nn.Module:
    """An extractor that learned its labels."""
    module = build_extractor("conv8", MODEL.d, MODEL.grid, len(CONCEPTS), seed, width=16, depth=2)
    rows = {split: world.rows(split) for split in ("train", "validation")}
    data = TrainData(
        tokens=world.tokens[rows["train"]], labels=world.concept[rows["train"]],
        validation_tokens=world.tokens[rows["validation"]], validation_labels=world.concept[rows["validation"]],
    )  # fmt: skip
    train_extractor(module, data, TrainSettings(epochs=6, rate=3e-3, minibatch=32, step_every=4), MODEL.codebook)
    return module


def suspects(world: World, module: nn.Module) -> list[Any]:
    """All codes as suspects of the concept "with", in images that still hold the patch."""
    rows = torch.cat([world.rows("train"), world.rows("validation")])
    tokens, concept = world.tokens[rows], world.concept[rows]
    batch = TokenBatch(tuple(world.image_ids[row] for row in rows.tolist()), concept, ("train",) * len(rows), tokens)
    own, others = ((concept == one).nonzero()[:100, 0].tolist() for one in (WITH, 1 - WITH))
    here = tokens[:, None] == torch.arange(MODEL.k)[None, :, None, None]
    counts = here[concept == WITH]
    asked = Question(
        concept=WITH, codes=tuple(range(MODEL.k)), counts=counts.sum(0), holding=counts.flatten(2).any(2).sum(0),
        images=batch.take(own), others=batch.take(others),
    )  # fmt: skip
    holds = here.flatten(2).any(2)
    holding = torch.stack([holds[concept == one].sum(0) for one in range(len(CONCEPTS))])
    mean = MODEL.codebook.mean(0)[None, :, None, None].expand(1, -1, *MODEL.grid)
    examined = examine_question(asked, MODEL, asking(world, module), mean, 60)
    enrichment = measure_enrichment(holding, concept.bincount(minlength=len(CONCEPTS)))
    return list(shortcuts_table(examined, enrichment, CONCEPTS, ShortcutsSettings()).rows)


def asking(world: World, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The extractor, and a judge who knows the rule."""

    @torch.no_grad()
    def ask(embedded: Tensor) -> Tensor:
        cause = torch.isin(MODEL.nearest(embedded), world.causal_codes).flatten(1).any(1).double()
        return torch.stack([module(embedded).softmax(1)[:, WITH].double(), 0.05 + 0.9 * cause], 1)

    return ask
