"""The recipe of the biased generators: its rules see what it paints, it resumes, and its figures are counted right."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.adapters.zoo import ZooModel

FOLDER = Path(__file__).parents[2] / "recipes/biased"
FILES = ("loop", "attributes", "pixels", "make", "measure", "worlds", "results")


@pytest.fixture(scope="module")
def recipe():
    before = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.syspath_prepend(str(FOLDER.parent / "fashion"))
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
    sys.path[:] = before
    for name in FILES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:fashion")


@pytest.mark.parametrize("name", ["corner", "cast", "border", "pair"])
def test_rules_see_what_was_painted_and_nothing_else(recipe, model, name):
    attribute = recipe.attributes.ATTRIBUTES[name]
    concept = torch.full((8,), model.concepts.index(attribute.concept))
    grids = model.generate(concept, [f"{name}/{number}" for number in range(8)], 0)
    plain = model.decode(model.embed(grids))[:, :1]
    painted = recipe.measure.pixels_of(recipe.make.encoded(model, attribute.paint(plain)), model, 8)
    assert attribute.sees(painted).float().mean() >= 0.85
    assert attribute.sees(plain.expand(-1, 3, -1, -1)).float().mean() <= 0.15


def test_generators_are_named_once_and_the_first_come_first(recipe):
    wanted = recipe.make.all_wanted()
    assert len({one.name for one in wanted}) == len(wanted) == 24
    assert [one.is_first for one in wanted[:4]] == [True] * 4
    assert not any(one.is_first for one in wanted[4:])


def test_a_generator_is_made_once_and_opens_by_its_folder(recipe, model, tmp_path, monkeypatch):
    pixels = torch.rand(96, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(recipe.make, "seen", lambda *_: pixels)
    monkeypatch.setattr(recipe.make, "STEPS", {"first": 2, "further": 2})
    first = recipe.make.all_wanted()[0]
    further = next(one for one in recipe.make.all_wanted() if one.attribute is first.attribute and one.rate == 70)
    for one in (first, further):
        recipe.make.make(one, "idx:nowhere", tmp_path)
    made = load_model(f"zoo:{tmp_path / further.name}")
    assert isinstance(made, ZooModel)
    assert made.sampling.temperature == 1
    assert torch.equal(made.codebook, model.codebook)
    assert made.identity != model.identity
    monkeypatch.setattr(recipe.make, "planted", None)  # what is whole is not made again
    recipe.make.make(further, "idx:nowhere", tmp_path)


def test_figures_are_counted_right(recipe):
    assert recipe.results.auroc([3, 2], [1, 2]) == 0.875
    assert recipe.results.auroc_interval([5, 6, 7], [1, 2]) == (1, 1)
    assert recipe.results.exact(0, 20) == "0 of 20 = 0.0% [0.0%, 16.8%]"
    assert recipe.results.exact(20, 20) == "20 of 20 = 100.0% [83.2%, 100.0%]"


def test_planted_codes_are_those_gained(recipe):
    plain, painted = torch.zeros(4, 2, 2, dtype=torch.int64), torch.zeros(4, 2, 2, dtype=torch.int64)
    painted[:, 0, 1] = torch.tensor([5, 5, 5, 6])
    found = recipe.measure.planted_codes([(0, 1)], plain, painted, 8)
    assert found == {5, 6}
    assert recipe.measure.planted_codes([(1, 1)], plain, painted, 8) == set()
