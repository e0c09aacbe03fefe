"""Opening models by name."""

import pytest

from vqcortex.adapters import FAMILIES, generator_of, load_model
from vqcortex.adapters.protocol import Adapter, Generator
from vqcortex.errors import ConfigError, UnknownName


def test_the_toy_opens_and_generates():
    model = load_model("toy:2x2")
    assert isinstance(model, Adapter)
    assert isinstance(model, Generator)
    assert model.grid == (2, 2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("zoo:fashon", "Did you mean 'zoo:fashion'"),
        ("fashion", "Did you mean 'zoo:fashion'"),
        ("tou", "Did you mean 'toy'"),
    ],
)
def test_an_unknown_model_says_what_was_meant(name, hint):
    with pytest.raises(UnknownName, match=hint):
        load_model(name)


def test_a_model_that_cannot_generate_says_what_to_do():
    class Mute:
        name = "mute"

    with pytest.raises(ConfigError, match="'mute' cannot generate images; encode real ones"):
        generator_of(Mute())  # type: ignore[arg-type]


def test_families_are_listed():
    assert {"toy", "zoo"} <= set(FAMILIES)
