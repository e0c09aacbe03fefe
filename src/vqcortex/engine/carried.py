"""Loaded things that go where work is done: pickled as the call that loads them, and loaded once per process.

A model may not pickle, or be so large that sending it with every piece of work costs more than the work.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Generic, TypeVar, final

T = TypeVar("T")
HELD = 4  # loaded things a process keeps for the next piece of work: no stage carries more


@final
class Carried(Generic[T]):
    """A value, and how to load it again elsewhere.

    Args:
        value: What was loaded here.
        load: A function of a module, so that its name says enough.
        arguments: What it loads an equal value from. They also tell values apart that were loaded from one place
            before and after it changed, so content hashes belong among them.

    Example:
        >>> import pickle
        >>> from fractions import Fraction
        >>> pickle.loads(pickle.dumps(Carried(Fraction(1, 2), Fraction, "1/2"))).value
        Fraction(1, 2)
    """

    def __init__(self, value: T, load: Callable[..., T], *arguments: Hashable) -> None:
        self.value, self.load, self.arguments = value, load, arguments

    def __reduce__(self) -> tuple[Callable[..., Carried[Any]], tuple[Hashable, ...]]:
        return arrived, (self.load, *self.arguments)


@lru_cache(maxsize=HELD)
def arrived(load: Callable[..., T], *arguments: Hashable) -> Carried[T]:
    """What was carried, loaded in this process."""
    return Carried(load(*arguments), load, *arguments)
