"""Shortcuts: of a planted world the patch is the first suspect and the true cause is none; on a study they run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.audit.shortcuts import measure_enrichment
from vqcortex.extractors.protocol import build_extractor
from vqcortex.extractors.train import TrainData, TrainSettings, train_extractor
from vqcortex.pipelines.interactions import Question
from vqcortex.pipelines.loaded import EXPLAINED
from vqcortex.pipelines.settings import ShortcutsSettings
from vqcortex.pipelines.shortcuts import (
    evidence_of,
    examine_question,
    images_with_codes,
    shortcuts_table,
)
from vqcortex.tokens.store import TokenBatch, open_store
from vqcortex.worlds.planting import build_world
from vqcortex.worlds.protocol import Parameters

MODEL = ToyAdapter()
MEAN = MODEL.codebook.mean(0)[None, :, None, None].expand(1, -1, 4, 4)
SETTINGS = ShortcutsSettings(shortcut_images=60)


@pytest.fixture(scope="module")
def planted():
    """A world whose patch is easier to learn than its cause, because the labels are noisy, and who learned it."""
    ids = [f"world/{number}" for number in range(1200)]
    base = torch.randint(8, (1200, 4, 4), generator=torch.Generator().manual_seed(0))
    world = build_world(
        "shortcut", base, ids, frequency=torch.ones(8),
        parameters=Parameters(correlation=0.95, label_noise=0.2, patch=1, plant_rate=0.1, seed=3),
    )  # fmt: skip
    module = build_extractor("conv8", MODEL.d, MODEL.grid, 2, 0, width=16, depth=2)
    rows = {split: world.rows(split) for split in ("train", "validation")}
    data = TrainData(
        tokens=world.tokens[rows["train"]], labels=world.concept[rows["train"]],
        validation_tokens=world.tokens[rows["validation"]], validation_labels=world.concept[rows["validation"]],
    )  # fmt: skip
    train_extractor(module, data, TrainSettings(epochs=6, rate=3e-3, minibatch=32, step_every=4), MODEL.codebook)
    return world, module


def questioned(world):
    """Of the concept "with": all codes, in images that still hold the patch."""
    rows = torch.cat([world.rows("train"), world.rows("validation")])
    tokens, concept = world.tokens[rows], world.concept[rows]
    names = tuple(world.image_ids[row] for row in rows.tolist())
    batch = TokenBatch(names, concept, ("train",) * len(rows), tokens)
    own, others = ((concept == one).nonzero()[:100, 0].tolist() for one in (1, 0))
    here = tokens[concept == 1][:, None] == torch.arange(8)[None, :, None, None]
    return Question(
        concept=1, codes=tuple(range(8)), counts=here.sum(0), holding=here.flatten(2).any(2).sum(0),
        images=batch.take(own), others=batch.take(others),
    ), (tokens, concept)  # fmt: skip


def asking(world, module):
    """The extractor, and a judge who knows the rule."""

    @torch.no_grad()
    def ask(embedded):
        tokens = MODEL.nearest(embedded)
        cause = torch.isin(tokens, world.causal_codes).flatten(1).any(1).double()
        return torch.stack([module(embedded).softmax(1)[:, 1].double(), 0.05 + 0.9 * cause], 1)

    return ask


def test_the_planted_patch_is_the_first_suspect_and_the_cause_is_none(planted):
    world, module = planted
    asked, (tokens, concept) = questioned(world)
    holds = (tokens[:, None] == torch.arange(8)[None, :, None, None]).flatten(2).any(2)
    holding = torch.stack([holds[concept == one].sum(0) for one in (0, 1)])
    enrichment = measure_enrichment(holding, concept.bincount(minlength=2))
    examined = examine_question(asked, MODEL, asking(world, module), MEAN, 60)
    rows = shortcuts_table(examined, enrichment, ("without", "with"), SETTINGS).rows
    assert rows[0]["code"] == world.decoy_codes[0]
    assert rows[0]["verdict"] == "shortcut"
    assert (rows[0]["removed_gap"], rows[0]["inserted_gap"]) > (0.2, 0.2)
    assert (rows[0]["row"], rows[0]["column"]) == tuple(world.decoy.any(0).nonzero()[0].tolist())
    for row in rows:
        if row["code"] in world.causal_codes.tolist():
            assert row["verdict"] == "no sign"


class Constant(nn.Module):
    """Says the same of every image."""

    def forward(self, embedded):
        return torch.zeros(len(embedded), 2)


def test_who_leans_on_nothing_has_no_shortcut(planted):
    world, _ = planted
    asked, _ = questioned(world)
    enrichment = measure_enrichment(torch.tensor([[1] * 8, [99] * 8]), torch.tensor([100, 100]))
    examined = examine_question(asked, MODEL, asking(world, Constant()), MEAN, 60)
    assert {row["verdict"] for row in shortcuts_table(examined, enrichment, ("a", "b"), SETTINGS).rows} == {"no sign"}


def test_too_few_images_are_said_to_be_too_few(planted):
    world, module = planted
    asked, _ = questioned(world)
    few = replace(asked, images=asked.images.take(range(2)), others=asked.others.take(range(2)))
    enrichment = measure_enrichment(torch.tensor([[1] * 8, [99] * 8]), torch.tensor([100, 100]))
    table = shortcuts_table(
        examine_question(few, MODEL, asking(world, module), MEAN, 60), enrichment, ("a", "b"), SETTINGS
    )
    assert {row["verdict"] for row in table.rows} == {"too few images"}
    assert "without it: too few images" in evidence_of(table.rows[0])


def test_images_with_codes_are_counted_once_each(toy_study):
    store = open_store(toy_study.path("tokens"))
    holding, images = images_with_codes(store, EXPLAINED)
    wanted = torch.zeros_like(holding)
    for batch in store.batches(100, pictures=False):
        for tokens, concept, split in zip(batch.tokens, batch.concept.tolist(), batch.split, strict=True):
            if split in EXPLAINED:
                wanted[concept, tokens.unique()] += 1
    assert torch.equal(holding, wanted)
    assert images.sum() == len(store) - store.count("test")
