"""Opening models by name."""

import types

import pytest

from vqcortex.adapters import FAMILIES, generator_of, load_model
from vqcortex.adapters.protocol import Adapter, Generator
from vqcortex.adapters.toy import ToyAdapter
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
    mute = types.SimpleNamespace(
        **{name: getattr(ToyAdapter(name="mute"), name) for name in dir(Adapter) if not name.startswith("_")}
    )
    for name in ("name", "identity", "grid", "size", "concepts"):
        setattr(mute, name, getattr(ToyAdapter(name="mute"), name))
    assert isinstance(mute, Adapter)
    with pytest.raises(ConfigError, match="'mute' cannot generate images; encode real ones"):
        generator_of(mute)


def test_families_are_listed():
    assert {"toy", "zoo"} <= set(FAMILIES)
