from __future__ import annotations

import pytest
import torch

from vqcortex.attribution import METHODS, protocol
from vqcortex.attribution.gradient_x_embedding import NoisyGradientXEmbedding
from vqcortex.attribution.occlusion import Occlusion
from vqcortex.attribution.protocol import ReportsGap, build_method, score_together
from vqcortex.errors import ConfigError, UnknownName

CODEBOOK = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
SETTINGS = {"draws": 5, "noise": 0.1, "reduce": "norm", "seed": 3}


def test_a_method_takes_the_settings_it_has_and_leaves_the_others():
    tis = build_method("tis", codebook=CODEBOOK, **SETTINGS)
    assert (tis.draws, tis.noise, tis.reduce, tis.seed) == (5, 0.1, "norm", 3)
    assert build_method("gradient", codebook=CODEBOOK, **SETTINGS).reduce == "norm"
    noisy = build_method("noisy_gradient_x_embedding", codebook=CODEBOOK, **SETTINGS)
    assert (noisy.draws, noisy.noise, noisy.seed) == (5, 0.1, 3)


def test_the_baseline_is_the_mean_code_when_a_codebook_is_given():
    assert build_method("gradient_x_embedding", codebook=CODEBOOK).baseline.tolist() == [2.0, 4.0]
    assert build_method("gradient_x_embedding").baseline is None


@pytest.mark.parametrize("wanted", ["zero", None])
def test_no_baseline_can_be_asked_for(wanted):
    assert build_method("gradient_x_embedding", codebook=CODEBOOK, baseline=wanted).baseline is None


def test_a_baseline_can_be_given_as_numbers():
    own = torch.tensor([1.0, -1.0])
    assert build_method("gradient_x_embedding", codebook=CODEBOOK, baseline=own).baseline is own


def test_a_mean_without_a_codebook_is_an_error():
    with pytest.raises(ConfigError, match="baseline='mean' needs a codebook, and none was given"):
        build_method("gradient_x_embedding", baseline="mean")


def test_an_unknown_baseline_is_an_error():
    with pytest.raises(ConfigError, match="baseline='median' must be 'mean', 'zero', 'frequent', 'resampled' or"):
        build_method("gradient_x_embedding", codebook=CODEBOOK, baseline="median")


def test_a_setting_that_no_method_has_is_an_error():
    with pytest.raises(
        ConfigError, match="'drawz' is no setting of any method; known: at_once, baseline, block, draws"
    ):
        build_method("tis", drawz=5)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'gradient'"):
        build_method("gradiant")


def test_methods_scored_together_give_what_each_gives_alone(monkeypatch):
    torch.manual_seed(0)
    extractor = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 1), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    embedded, concept, ids = torch.randn(3, 2, 2, 2), torch.tensor([0, 1, 2]), ["a", "b", "c"]
    names = [name for name in METHODS if name not in {"attention_rollout", "ensemble"}]
    methods = {name: build_method(name, codebook=CODEBOOK, draws=3, noise=0.1, seed=1) for name in names}
    alone = {name: method(extractor, embedded, concept, ids) for name, method in methods.items()}
    taken = []
    real = protocol.mean_gradient
    monkeypatch.setattr(protocol, "mean_gradient", lambda *a, **k: taken.append(k) or real(*a, **k))
    together = score_together(methods, extractor, embedded, concept, ids)
    assert all(torch.equal(together[name], alone[name]) for name in names)
    assert len(taken) == 1


def test_methods_with_other_sampling_do_not_share_their_gradient():
    torch.manual_seed(0)
    extractor = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 1), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    given = extractor, torch.randn(2, 2, 2, 2), torch.tensor([0, 1]), ["a", "b"]
    methods = {way: build_method("tis", draws=3, sampling=way) for way in ("plain", "antithetic", "quasi")}
    together = score_together(methods, *given)
    assert all(torch.equal(together[way], method(*given)) for way, method in methods.items())
    assert len({float(scores.sum()) for scores in together.values()}) == 3


def test_baselines_by_name_come_from_codebook_and_frequency():
    frequency = torch.tensor([1, 3])
    for name in ("gradient_x_embedding", "integrated_gradients", "occlusion", "shapley"):
        built = {
            wanted: build_method(name, codebook=CODEBOOK, frequency=frequency, baseline=wanted, resamples=5, seed=7)
            for wanted in ("mean", "frequent", "resampled", "zero")
        }
        assert built["mean"].baseline.tolist() == [3.0, 5.0]
        assert built["frequent"].baseline.tolist() == [4.0, 6.0]
        assert built["zero"].baseline is None
        drawn = built["resampled"].baseline
        assert (drawn.draws, drawn.seed, drawn.codebook is CODEBOOK) == (5, 7, True)


def test_an_ensemble_hands_settings_on_to_its_method():
    others = (torch.nn.Identity(), torch.nn.Identity())
    built = build_method("ensemble", method="occlusion", block=2, codebook=CODEBOOK, extractors=others)
    assert isinstance(built.method, Occlusion)
    assert (built.method.block, built.method.baseline.tolist()) == (2, [2.0, 4.0])
    assert built.passes((7, 7)) == (3 * 37, 0)
    assert isinstance(build_method("ensemble", draws=3).method, NoisyGradientXEmbedding)
    assert build_method("ensemble", draws=3).passes((7, 7)) == (3, 3)
    assert build_method("ensemble", method=Occlusion()).method == Occlusion()


def test_an_ensemble_of_ensembles_is_an_error():
    with pytest.raises(ConfigError, match="method='ensemble' of an ensemble must be a method of one extractor"):
        build_method("ensemble", method="ensemble")


def test_methods_whose_scores_add_up_say_so():
    telling = {name for name in METHODS if isinstance(build_method(name), ReportsGap)}
    assert telling == {"gradient_x_embedding", "noisy_gradient_x_embedding", "integrated_gradients", "shapley"}
