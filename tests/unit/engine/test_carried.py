"""What is carried is loaded again where it arrives, once."""

import pickle

import pytest

from vqcortex.engine.carried import HELD, Carried, arrived

LOADED = []


def load(name, version):
    LOADED.append((name, version))
    return [name]


@pytest.fixture(autouse=True)
def nothing_loaded():
    LOADED.clear()
    arrived.cache_clear()
    yield
    arrived.cache_clear()


def sent(carried):
    return pickle.loads(pickle.dumps(carried))


def test_only_the_call_travels_and_is_made_once():
    carried = Carried(lambda: "a value that does not pickle", load, "a", 1)
    assert sent(carried).value == ["a"]
    assert sent(carried).value is sent(carried).value
    assert LOADED == [("a", 1)]


def test_what_is_carried_on_travels_as_before():
    assert sent(sent(Carried(["a"], load, "a", 1))).value == ["a"]
    assert LOADED == [("a", 1)]


def test_another_state_of_the_same_place_is_loaded_anew():
    for version in (1, 2, 1):
        sent(Carried(["a"], load, "a", version))
    assert LOADED == [("a", 1), ("a", 2)]


def test_a_process_keeps_a_few_and_no_more():
    for name in range(HELD + 1):
        sent(Carried([name], load, name, 1))
    assert arrived.cache_info().currsize == HELD
