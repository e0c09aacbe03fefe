from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from engines import Pickling

from vqcortex.errors import ConfigError, UnknownName
from vqcortex.pipelines.loaded import load_all
from vqcortex.pipelines.search import carry_statistics, load_found, search, statistics_at
from vqcortex.pipelines.settings import SearchSettings
from vqcortex.pipelines.study import Study
from vqcortex.search.statistics import count_tokens


@pytest.fixture(scope="module")
def study(toy_study, tmp_path_factory) -> Study:
    """A copy that may be searched again."""
    folder = tmp_path_factory.mktemp("searched") / "study"
    shutil.copytree(toy_study.folder, folder)
    return Study(folder)


def settings(study: Study, **changed) -> SearchSettings:
    few = {"steps": 20, "restarts": 2, "scratch": 1, "search_images": 1, "pairs": ("red>blue", "blue>red")}
    return SearchSettings(out=study.folder, **{**few, **changed})


@pytest.mark.parametrize("regulariser", ["tokens", "generator"])
def test_a_regulariser_changes_searches_by_swaps_only_and_any_engine_finds_the_same(study, regulariser):
    asked = settings(study, strategies=("greedy", "annealing", "token_selection"))
    search(asked)
    plain = load_found(study)
    heavy = replace(asked, regulariser=regulariser, regulariser_weight=30.0)
    search(heavy)
    serial = load_found(study)
    assert torch.equal(serial.tokens["token_selection"], plain.tokens["token_selection"])
    assert not torch.equal(serial.tokens["greedy"], plain.tokens["greedy"])
    assert not torch.equal(serial.tokens["annealing"], plain.tokens["annealing"])
    search(replace(heavy, seed=1))
    search(heavy, engine=Pickling())
    assert all(torch.equal(one, serial.tokens[name]) for name, one in load_found(study).tokens.items())


def test_extractors_are_searched_together_and_the_others_are_held_out(study):
    search(settings(study, strategies=("beam",), search_extractors=("conv8", "pictures"), scratch=0))
    found = load_found(study)
    assert found.extractors == ("conv8", "pictures")
    assert list(found.tokens) == ["beam"]
    assert found.scratch == {}


def test_the_searches_of_a_study_have_one_budget(study):
    search(settings(study, search_budget=1, strategies=("greedy",), restarts=1))
    found = load_found(study)
    assert torch.equal(found.tokens["greedy"][:, 0], found.start)


def test_statistics_are_those_of_the_training_images_wherever_they_are_counted(study):
    loaded = load_all(study, "cpu")
    carried = carry_statistics(study, loaded)
    train = torch.cat([one.tokens for one in loaded.store.batches(100, split="train", pictures=False)])
    whole = count_tokens(train, loaded.model.k)
    again = statistics_at(study.folder, study.fingerprint("tokens"))
    for found in (carried.value, again):
        assert torch.equal(found.counts, whole.counts)
        assert torch.equal(found.across.times, whole.across.times)
        assert torch.equal(found.down.met, whole.down.met)


def test_mistakes_are_named_before_anything_is_searched(study):
    with pytest.raises(UnknownName, match=r"no search strategy named 'gredy'.*Did you mean 'greedy'"):
        search(settings(study, strategies=("gredy",)))
    with pytest.raises(
        ConfigError, match="the study has no extractor 'conv10'; it has: conv8, pictures; train it with"
    ):
        search(settings(study, search_extractors=("conv10",)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"search_budget": -1}, "search-budget=-1 must be at least 0"),
        ({"search_candidates": 0}, "search-candidates=0 must be at least 1"),
        ({"beam_width": 0}, "beam-width=0 must be at least 1"),
        ({"regulariser_weight": -0.5}, r"regulariser-weight=-0\.5 must be at least 0 and finite"),
        ({"regulariser_weight": float("nan")}, "regulariser-weight=nan must be at least 0"),
        ({"regulariser": "taste"}, "regulariser='taste' must be one of tokens, generator"),
        ({"search_objective": "odds"}, "search-objective='odds' must be one of logit, log_probability, margin"),
        ({"strategies": ()}, "strategies is empty; name at least 1"),
    ],
)
def test_settings_that_are_wrong_are_named(study, wrong, message):
    with pytest.raises(ConfigError, match=message):
        settings(study, **wrong).check()
