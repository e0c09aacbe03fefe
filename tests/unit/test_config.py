"""Settings carry their own help and list all their problems."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from vqcortex.config import help_of, plain, raise_all
from vqcortex.errors import ConfigError
from vqcortex.pipelines import settings as all_settings
from vqcortex.pipelines.settings import RunSettings, StudySettings, TrainSettings

CLASSES = [one for one in vars(all_settings).values() if isinstance(one, type) and issubclass(one, StudySettings)]

# What there is no default for.
ASKED = {"AuditSettings": {"groups": ("a=here", "b=there"), "neutral": "concept:c"}}


@dataclass(frozen=True)
class Small:
    """Two fields."""

    keep: int = 5
    """Positions kept,
    per image."""
    where: Path = Path("a")
    """A folder."""


def test_help_is_the_string_under_the_field():
    assert help_of(Small) == {"keep": "Positions kept, per image.", "where": "A folder."}


@pytest.mark.parametrize("one", CLASSES, ids=lambda one: one.__name__)
def test_every_setting_has_help_and_sound_defaults(one):
    assert {field.name for field in fields(one)} == set(help_of(one))
    one(**ASKED.get(one.__name__, {})).check()


FLOATS = [
    (one, field.name, field.default)
    for one in (*CLASSES, all_settings.WorldsSettings)
    for field in fields(one)
    if isinstance(field.default, float)
    or (isinstance(field.default, tuple) and any(isinstance(number, float) for number in field.default))
]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("one", "name", "default"), FLOATS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_a_number_that_is_not_finite_is_refused(one, name, default, wrong):
    given = {name: (wrong,) if isinstance(default, tuple) else wrong}
    with pytest.raises(ConfigError, match=f"settings? wrong: .*{wrong}"):
        one(**ASKED.get(one.__name__, {}), **given).check()


def test_a_reference_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match="reference=nan must be a finite number"):
        all_settings.AuditSettings(**ASKED["AuditSettings"], reference=(0.5, math.nan)).check()


def test_there_are_settings_to_check():
    assert len(CLASSES) >= 9


def test_all_problems_come_in_one_message():
    with pytest.raises(ConfigError, match=r"2 settings wrong: epochs=0 must be at least 1; rate=-1.0 must be above 0"):
        TrainSettings(epochs=0, rate=-1.0).check()


def test_run_collects_the_problems_of_every_stage():
    with pytest.raises(ConfigError, match=r"4 settings wrong: .*draws=0.*keep=4.*batch=0|4 settings wrong"):
        RunSettings(batch=0, draws=0, keep=4, per_concept=1).check()


def test_no_problem_is_quiet():
    raise_all([])


def test_plain_values_survive_json():
    assert plain(Small(where=Path("x/y"))) == {"keep": 5, "where": "x/y"}
