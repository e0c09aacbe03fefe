"""The published networks, rebuilt from the recipe of their weights: our logits equal theirs."""

import json
import math
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vqcortex.extractors.checkpoint import settings_of
from vqcortex.extractors.protocol import network_from
from vqcortex.extractors.published import NETS, load_published

FIXTURE = Path(__file__).parents[1] / "data" / "cortex_published"
KEYS = json.loads((FIXTURE / "keys.json").read_text())["state_dict_keys"]
EXPECTED = load_file(FIXTURE / "expected.safetensors")


def weight_of(key, shape):
    """The weight the recipe gives a key."""
    rng = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=rng)
    normal = torch.randn(shape, generator=rng)
    if key.endswith("running_mean"):
        return 0.1 * normal
    if key in ("cls_token", "pos_embed"):
        return 0.02 * normal
    if len(shape) >= 2:
        return normal * math.sqrt(2 / math.prod(shape[1:]))
    return 1 + 0.1 * normal if key.endswith("weight") else 0.02 * normal


def state_of(net):
    return {key: weight_of(key, shape) for key, (shape, _) in KEYS[net].items()}


def images(seed=0):
    return torch.randn(2, 256, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("net", sorted(NETS))
def test_logits_equal_the_published_ones(net):
    module = load_published(state_of(net), net)
    with torch.no_grad():
        logits = module(images())
    expected = EXPECTED[f"{net}.logits"]
    spread = float(expected.max() - expected.min())
    assert spread > 0.05
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3 * spread)


def test_the_published_post_norm_network_is_blind_and_ours_is_not():
    state = state_of("dalle_net3")
    blind = load_published(state, "dalle_net3")
    seeing = network_from("transformer_postnorm", settings_of(blind) | {"attends_over_batch": False})
    seeing.load_state_dict(blind.state_dict(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(blind(images(0)), blind(images(1)), rtol=0, atol=1e-6)
        assert (seeing.eval()(images(0)) - seeing(images(1))).abs().max() > 1e-2
