"""The faster twin computes what the extractor computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.tis import Tis
from vqcortex.errors import ConfigError
from vqcortex.evaluation.rank_agreement import rank_correlation
from vqcortex.extractors import EXTRACTORS
from vqcortex.extractors.fast import fast_twin
from vqcortex.extractors.protocol import build_extractor

NAMES = sorted(set(EXTRACTORS) - {"pictures"})
IDS = ["a", "b", "c"]
CONCEPT = torch.tensor([0, 2, 4])


def case(name: str) -> tuple[nn.Module, torch.Tensor]:
    """An extractor whose norms do something, and codes."""
    rng = torch.Generator().manual_seed(0)
    extractor = build_extractor(name, 6, (8, 8), 5, 0, width=32).eval()
    for part in extractor.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(generator=rng).mul_(0.1)
            part.running_var.uniform_(0.5, 2, generator=rng)
            nn.init.uniform_(part.weight, 0.5, 2, generator=rng)
            nn.init.normal_(part.bias, std=0.1, generator=rng)
    return extractor, torch.randn(3, 6, 8, 8, generator=rng)


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_nothing_changes_but_the_norms_are_gone(name):
    extractor, embedded = case(name)
    twin = fast_twin(extractor, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(twin(embedded), extractor(embedded), rtol=1e-4, atol=1e-4)
    before, after = (
        sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in one.modules()) for one in (extractor, twin)
    )
    assert after == 0
    assert (before > 0) == (name != "transformer_postnorm")
    assert twin.settings is not None


# Random weights are the hardest case, since positions differ little: trained extractors came to 0.995 in bfloat16.
@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.9), (torch.float16, 0.97)], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", NAMES)
def test_in_half_precision_importance_has_nearly_the_same_order(name, dtype, least):
    extractor, embedded = case(name)
    twin, method = fast_twin(extractor, dtype), Tis(draws=2)
    scores = method(twin, embedded, CONCEPT, IDS)
    assert scores.dtype == torch.float32
    assert next(twin.parameters()).dtype == dtype
    exact = method(extractor, embedded, CONCEPT, IDS)
    assert rank_correlation(scores, exact).rho.mean() > least
    torch.testing.assert_close(scores.mean(), exact.mean(), rtol=0.1, atol=0)


def test_gradients_too_small_for_half_precision_are_not_lost():
    extractor, embedded = case("conv8")
    with torch.no_grad():
        extractor.head.weight.mul_(1e-3)
    scores, exact = (
        Tis(draws=2)(one, embedded, CONCEPT, IDS) for one in (fast_twin(extractor, torch.float16), extractor)
    )
    assert exact.max() < 2**-14  # below, float16 has no full precision
    assert rank_correlation(scores, exact).rho.mean() > 0.99


def test_the_extractor_is_left_as_it_is():
    extractor, _ = case("conv8")
    before = {key: value.clone() for key, value in extractor.state_dict().items()}
    fast_twin(extractor, torch.bfloat16)
    assert all(torch.equal(value, before[key]) for key, value in extractor.state_dict().items())
    assert all(weight.requires_grad for weight in extractor.parameters())


def test_an_extractor_that_looks_through_the_decoder_has_no_twin():
    with pytest.raises(ConfigError, match=r"looks through the model's decoder.*dtype=bfloat16"):
        fast_twin(build_extractor("pictures", 6, (8, 8), 5, 0), torch.bfloat16)
