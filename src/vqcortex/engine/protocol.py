"""How work over many shards is run: here, in this process. A cluster is another file with the same one method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, final, runtime_checkable

A = TypeVar("A")
B = TypeVar("B")


@runtime_checkable
class Engine(Protocol):
    """Yields results in the order of `items`, whatever runs where."""

    def map(self, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]: ...


@final
@dataclass(frozen=True)
class Serial:
    """One item after the other in this process."""

    def map(self, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        return map(work, items)


SERIAL = Serial()
