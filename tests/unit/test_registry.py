"""Names for things that are imported on first use."""

import pytest

from vqcortex.errors import UnknownName
from vqcortex.registry import Registry


def shapes() -> Registry[type]:
    registry: Registry[type] = Registry("shape")
    registry.add("fraction", "fractions:Fraction")
    registry.add("decimal", "decimal:Decimal")
    return registry


def test_entries_come_sorted_and_import_on_use():
    registry = shapes()
    assert list(registry) == ["decimal", "fraction"]
    assert registry["fraction"](1, 2) * 2 == 1
    assert len(registry) == 2


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        UnknownName, match=r"no shape named 'fracton'; known: decimal, fraction\. Did you mean 'fraction'\?"
    ):
        shapes()["fracton"]


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'fraction' is already"):
        shapes().add("fraction", "x:y")
