from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.baselines import DrawnCodes
from vqcortex.attribution.gradient_x_embedding import GradientXEmbedding, NoisyGradientXEmbedding
from vqcortex.errors import ShapeError

IDS = ["a", "b"]
BASELINE = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(80, 3)).double()
    return net, torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.tensor([1, 0])


@pytest.mark.parametrize("method", [GradientXEmbedding, NoisyGradientXEmbedding])
@pytest.mark.parametrize("baseline", [None, BASELINE])
def test_scores_of_a_linear_extractor_add_up_to_the_difference_of_logits(case, method, baseline):
    net, embedded, concept = case
    empty = torch.zeros_like(embedded) + (0 if baseline is None else baseline[:, None, None])
    wanted = (net(embedded) - net(empty)).gather(1, concept[:, None])[:, 0].detach()
    scores = method(baseline=baseline)(net, embedded, concept, IDS)
    torch.testing.assert_close(scores.sum((1, 2)), wanted)


def test_a_position_that_holds_the_baseline_scores_zero(case):
    net, embedded, concept = case
    embedded[0, :, 2, 3] = BASELINE
    scores = GradientXEmbedding(baseline=BASELINE)(net, embedded, concept, IDS)
    assert scores[0, 2, 3] == 0
    assert (scores != 0).sum() == scores.numel() - 1


def test_the_baseline_takes_the_type_of_the_embedding(case):
    net, embedded, concept = case
    assert GradientXEmbedding(baseline=BASELINE)(net.float(), embedded.float(), concept, IDS).dtype == torch.float32


def test_a_baseline_of_another_width_is_an_error(case):
    with pytest.raises(ShapeError, match=r"baseline has shape \(4,\) but codes have 3 channels"):
        GradientXEmbedding(baseline=torch.zeros(4))(*case, IDS)


def test_without_noise_both_are_the_same(case):
    noisy = NoisyGradientXEmbedding(noise=0.0, baseline=BASELINE)
    assert torch.equal(noisy(*case, IDS), GradientXEmbedding(baseline=BASELINE)(*case, IDS))
    assert noisy.passes((4, 5)) == (1, 1)


@pytest.mark.parametrize("method", [GradientXEmbedding, NoisyGradientXEmbedding])
def test_a_linear_extractor_leaves_no_gap_and_a_curved_one_does(case, method):
    net, embedded, concept = case
    for one, closed in ((net, True), (nn.Sequential(net, nn.Tanh()), False)):
        explain = method(baseline=BASELINE)
        gap = explain.gap(explain(one, embedded, concept, IDS), one, embedded, concept, IDS)
        assert gap.shape == (2,)
        assert torch.allclose(gap, torch.zeros(2).double(), atol=1e-9) == closed


def test_of_drawn_codes_the_expected_code_is_the_baseline(case):
    codebook, frequency = torch.randn(4, 3).double(), torch.tensor([1.0, 0.0, 2.0, 1.0])
    drawn = DrawnCodes(codebook=codebook, frequency=frequency)
    mean = frequency.double() @ codebook / 4
    found = GradientXEmbedding(baseline=drawn)(*case, IDS)
    torch.testing.assert_close(found, GradientXEmbedding(baseline=mean)(*case, IDS))
