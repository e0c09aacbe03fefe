import pytest
import torch
from torch import nn

from vqcortex.evaluation.sanity.randomise import layer_groups, randomised
from vqcortex.extractors.protocol import build_extractor


class Scaled(nn.Module):
    """Has weights of its own and no rule to draw them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_layers_are_grouped_from_the_logits_down(other_network):
    assert layer_groups(other_network(), 6) == [("6",), ("3",), ("1",), ("0",)]
    assert layer_groups(other_network(), 2) == [("6", "3"), ("1", "0")]


def test_several_networks_are_taken_side_by_side(other_network):
    both = nn.ModuleDict({"one:1": other_network(), "two": nn.Linear(2, 2)})
    assert layer_groups(both, 2) == [("one:1.6", "one:1.3"), ("one:1.1", "one:1.0", "two")]
    fresh = randomised(both, ["one:1.6"], 0)
    assert not torch.equal(fresh["one:1"][6].weight, both["one:1"][6].weight)
    assert torch.equal(fresh["two"].weight, both["two"].weight)


@pytest.mark.parametrize("name", ["conv8", "se_resnet", "transformer", "pictures"])
def test_the_groups_of_an_extractor_hold_all_its_weights(name):
    module = build_extractor(name, d=3, grid=(4, 4), concepts=8, seed=0)
    layers = [one for group in layer_groups(module, 5) for one in group]
    held = sum(weight.numel() for one in layers for weight in module.get_submodule(one).parameters(recurse=False))
    assert held == sum(weight.numel() for weight in module.parameters())
    fresh, again = (randomised(module, layers, 0).state_dict() for _ in range(2))
    matrices = [name for name, weight in module.named_parameters() if weight.dim() > 1]
    assert not any(torch.equal(fresh[one], module.state_dict()[one]) for one in matrices)
    assert all(torch.equal(fresh[one], again[one]) for one in fresh)


def test_only_the_named_layers_of_a_copy_change_and_no_generator_is_touched(other_network):
    module = other_network()
    module[1].running_mean += 3
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    fresh = randomised(module, ["1", "6"], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(fresh[0].weight, module[0].weight)
    assert not fresh[1].running_mean.any()  # the averages were learned too
    assert not torch.equal(fresh[6].weight, randomised(module, ["6"], seed=2)[6].weight)


def test_a_layer_without_a_rule_keeps_its_spread():
    fresh = randomised(nn.Sequential(Scaled()), ["0"], seed=0)[0].scale
    assert not torch.equal(fresh, Scaled().scale)
    assert float(fresh.detach().abs().max()) < 6
