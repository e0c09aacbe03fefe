from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.search.ascent import perturbation
from vqcortex.search.embedding import EmbeddingOptimisation, start_point
from vqcortex.search.problem import pose

FREE = torch.tensor([[True, False, True]])
TOKENS = torch.tensor([[[0, 1, 2]], [[3, 2, 1]]])


def problem(codes: int = 6, **more):
    codebook = torch.randn(codes, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 4.0, 0.5])
    return pose(codebook, TOKENS, FREE, torch.tensor([1, 0]), ["a", "b"], **more)


def test_the_start_is_the_images_codes():
    rows = problem()
    assert torch.equal(start_point(EmbeddingOptimisation(spread=0.0), rows), rows.codebook[rows.free_tokens()])


def test_the_start_at_the_mean_is_the_mean_of_the_live_codes():
    rows = problem(alive=torch.arange(6) < 2)
    point = start_point(EmbeddingOptimisation(spread=0.0, start="mean"), rows)
    torch.testing.assert_close(point, rows.codebook[:2].mean(0).expand(2, 2, 3))


def test_the_logits_draw_moves_the_embedding_by_a_fraction_of_the_codebooks_own_spread():
    codebook = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 4.0, 0.5])
    tokens = torch.zeros(1, 40, 40, dtype=torch.long)
    rows = pose(codebook, tokens, torch.ones(40, 40, dtype=torch.bool), torch.tensor([0]), ["a"])
    settings = EmbeddingOptimisation(spread=0.1, start="mean")
    point = start_point(settings, rows)
    torch.testing.assert_close(point[0].std(0) / codebook.std(0), torch.full((3,), 0.1), atol=0.01, rtol=0)
    wanted = codebook.mean(0) + perturbation(settings, rows)[0, 7] @ (codebook - codebook.mean(0)) / 20
    torch.testing.assert_close(point[0, 7], wanted)


def test_a_linear_extractor_is_climbed_in_its_own_direction():
    """Adam's first step has the length of the rate in every channel, along the sign of the weight."""
    rows = problem()
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    search = EmbeddingOptimisation(steps=100, rate=1.0, spread=0.0)
    trace = search(net, rows.codebook, TOKENS, FREE, torch.tensor([1, 0]), ["a", "b"])
    far = 100 * net[1].weight.detach().sign().view(2, 3, 1, 3)[[1, 0]][:, :, FREE].transpose(1, 2)
    away = (far[:, :, None] - rows.codebook).square().sum(3)
    assert torch.equal(trace.tokens[:, 0, FREE], away.argmin(2))


def test_settings_have_the_published_defaults():
    one = EmbeddingOptimisation()
    assert (one.steps, one.rate) == (5000, pytest.approx(0.01))
