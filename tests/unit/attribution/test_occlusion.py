from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.attribution.banzhaf import Banzhaf
from vqcortex.attribution.gradient_x_embedding import GradientXEmbedding
from vqcortex.attribution.integrated import IntegratedGradients
from vqcortex.attribution.occlusion import Occlusion, blocks
from vqcortex.attribution.shapley import Shapley
from vqcortex.errors import ConfigError

IDS = ["a", "b"]
BASELINE = torch.tensor([0.3, -1.0, 2.0])


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(48, 3)).double()
    return net, torch.randn(2, 3, 3, 4).double(), torch.tensor([0, 2])


@pytest.mark.parametrize(
    "method",
    [
        Occlusion(baseline=BASELINE),
        Shapley(baseline=BASELINE, permutations=1, sampling="plain"),
        Banzhaf(baseline=BASELINE, masks=32),
        IntegratedGradients(baseline=BASELINE, nodes=1),
    ],
    ids=["occlusion", "shapley", "banzhaf", "integrated"],
)
def test_on_a_linear_extractor_all_say_what_gradient_times_embedding_says(method, case):
    wanted = GradientXEmbedding(baseline=BASELINE)(*case, IDS)
    torch.testing.assert_close(method(*case, IDS), wanted)


def test_a_block_shares_its_fall_among_its_positions():
    class One(nn.Module):
        """Sees the middle of the top row and nothing else."""

        def forward(self, embedded):
            return embedded[:, 0, 0, 1, None] * torch.tensor([0.0, 8.0])

    found = Occlusion(block=2)(One(), torch.ones(1, 1, 3, 3), torch.tensor([1]), ["a"])
    # The upper left and the upper right block hold it, the two lower ones do not.
    assert found[0].tolist() == [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_blocks_are_whole_squares_row_by_row():
    found = blocks((2, 3), 2)
    assert found.long().tolist() == [[[1, 1, 0], [1, 1, 0]], [[0, 1, 1], [0, 1, 1]]]
    assert Occlusion(block=2).passes((7, 7)) == (37, 0)


def test_a_block_larger_than_the_grid_is_an_error(case):
    with pytest.raises(ConfigError, match="block=4 must be at most 3 on a 3x4 grid"):
        Occlusion(block=4)(*case, IDS)


def test_no_block_is_an_error():
    with pytest.raises(ConfigError, match="block=0 must be at least 1"):
        Occlusion(block=0)
