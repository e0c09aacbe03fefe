"""How work over many pieces is run: here, in this process. A cluster is another file with the same one method.

A stage cuts its work into items, maps a function over them, and puts the results together in its own process, in
order. So that an engine may run the pieces anywhere:

- The function is one of a module, or a `functools.partial` of one: a pure function of the item and of what was bound.
- Function, items and results survive pickling. Models and stores travel as `Carried`: by the place they are loaded
  from, which every process must see (a study's folder, an installed package).
- A result depends on its item alone, not on which came before or beside it, so every engine gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, final, runtime_checkable

A = TypeVar("A")
B = TypeVar("B")


@runtime_checkable
class Engine(Protocol):
    """Yields results in the order of `items`, whatever runs where."""

    def map(self, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Results of `work`, one per item, in order.

        Args:
            work: See the top of this file.
            items: May hold pictures and be long: take a few ahead of the results asked for, never all.

        Raises:
            VqCortexError: Whatever `work` raises, at the place of its result.
        """
        ...


@final
@dataclass(frozen=True)
class Serial:
    """One item after the other in this process."""

    def map(self, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        return map(work, items)


SERIAL = Serial()
