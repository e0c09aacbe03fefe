"""Names for things that can be chosen by name.

An entry is a path, "package.module:Object", so that nothing is imported until it is used. Nothing registers
itself by being imported: each floor's `__init__` lists its entries, one line each.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Generic, TypeVar, cast

from vqcortex.errors import UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """A sorted table of names, each standing for an object that is imported on first use.

    Args:
        kind: What an entry is, in words, for error messages: "attribution method".

    Example:
        >>> shapes: Registry[type] = Registry("shape")
        >>> shapes.add("fraction", "fractions:Fraction")
        >>> shapes["fraction"](1, 2)
        Fraction(1, 2)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, str] = {}

    def add(self, name: str, path: str) -> None:
        """Register `path` ("module:Object") under `name`; a name taken twice is an error."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is already {self._entries[name]!r}; choose another name")
        self._entries[name] = path

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownName(f"no {self.kind} named {name!r}; known: {', '.join(self)}.{hint}")
        module, _, attribute = self._entries[name].partition(":")
        return cast(T, getattr(import_module(module), attribute))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
