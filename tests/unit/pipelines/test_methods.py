"""Methods by name, over one extractor or several."""

import pickle

import pytest
import torch

from vqcortex.errors import UnknownName
from vqcortex.pipelines.loaded import load_all, read_scores, score_name
from vqcortex.pipelines.methods import Asked, method_of, plan_methods, read_name, score_methods
from vqcortex.pipelines.settings import ScoreSettings

NAMES = (
    "tis", "occlusion", "occlusion@pictures", "ensemble:occlusion", "ensemble:noisy_gradient_x_embedding", "ensemble",
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded(toy_study):
    return load_all(toy_study, "cpu")


@pytest.fixture(scope="module")
def images(loaded):
    return next(loaded.store.batches(4, split="test"))


def test_a_name_says_whom_it_asks():
    assert read_name("tis") == Asked(method="tis")
    assert read_name("tis@pictures:2") == Asked(method="tis", extractor="pictures:2")
    assert read_name("fast") == Asked(method="integrated_gradients", extractor="pictures")
    assert read_name("ensemble") == Asked(method="noisy_gradient_x_embedding", extractor="ensemble")


def test_what_is_scored_together_is_what_each_gives_alone(loaded, images):
    plan = plan_methods(NAMES, ScoreSettings(draws=2), loaded)
    found = score_methods(plan, loaded, images.tokens, images.concept, images.image_ids)
    assert tuple(found) == NAMES
    embedded = loaded.model.embed(images.tokens)
    for name, maps in found.items():
        method, module = method_of(name, plan, loaded)
        torch.testing.assert_close(method(module, embedded, images.concept, images.image_ids), maps)
    torch.testing.assert_close(found["ensemble"], found["ensemble:noisy_gradient_x_embedding"])
    assert not torch.equal(found["occlusion"], found["occlusion@pictures"])


def test_an_ensemble_is_the_mean_of_its_members_scaled_maps(loaded, images):
    names = ("occlusion", "occlusion@pictures", "ensemble:occlusion")
    plan = plan_methods(names, ScoreSettings(), loaded)
    one, other, both = score_methods(plan, loaded, images.tokens, images.concept, images.image_ids).values()
    slow = [(a / a.std(correction=0) + b / b.std(correction=0)) / 2 for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(both, torch.stack(slow))


def test_a_plan_survives_the_way_to_another_process(loaded, images):
    plan = plan_methods(("ensemble:occlusion",), ScoreSettings(), loaded)
    there = pickle.loads(pickle.dumps(plan))
    here = score_methods(plan, loaded, images.tokens, images.concept, images.image_ids)
    again = score_methods(there, loaded, images.tokens, images.concept, images.image_ids)
    assert torch.equal(here["ensemble:occlusion"], again["ensemble:occlusion"])


def test_a_study_keeps_the_scores_of_its_method_and_of_the_published_one(toy_study, loaded):
    scored = read_scores(toy_study.path("score") / score_name(0), loaded.model.grid)
    method = toy_study.record("score")["key"]["settings"]["method"]
    assert list(scored.importance) == [method, "tis"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("occlusion@vgg", r"asks extractor 'vgg', which this study does not have; it has: conv8, pictures"),
        ("smoothgard", r"no attribution method named 'smoothgard'"),
        ("ensemble:ensemble", r"is an ensemble of an ensemble; write ensemble:METHOD"),
    ],
)
def test_a_name_that_asks_for_nothing_there_is_told(loaded, name, message):
    with pytest.raises(UnknownName, match=message):
        plan_methods((name,), ScoreSettings(), loaded)
