"""The pixel networks."""

import pytest
import torch

from vqcortex.judges.cct import CCT, CCTSettings
from vqcortex.judges.cnn import CNN, CNNSettings
from vqcortex.judges.patch import PatchAttention, PatchSettings
from vqcortex.judges.toy import ColourShare

NETWORKS = {
    "cct": lambda channels: CCT(CCTSettings(channels=channels, side=28, width=8, heads=2, layers=1)),
    "cnn": lambda channels: CNN(CNNSettings(channels=channels, width=4)),
    "patch": lambda channels: PatchAttention(PatchSettings(channels=channels, width=8, heads=2)),
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_grey_judges_do_not_see_colour_and_colour_judges_do(name):
    torch.manual_seed(0)
    red, blue = torch.zeros(2, 1, 3, 28, 28)
    red[:, 0], blue[:, 2] = 0.9, 0.9
    grey, colour = NETWORKS[name](1).eval(), NETWORKS[name](3).eval()
    torch.testing.assert_close(grey(red), grey(blue))
    assert not torch.allclose(colour(red), colour(blue))


@pytest.mark.parametrize("name", ["cct", "patch"])
def test_judges_with_attention_know_where_a_patch_is(name):
    torch.manual_seed(0)
    network = NETWORKS[name](3).eval()
    image = torch.rand(1, 3, 28, 28)
    assert not torch.allclose(network(image), network(image.roll(4, 3)))


def test_the_soft_ruler_counts_shades_the_hard_one_does_not():
    dim = torch.full((1, 3, 4, 4), 0.6)
    hard, soft = ColourShare(soft=False)(dim), ColourShare(soft=True)(dim)
    assert hard[0].tolist() == [0] * 7 + [12.0]
    assert 0 < soft[0, 7] < 12


@pytest.mark.parametrize(
    "network",
    [
        CCT(CCTSettings(side=28, width=8, heads=2, mirrors=True)),
        PatchAttention(PatchSettings(width=8, heads=2, mirrors=True)),
    ],
    ids=["cct", "patch"],
)
def test_a_judge_that_mirrors_says_the_same_of_an_image_and_its_mirror(network):
    image = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    network.eval()
    torch.testing.assert_close(network(image), network(image.flip(-1)))
    torch.testing.assert_close(network(image), (network.seen(image) + network.seen(image.flip(-1))) / 2)
    assert torch.equal(network.train()(image), network.seen(image))


def test_the_compact_transformer_is_the_paper_s_formula():
    """Section 3: convolutional tokens with positions, blocks, then softmax(g(x))^T x into one linear layer."""
    torch.manual_seed(0)
    network = CCT(CCTSettings(side=8, width=8, heads=2, layers=1)).eval()
    image = torch.rand(1, 3, 8, 8)
    (one, _, most), (two, _, _) = network.tokens
    x = most(torch.relu(two(most(torch.relu(one(image * 2 - 1))))))[0]
    x = torch.stack([x[:, row, col] for row in range(2) for col in range(2)]) + network.position
    x = network.norm(network.blocks[0](x[None])[0])
    weights = torch.cat([network.weigh(token) for token in x]).softmax(0)
    pooled = sum(weight * token for weight, token in zip(weights, x, strict=True))
    torch.testing.assert_close(network(image)[0], network.head(pooled))
