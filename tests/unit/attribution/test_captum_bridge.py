from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from vqcortex.attribution import METHODS
from vqcortex.attribution.baselines import DrawnCodes
from vqcortex.attribution.captum_bridge import DETERMINISTIC, Captum
from vqcortex.attribution.gradient_x_embedding import GradientXEmbedding
from vqcortex.attribution.integrated import IntegratedGradients
from vqcortex.attribution.occlusion import Occlusion
from vqcortex.attribution.protocol import Method, build_method
from vqcortex.errors import ConfigError, MissingExtra, ModelError, UnknownName

pytest.importorskip("captum")
IDS = ["a", "b", "c"]
BASELINE = torch.tensor([0.1, -0.2, 0.3])
DRAWN = DrawnCodes(codebook=torch.linspace(-1, 1, 12).view(4, 3), frequency=torch.ones(4), draws=2)
ALGORITHMS = [*DETERMINISTIC, "DeepLiftShap", "GradientShap", "KernelShap", "ShapleyValueSampling"]


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(24, 3))
    return net, torch.randn(3, 3, 2, 3), torch.tensor([0, 2, 1])


@pytest.mark.parametrize("baseline", [BASELINE, DRAWN], ids=["fixed", "drawn"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_of_captum_keeps_the_contract_of_ours(name, baseline, case):
    net, embedded, concept = case
    method = build_method(f"captum:{name}", baseline=baseline, seed=3, draws=7)
    assert isinstance(method, Method)
    torch.manual_seed(5)
    numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()
    scores = method(net.train(), embedded, concept, IDS)
    assert scores.shape == (3, 2, 3)
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert np.random.get_state()[1].tolist() == numbers[1]
    order = [2, 0, 1]
    alone = torch.cat([method(net, embedded[[i]], concept[[i]], [IDS[i]]) for i in order])
    torch.testing.assert_close(alone, scores[order])
    assert net.training
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with torch.inference_mode():
        torch.testing.assert_close(method(net, embedded.clone(), concept, IDS), scores)


def test_what_both_have_is_the_same(case):
    same = {
        "IntegratedGradients": IntegratedGradients(nodes=50, baseline=BASELINE),
        "Occlusion": Occlusion(baseline=BASELINE),
        "FeatureAblation": Occlusion(baseline=BASELINE),
        "InputXGradient": GradientXEmbedding(),
    }
    for name, ours in same.items():
        found = build_method(f"captum:{name}", baseline=BASELINE)(*case, IDS)
        torch.testing.assert_close(found, ours(*case, IDS), rtol=1e-4, atol=1e-5)


def test_costs_are_counted():
    costs = {name: build_method(f"captum:{name}").passes((2, 3)) for name in ("Saliency", "Occlusion", "DeepLift")}
    # One forward more than the algorithm takes looks whether the logits are fit to be explained.
    assert costs == {"Saliency": (2, 1), "Occlusion": (8, 0), "DeepLift": (3, 2)}
    assert build_method("captum:IntegratedGradients", options={"n_steps": 9}).passes((2, 3)) == (10, 9)


def test_an_ensemble_takes_them_too(case):
    method = build_method("ensemble", method="captum:Saliency", options={"abs": False})
    assert isinstance(method.method, Captum)
    assert method(*case, IDS).shape == (3, 2, 3)


def test_names_are_found_but_not_listed():
    assert not any(name.startswith("captum:") for name in METHODS)
    with pytest.raises(UnknownName, match=r"no attribution algorithm 'DeepLyft'.*Did you mean 'captum:DeepLift'"):
        METHODS["captum:DeepLyft"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("FeaturePermutation", "mixes the images of a batch"),
        ("LayerGradCam", "needs more than an extractor and a concept"),
        ("NoiseTunnel", "needs more than an extractor and a concept"),
    ],
)
def test_algorithms_that_cannot_be_bridged_say_why(name, why):
    with pytest.raises(ConfigError, match=f"captum's {name} {why}; known: Deconvolution, DeepLift"):
        build_method(f"captum:{name}")


def test_an_unknown_option_is_an_error():
    with pytest.raises(ConfigError, match="captum's Saliency has no option steps; it has: inputs, target, abs"):
        build_method("captum:Saliency", options={"steps": 3})


def test_what_captum_cannot_do_is_one_line(case):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.net = nn.ReLU(), case[0]

        def forward(self, embedded):
            return self.net(self.same(self.same(embedded)))

    with pytest.raises(ModelError, match=r"captum's DeepLift fails on this extractor \(Twice\): .*another method"):
        build_method("captum:DeepLift")(Twice(), *case[1:], IDS)


def test_without_captum_the_command_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtra, match="need captum; install it with: pip install captum"):
        build_method("captum:DeepLift")
