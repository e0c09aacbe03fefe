"""Flags read off a settings class: name, type, default and help stand there once."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from vqcortex.config import help_of

# Shown first; the rest follow in the order the classes declare them.
FIRST = ("out", "model", "images", "images_split", "published", "prompts")


def command_for(settings: type, act: Callable[[Any], None]) -> Callable[..., None]:
    """Return a function with one keyword per field of `settings`, as Typer wants it.

    Args:
        settings: A frozen dataclass with a docstring under each field.
        act: Called with the settings object.
    """
    hints, texts = get_type_hints(settings), help_of(settings)
    ordered = sorted(fields(settings), key=lambda one: FIRST.index(one.name) if one.name in FIRST else len(FIRST))
    parameters = []
    for one in ordered:
        kind, default = hints[one.name], one.default
        assert default is not MISSING, f"{settings.__name__}.{one.name} needs a default: a flag always has one"
        is_many = get_origin(kind) is tuple
        if is_many:
            kind, default = list[get_args(kind)[0]], list(default)  # type: ignore[misc]
        option = typer.Option(f"--{one.name.replace('_', '-')}", help=texts[one.name])
        annotation: Any = Annotated[_optional(kind), option]
        parameters.append(
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def command(**given: Any) -> None:
        act(settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}))

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = inspect.getdoc(settings)
    return command


def _optional(kind: Any) -> Any:
    """Typer before 0.15 knows Optional[X] but not X | None."""
    if isinstance(kind, types.UnionType):
        inner = [one for one in get_args(kind) if one is not type(None)]
        return typing.Optional[inner[0]]  # noqa: UP045
    return kind
