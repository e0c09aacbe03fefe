"""The toy model: exact in both directions, with known truth."""

import pytest
import torch

from vqcortex.adapters.family import Spec
from vqcortex.adapters.toy import ToyAdapter, load_toy
from vqcortex.errors import ConfigError


def test_decoding_and_encoding_is_the_identity():
    toy = ToyAdapter(grid=(2, 5))
    tokens = torch.randint(0, 8, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    pixels = toy.decode(toy.embed(tokens))
    assert pixels.shape == (3, 3, 8, 20)
    assert torch.equal(toy.encode(pixels), tokens)


def test_a_concept_paints_much_of_its_own_colour():
    toy = ToyAdapter()
    drawn = toy.generate(torch.full((50,), 6), [f"i{i}" for i in range(50)], 0)
    share = (drawn == 6).double().mean().item()
    assert 0.4 < share < 0.56  # 0.4 painted, and an eighth of the rest by chance


def test_a_grid_can_be_asked_for_by_name():
    assert load_toy(Spec.read("toy:2x3")).grid == (2, 3)
    with pytest.raises(ConfigError, match="toy grid '2by3' is not ROWSxCOLUMNS"):
        load_toy(Spec.read("toy:2by3"))


def test_it_is_one_level_and_can_do_everything():
    toy = ToyAdapter(grid=(2, 5))
    assert (toy.family, toy.k, toy.d, toy.device.type) == ("toy", 8, 3, "cpu")
    assert [(level.name, level.grid, level.codes) for level in toy.levels] == [("tokens", (2, 5), (0, 8))]
    assert toy.abilities == {"encode", "decode", "generate"}


def test_log_probabilities_are_how_often_it_draws_a_code():
    toy = ToyAdapter(grid=(50, 50))
    tokens = toy.generate(torch.tensor([3]), ["a"], seed=0)
    chance = toy.log_probabilities(tokens, torch.tensor([3])).exp()[0, :, 0, 0]
    torch.testing.assert_close(tokens.flatten().bincount(minlength=8) / 2500, chance, atol=0.03, rtol=0)
    assert chance.sum().item() == pytest.approx(1)
