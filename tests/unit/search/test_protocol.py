from __future__ import annotations

import math

import pytest

from vqcortex.errors import ConfigError
from vqcortex.search.embedding import EmbeddingOptimisation
from vqcortex.search.protocol import Ascending, Restarted, Search, recorded
from vqcortex.search.random_codes import RandomCodes
from vqcortex.search.selection import TokenSelection


@pytest.mark.parametrize(
    ("steps", "every", "at"),
    [(25, 10, (0, 10, 20, 25)), (20, 10, (0, 10, 20)), (3, 100, (0, 3)), (1, 1, (0, 1))],
)
def test_the_start_and_the_end_are_always_recorded(steps, every, at):
    assert recorded(steps, every) == at


def test_the_settings_of_the_strategies_fit_the_protocols():
    for one in (TokenSelection(), EmbeddingOptimisation()):
        assert isinstance(one, Ascending)
        assert isinstance(one, Search)
    assert isinstance(RandomCodes(), Restarted)
    assert not isinstance(RandomCodes(), Ascending)


@pytest.mark.parametrize("strategy", [TokenSelection, EmbeddingOptimisation])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"record_every": 0}, "record_every=0 must be at least 1"),
        ({"rate": 0.0}, "rate=0.0 must be above 0 and finite"),
        ({"rate": math.nan}, "rate=nan must be above 0"),
        ({"spread": -0.1}, "spread=-0.1 must be at least 0"),
        ({"spread": math.inf}, "spread=inf must be at least 0 and finite"),
        ({"restarts": 0, "steps": 0}, "2 settings wrong: restarts=0 must be at least 1; steps=0"),
    ],
)
def test_wrong_settings_are_named(strategy, wrong, message):
    with pytest.raises(ConfigError, match=message):
        strategy(**wrong)
