from __future__ import annotations

import subprocess
import sys

import pytest

from vqcortex.errors import ConfigError, UnknownName
from vqcortex.search import SEARCHES, make_search


def test_the_strategies_are_listed():
    assert list(SEARCHES) == [
        "annealing",
        "beam",
        "embedding_optimisation",
        "greedy",
        "random_codes",
        "token_selection",
    ]


def test_one_set_of_settings_serves_every_arm():
    made = [make_search(name, restarts=3, steps=7, temperature=0.5) for name in SEARCHES]
    assert [one.restarts for one in made] == [3] * 6
    assert [getattr(one, "steps", None) for one in made] == [None, None, 7, None, None, 7]
    assert [getattr(one, "temperature", None) for one in made] == [None] * 5 + [0.5]


def test_a_setting_that_no_strategy_has_is_named():
    with pytest.raises(ConfigError, match="no search strategy has a setting 'stesp'; known: alive, batch"):
        make_search("random_codes", stesp=3)


def test_an_unknown_strategy_is_named():
    with pytest.raises(UnknownName, match="Did you mean 'token_selection'"):
        make_search("token_selektion", steps=3)


def test_listing_strategies_loads_no_torch():
    code = "import sys; from vqcortex.search import SEARCHES; print(len(SEARCHES), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "False"]
