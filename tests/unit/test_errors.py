"""The exception tree, drawn and real."""

import re

import pytest

from vqcortex import errors
from vqcortex.errors import MissingExtra, UnknownName, VqCortexError


def test_the_drawn_tree_is_the_real_one():
    drawn = set(re.findall(r"─ (\w+)", errors.__doc__ or ""))
    real = {one.__name__ for one in VqCortexError.__subclasses__()}
    assert drawn == real
    assert len(real) >= 9


def test_within_adds_the_place_and_keeps_the_reason():
    error = VqCortexError("logits are NaN").within(image="a/1", concept="Bag")
    assert str(error) == "logits are NaN\n  while working on: image=a/1, concept=Bag"


@pytest.mark.parametrize("kind", [UnknownName, MissingExtra])
def test_messages_are_printed_as_written(kind):
    assert str(kind("no 'x'")) == "no 'x'"
