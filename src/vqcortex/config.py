"""Settings: frozen dataclasses whose fields carry their own help, checked in one go.

The same object is built from Python and from flags; the string under a field is the flag's help, so the two cannot
drift apart.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from vqcortex.errors import ConfigError


@lru_cache(maxsize=64)
def help_of(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a settings class, inherited fields included.

    Example:
        >>> from vqcortex.pipelines.settings import ScoreSettings
        >>> help_of(ScoreSettings)["draws"]
        'Noisy copies per image, at least 1; ignored by methods without noise.'
    """
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        if not isinstance(body, ast.ClassDef):
            continue
        for field, text in zip(body.body, body.body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                assert isinstance(text, ast.Expr)
                assert isinstance(text.value, ast.Constant)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def raise_all(problems: Iterable[str]) -> None:
    """Raise one ConfigError that lists every problem, or return quietly if there is none."""
    if found := list(problems):
        lines = "; ".join(found)
        raise ConfigError(f"{len(found)} setting{'s' if len(found) > 1 else ''} wrong: {lines}")


@runtime_checkable
class Checked(Protocol):
    """A dataclass of settings that say what is wrong with them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def problems(self) -> Iterator[str]:
        """One sentence each."""
        ...


def check_all(settings: Checked) -> None:
    """Return quietly, or raise one ConfigError with all problems of a dataclass and its numbers that are not finite."""
    found = list(settings.problems())
    named = {one.split("=")[0] for one in found}
    for one in fields(settings):
        name, value = one.name.replace("_", "-"), getattr(settings, one.name)
        for number in value if isinstance(value, tuple) else (value,):
            is_known = name in named or name.removesuffix("s") in named  # of shares, one is told of: share=nan
            if isinstance(number, float) and not math.isfinite(number) and not is_known:
                found.append(f"{name}={number} must be a finite number")
    raise_all(found)


def plain(settings: object) -> dict[str, Any]:
    """Return a settings object as values JSON can hold: paths become text, tuples become lists."""
    return {one.name: _plain(getattr(settings, one.name)) for one in fields(settings)}  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value
