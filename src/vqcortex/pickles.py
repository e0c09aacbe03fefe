"""What a pickle would import, found without running it, and what may stand there instead.

torch's safe reader (`torch.load(weights_only=True)`) refuses a whole checkpoint for one name that it does not know,
though most such names belong to bystanders of training that nobody needs. Here a pickle is followed on paper; every
unknown name is either refused in clear words or gets a class that can do nothing. torch's reader stays the judge: it is
told of these classes, and refuses whatever else there is.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import GLOBAL, PROTO, REDUCE, STOP
from typing import Any, ClassVar, NamedTuple, TypeAlias, final

import torch

from vqcortex.errors import ModelError

Stream: TypeAlias = io.BufferedReader | io.BytesIO
"""Bytes from a file or from memory."""

StandIn: TypeAlias = Callable[..., Any] | tuple[Callable[..., Any], str]
"""What is built, and the full name it is built for: an entry of `torch.serialization.safe_globals`."""

NEVER = ("sys", "os", "posix", "nt")
"""Modules of which torch's safe reader takes no name, not even for a record."""

SHOWN = 3  # names in an error message
FILLED_AS = {"SETITEM": "keys", "SETITEMS": "keys", "APPEND": "items", "APPENDS": "items"}
CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ")
KEEPS_ITS_TARGET = (*FILLED_AS, "BUILD", "ADDITEMS")


class Record:
    """Stands for an object of a class that is not imported: it keeps the object's state and can do nothing.

    Every name gets a subclass of its own, so that the class itself can be a dict's key, as in Lightning 1.
    """

    full_name: ClassVar[str] = ""
    state: Any = None

    def __new__(cls, *arguments: object, **named: object) -> Record:
        """A record without state, whatever is passed."""
        return object.__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        """Forget whatever is passed."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<record of {self.full_name}>"


class _AsDict:
    """Makes plain dicts: torch's reader sets keys in nothing else."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        return OrderedDict[Any, Any]()


class _AsList:
    """Makes plain lists: torch's reader appends to nothing else."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        return list[Any]()


def _class_of(kind: str, found: type, file: object, source: object) -> type:
    """The class in a note that the older format of torch leaves on a module's source."""
    return found


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What reading a pickle would import, and what it would do with it.

    Args:
        names: As (module, name), with "keys" or "items" for what is then filled like a dict or like a list, else "".
        notes: First and last byte of every note on a module's source, which only torch's older format has.
    """

    names: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[tuple[int, int]] = field(default_factory=list)


def outline_of(stream: Stream) -> Outline:
    """Follow one pickle to its end without building anything; the stream stands behind it afterwards.

    What this misses is not let through: torch's reader knows only what it is told.

    Raises:
        Exception: Of many kinds, where the bytes are no whole pickle.
    """
    outline, stack, memo = Outline(), list[Any](), dict[Any, Any]()
    for op, argument, at in pickletools.genops(stream):
        taken, opened = _take(stack, op.stack_before)
        if op.name == "MARK":
            stack.append(_Mark(at or 0))
        elif op.name in ("GLOBAL", "INST"):
            one = _note_name(outline, *str(argument).split(" ", 1))
            stack.append(one if op.name == "GLOBAL" else _Made(one))
        elif op.name == "STACK_GLOBAL":
            stack.append(_note_name(outline, *map(str, taken)))
        elif op.name in CALLS:
            stack.append(_Made(taken[0]) if isinstance(taken[0], _Name) else None)
        elif op.name in KEEPS_ITS_TARGET:
            if op.name in FILLED_AS and isinstance(taken[0], _Made):
                outline.names[taken[0].of] = FILLED_AS[op.name]
            stack.append(taken[0])
        elif op.name.startswith("TUPLE"):
            stack.append(_Tuple(tuple(taken), opened))
        elif op.name == "BINPERSID":
            stack.append(_persistent(outline, taken[0], at or 0))
        elif op.name == "MEMOIZE":
            memo[len(memo)] = taken[0]
            stack.append(taken[0])
        elif "PUT" in op.name:
            memo[argument] = stack[-1]
        elif "GET" in op.name:
            stack.append(memo[argument])
        elif op.name == "DUP":
            stack.extend(taken * 2)
        elif op.stack_after:
            stack.append(argument if isinstance(argument, str) else None)
    return outline


class _Name(NamedTuple):
    """What stands on the paper stack for something imported."""

    module: str
    name: str


class _Made(NamedTuple):
    """... for what came of calling it."""

    of: _Name


class _Tuple(NamedTuple):
    """... for a tuple, with the byte of its opening mark."""

    items: tuple[Any, ...]
    at: int


class _Mark(NamedTuple):
    """... for a mark that a later instruction reaches back to."""

    at: int


def _take(stack: list[Any], wanted: Sequence[Any]) -> tuple[list[Any], int]:
    """What an instruction takes from the stack, in order, and the byte of the mark that it reaches back to."""
    opened, taken = 0, list[Any]()
    if pickletools.markobject in wanted:
        while not isinstance(top := stack.pop(), _Mark):
            taken.append(top)
        opened = top.at
        wanted = wanted[: wanted.index(pickletools.markobject)]
    taken.extend(stack.pop() for _ in wanted)
    return taken[::-1], opened


def _note_name(outline: Outline, module: str, name: str) -> _Name:
    outline.names.setdefault((module, name), "")
    return _Name(module, name)


def _persistent(outline: Outline, given: Any, at: int) -> Any:
    """A storage; or, in the older format, a module's class with its source: ("module", class, file, source)."""
    if not isinstance(given, _Tuple) or given.items[:1] != ("module",) or len(given.items) != 4:
        return None
    outline.notes.append((given.at, at))
    return given.items[1]


