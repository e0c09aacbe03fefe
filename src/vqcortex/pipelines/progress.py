"""How far a pipeline is: reported through a value passed in, drawn by whoever called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar, final, runtime_checkable

T = TypeVar("T")
Advance = Callable[[], None]


@runtime_checkable
class Progress(Protocol):
    """Told what is being done."""

    def bar(self, task: str, total: int) -> AbstractContextManager[Advance]:
        """Show a bar inside the block; call what it yields once per thing done."""
        ...

    def track(self, items: Iterable[T], task: str, total: int) -> Iterator[T]:
        """Yield the items while showing how many of `total` are done and the time left."""
        ...


@final
class Quiet:
    """Shows nothing."""

    def bar(self, task: str, total: int) -> AbstractContextManager[Advance]:
        return nullcontext(lambda: None)

    def track(self, items: Iterable[T], task: str, total: int) -> Iterator[T]:
        return iter(items)


QUIET = Quiet()
