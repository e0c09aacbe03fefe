"""A small network over toy images, an explainer that reads it, and some that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.evaluation.sanity.protocol import Subject
from vqcortex.extractors.protocol import look_up

IMAGES = 24


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 8),
        ).eval()  # fmt: skip


def by_gradient(module, embedded, concept, image_ids):
    """Gradient times embedding."""
    leaf = embedded.detach().requires_grad_()
    picked = module(leaf).gather(1, concept[:, None])
    return (torch.autograd.grad(picked.sum(), leaf)[0] * embedded).sum(1)


def by_edges(module, embedded, concept, image_ids):
    """How a position differs from the one before: looks at no network and no concept."""
    return (embedded - embedded.roll(1, 3)).abs().sum(1)


def by_place(module, embedded, concept, image_ids):
    """The lower a position, the more important: looks at nothing."""
    return torch.arange(16.0).view(1, 4, 4).expand(len(embedded), -1, -1)


def nothing(module, embedded, concept, image_ids):
    return torch.zeros(len(embedded), 4, 4)


def subject_of(score=by_gradient, images: int = IMAGES, **other) -> Subject:
    toy = ToyAdapter()
    ids = [f"image {number}" for number in range(images)]
    concept = torch.arange(images) % 8
    tokens = toy.generate(concept, ids, seed=0)
    module = network()
    return Subject(
        module=module, score=score, codebook=toy.codebook, tokens=tokens, concept=concept, image_ids=ids,
        original=score(module, look_up(toy.codebook, tokens), concept, ids), concepts=8,
        renumbered=lambda order: score, **other,
    )  # fmt: skip


@pytest.fixture
def subject():
    return subject_of()


@pytest.fixture
def explained_by():
    """Makes a subject with another explainer: gradient, edges, place, nothing."""
    known = {"gradient": by_gradient, "edges": by_edges, "place": by_place, "nothing": nothing}
    return lambda name, **other: subject_of(known[name], **other)


@pytest.fixture
def other_network():
    return network


@pytest.fixture
def changed():
    return replace