def without_notes(content: bytes, notes: Sequence[tuple[int, int]]) -> bytes:
    """Put the bare class where torch's older format has a note on its source, which the safe reader does not know.

    Each note becomes a call of `_class_of`: the name goes in front of it, and the call stands at its end.
    """
    edits = [(first, GLOBAL + f"{__name__}\n{_class_of.__name__}\n".encode(), 0) for first, _ in notes]
    edits += [(last, REDUCE, 1) for _, last in notes]
    parts, done = list[bytes](), 0
    for at, new, replaced in sorted(edits):
        parts += [content[done:at], new]
        done = at + replaced
    return b"".join((*parts, content[done:]))


def stand_ins(names: Mapping[tuple[str, str], str], *, inert: Sequence[str], path: Path) -> list[StandIn]:
    """For every name that torch's safe reader does not know, what it shall take instead, as `safe_globals` wants it.

    Args:
        names: As in `Outline`.
        inert: Packages ("omegaconf") and full names ("builtins.dict") that may stand in the file.
        path: Of the file, for messages.
    Raises:
        ModelError: There are others.
    """
    unknown = {full: use for (module, name), use in names.items() for full in _unknown(module, name)}
    never = [full for full in unknown if full.split(".")[0] in NEVER]
    if never:
        raise ModelError(
            f"checkpoint {str(path)!r} would import {some(never)}, which reaches into the system and is never read; "
            "do not use this file, or ask its maker for safetensors"
        )
    refused = [full for full in unknown if not any(_is_under(full, one) for one in inert)]
    if refused:
        raise ModelError(
            f"checkpoint {str(path)!r} would import {some(refused)}, which could run code and was refused; pass "
            f"?ignore={refused[0]} in the model's name to read it as an inert record, or convert the file to "
            "safetensors"
        )
    return [*((_stand_in(full, use), full) for full, use in unknown.items()), (_class_of, _full_name(_class_of))]


def _unknown(module: str, name: str) -> list[str]:
    """The full name if torch's safe reader does not know it: asked with a checkpoint that holds nothing else."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("name/data.pkl", PROTO + b"\x02" + GLOBAL + f"{module}\n{name}\n".encode() + STOP)
        archive.writestr("name/version", "3\n")
    content.seek(0)
    return list(torch.serialization.get_unsafe_globals_in_checkpoint(content))


def _is_under(full: str, package: str) -> bool:
    return full == package or full.startswith(f"{package}.")


def _stand_in(full: str, filled_as: str) -> type:
    if filled_as:
        return _AsDict if filled_as == "keys" else _AsList
    return type("Record", (Record,), {"full_name": full})


def _full_name(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def some(names: Sequence[str]) -> str:
    """The first few names for a message, and how many there are beyond."""
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
