"""What decides a world."""

import pytest

from vqcortex.errors import ConfigError
from vqcortex.worlds.protocol import Parameters


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"codes": 1}, "codes=1 must be at least 2"),
        ({"plant_rate": 0}, "plant-rate=0 must be above 0"),
        ({"plant_rate": 0.6}, r"plant-rate=0\.6 must be above 0 and at most 0\.5"),
        ({"label_noise": 0.5}, r"label-noise=0\.5 must lie in \[0, 0\.5\)"),
        ({"label_noise": -0.1}, r"label-noise=-0\.1 must lie"),
        ({"label_noise": float("nan")}, "label-noise=nan must lie"),
        ({"correlation": 0.4}, r"correlation=0\.4 must lie in \[0\.5, 1\]"),
        ({"correlation": 1.1}, r"correlation=1\.1 must lie"),
        ({"patch": 0}, "patch=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"codes": 0, "patch": 0}, "2 settings wrong"),
    ],
)
def test_parameters_out_of_range_are_errors(given, said):
    with pytest.raises(ConfigError, match=said):
        Parameters(**given)


def test_a_planted_code_takes_one_position_at_least():
    assert Parameters(plant_rate=0.2).most((7, 7)) == 10
    assert Parameters(plant_rate=0.01).most((2, 3)) == 1
