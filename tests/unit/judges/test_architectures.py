"""The two pixel networks."""

import torch

from vqcortex.judges.cnn import CNN, CNNSettings
from vqcortex.judges.patch import PatchAttention, PatchSettings
from vqcortex.judges.toy import ColourShare


def test_grey_judges_do_not_see_colour():
    torch.manual_seed(0)
    red, blue = torch.zeros(2, 1, 3, 28, 28)
    red[:, 0], blue[:, 2] = 0.9, 0.9
    for network in (CNN(CNNSettings(width=4)).eval(), PatchAttention(PatchSettings(width=8, heads=2)).eval()):
        torch.testing.assert_close(network(red), network(blue))


def test_colour_judges_see_colour():
    torch.manual_seed(0)
    red, blue = torch.zeros(2, 1, 3, 28, 28)
    red[:, 0], blue[:, 2] = 0.9, 0.9
    for network in (
        CNN(CNNSettings(channels=3, width=4)).eval(),
        PatchAttention(PatchSettings(channels=3, width=8, heads=2)).eval(),
    ):
        assert not torch.allclose(network(red), network(blue))


def test_the_patch_judge_knows_where_a_patch_is():
    torch.manual_seed(0)
    network = PatchAttention(PatchSettings(width=8, heads=2)).eval()
    image = torch.rand(1, 3, 28, 28)
    assert not torch.allclose(network(image), network(image.roll(4, 3)))


def test_the_soft_ruler_counts_shades_the_hard_one_does_not():
    dim = torch.full((1, 3, 4, 4), 0.6)
    hard, soft = ColourShare(soft=False)(dim), ColourShare(soft=True)(dim)
    assert hard[0].tolist() == [0] * 7 + [12.0]
    assert 0 < soft[0, 7] < 12


def test_a_judge_that_mirrors_says_the_same_of_an_image_and_its_mirror():
    torch.manual_seed(0)
    network = PatchAttention(PatchSettings(width=8, heads=2, mirrors=True)).eval()
    image = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(network(image), network(image.flip(-1)))
    torch.testing.assert_close(network(image), (network.seen(image) + network.seen(image.flip(-1))) / 2)
