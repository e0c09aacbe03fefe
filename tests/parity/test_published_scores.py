"""The published token importance scores, from the published networks and the published noise."""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vqcortex.attribution.gradient import REDUCTIONS
from vqcortex.attribution.reference import published_gradient
from vqcortex.extractors.published import load_published

DATA = Path(__file__).parents[1] / "data" / "cortex_published"
TARGETS, DRAWS, SPREAD = torch.tensor([3, 7]), 2, 0.2


def weight(key: str, shape: list[int]) -> torch.Tensor:
    """A weight by the fixture's recipe: a function of its name and shape."""
    rng = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=rng)
    drawn = torch.randn(shape, generator=rng)
    if key.endswith("running_mean"):
        return 0.1 * drawn
    if key.endswith(("cls_token", "pos_embed")):
        return 0.02 * drawn
    if len(shape) >= 2:
        return drawn * (2 / prod(shape[1:])) ** 0.5
    return 1 + 0.1 * drawn if key.endswith("weight") else 0.02 * drawn


@lru_cache(maxsize=2)
def gradient_of(net: str) -> torch.Tensor:
    keys = json.loads((DATA / "keys.json").read_text())["state_dict_keys"][net]
    state = {key: weight(key, shape) for key, (shape, _) in keys.items()}
    extractor = load_published(state, net=net)
    embedded = torch.randn(2, 256, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)  # the published code draws from the global generator
        return published_gradient(extractor, embedded, TARGETS, draws=DRAWS, spread=SPREAD)


@lru_cache(maxsize=1)
def expected() -> dict[str, torch.Tensor]:
    return load_file(DATA / "expected.safetensors")


def check_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    for mine, other in zip(ours.float(), theirs, strict=True):
        assert F.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.9999
        assert set(mine.flatten().topk(20).indices.tolist()) == set(other.flatten().topk(20).indices.tolist())


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("net", ["vqgan_net1", "vqgan_net3"])
def test_published_scores_are_reproduced(net, reduce):
    check_same(REDUCTIONS[reduce](gradient_of(net)), expected()[f"{net}.tis_{reduce}"])


def test_the_published_gradient_is_reproduced():
    check_same(gradient_of("vqgan_net3"), expected()["vqgan_net3.gradient"])


def test_the_check_tells_another_reduction_apart():
    with pytest.raises(AssertionError, match="assert"):
        check_same(REDUCTIONS["mean"](gradient_of("vqgan_net3")), expected()["vqgan_net3.tis_max"])
