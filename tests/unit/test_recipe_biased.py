"""The recipe of the biased generators: its rules see what it paints, it resumes, and its figures are counted right."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vqcortex.adapters import load_model
from vqcortex.adapters.zoo import ZooModel

FOLDER = Path(__file__).parents[2] / "recipes/biased"
FILES = ("loop", "attributes", "pixels", "make", "measure", "worlds", "results", "cifar10", "levels")


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


def test_rules_of_colour_pictures_measure_what_they_are_called(recipe):
    plain = torch.full((3, 3, 4, 4), 0.5)
    bright, warm, strong = plain.clone(), plain.clone(), plain.clone()
    bright[1] += 0.2
    warm[1, 0] += 0.2
    warm[1, 2] -= 0.2
    strong[1, :, :2] += 0.3
    strong[1, :, 2:] -= 0.3
    for name, pictures in (("brightness", bright), ("warmth", warm), ("contrast", strong)):
        values = recipe.cifar10.RULES[name].measure(pictures)
        assert values.shape == (3,)
        assert values.argmax() == 1
    assert len({one for rule in recipe.cifar10.RULES.values() for one in (rule.high, rule.low)}) == 6


def test_real_pictures_are_of_their_class(recipe, tmp_path):
    for name, shade in (("a", 0), ("b", 255)):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (32, 32), (shade,) * 3).save(folder / f"{number}.png")
    found = recipe.cifar10.real_pictures(f"imagefolder:{tmp_path / 'train'}", 1)
    assert found.shape == (3, 3, 32, 32)
    assert (found == 1).all()


def test_the_section_counts_alarms_and_repairs(recipe, tmp_path):
    def rows(after):
        return [{"when": when, "recognised": share} for when, share in (("before", 0.9), ("after", after))]

    same = {"high": "bright", "errs": 0.1, "coarse": [0.6, 0.4, 0.7]}
    unlike, alike = ({"misfit": [times, p], "wide": [0.5, 0.8]} for times, p in ((9.0, 0.001), (1.1, 0.3)))
    even = {"true": 0.5, "said": 0.51, "rate": 0.51, "low": 0.45, "high_end": 0.55, "word": "even", **same, **alike}
    biased = {"true": 0.7, "said": 0.68, "rate": 0.66, "low": 0.6, "high_end": 0.69, "word": "biased", **same, **unlike}
    for number, rule in enumerate(recipe.cifar10.RULES):
        repair = {} if number else {"repair": {"true": 0.52, "rows": rows(0.89)}}
        for name, one in (("ship", biased | repair), ("frog", even)):
            (tmp_path / f"{name}-{rule}.json").write_text(json.dumps(one))
    text = recipe.cifar10.section(tmp_path, ("ship", "frog"))
    assert "The 6 estimates are 2.5 points off the truth on average and 4.0 at most, 6 at most 5;" in text
    assert "they are 10.0 points off the truth on average and 10.0 at most, 0 at most 5, and 6 intervals hold" in text
    assert "errors and all, is 1.5 points off the truth on average and 2.0 at most, 6 at most 5." in text
    assert "3 of 6 = 50.0%" in text
    assert "In 3 of 6 audits the answers are no mixture of those to known images (p at most 0.01)" in text
    assert "the interval holds the truth in 0 of them, the wider one of the note in 3." in text
    assert "Of 3 rates that are truly more than 5 points from even, 3 are called biased; of the 3 others, 0." in text
    assert "within 5 points of even in 1 of 1, 1 of them at 3 points" in text
    assert "| ship | bright | 70.0 | 68.0 | 66.0 [60.0, 69.0] | 10.0 | biased | 52.0 | +1.0 |" in text


def test_simulated_audits_of_an_extractor_that_hardly_errs_find_the_rate(recipe):
    for both in recipe.levels.simulated(0.9, 60, 300, 6.0, runs=5):
        for one in both:
            assert one.rate[0].item() == pytest.approx(0.9, abs=0.06)
            assert one.low[0] < one.rate[0] < one.high[0]
