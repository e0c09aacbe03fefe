"""How a model is named, what its files look like from outside, and what a family says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final
from urllib.parse import parse_qsl, urlencode

import torch
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.checkpoints import MODULE_PARTS, read_checkpoint, shape_of, state_dict_of
from vqcortex.errors import ConfigError, ModelError

# Options that every family understands; a family may know more.
COMMON = ("size", "dtype", "revision", "ignore")
# Endings of files that hold weights.
SUFFIXES = (".bin", ".ckpt", ".msgpack", ".pkl", ".pt", ".pth", ".safetensors")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def expanded(place: str) -> Path:
    """A path with ~ for the home folder; as it is where nobody of that name lives here."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        return Path(place)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A model's name, taken apart: FAMILY:PLACE#SUBFOLDER?OPTION=VALUE&OPTION=VALUE.

    Args:
        text: The whole name.
        family: What stands before the colon; empty if nothing does.
        place: A path, a hub id, or a name the family knows.
        subfolder: Folder inside the place; empty for the place itself.
        options: What stands after the question mark.
        recognised: One sentence saying by what the family was known; empty if the name says it.
    Example:
        >>> Spec.read("diffusers:amused/amused-256#vqvae?size=256").subfolder
        'vqvae'
    """

    text: str
    family: str
    place: str
    subfolder: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    recognised: str = ""

    @classmethod
    def read(cls, text: str) -> Spec:
        """Take a name apart.

        Raises:
            ConfigError: What stands after the question mark is not OPTION=VALUE.
        """
        rest, question, query = text.partition("?")
        rest, _, subfolder = rest.partition("#")
        family, colon, place = rest.partition(":")
        # One letter before a colon is a drive of Windows.
        if not colon or len(family) == 1:
            family, place = ("", rest)
        wanted = f"{query!r} in model {text!r} is not OPTION=VALUE&OPTION=VALUE; write ?size=256, say"
        try:
            pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if question else []
        except ValueError as error:
            raise ConfigError(wanted) from error
        if question and len(dict(pairs)) < max(1, len(pairs)):
            raise ConfigError(f"{wanted}, each option once")
        return cls(text=text, family=family, place=place, subfolder=subfolder, options=dict(pairs))

    def settled(self, family: str, recognised: str = "") -> Spec:
        """The same name with its family, and an existing path made absolute: it opens from any folder."""
        path = expanded(self.place)
        place = str(path.absolute()) if self.place and path.exists() else self.place
        text = f"{family}:{place}" if place else family
        text += f"#{self.subfolder}" if self.subfolder else ""
        text += f"?{urlencode(self.options, safe='/,:')}" if self.options else ""
        return replace(self, text=text, family=family, place=place, recognised=recognised)

    def check(self, *known: str) -> None:
        """Return quietly if the family knows every option.

        Raises:
            ConfigError: It does not know one.
        """
        known = (*COMMON, *known)
        for name in self.options:
            if name not in known:
                raise ConfigError(f"model {self.text!r} has no option {name!r}; known: {', '.join(sorted(known))}")

    def size(self, default: tuple[int, int]) -> tuple[int, int]:
        """Height and width asked for: ?size=256 or ?size=256x384.

        Raises:
            ConfigError: The value is neither.
        """
        text = self.options.get("size")
        if text is None:
            return default
        sides = text.split("x")
        if len(sides) > 2 or not all(side.isdigit() and int(side) for side in sides):
            raise ConfigError(f"size={text!r} of model {self.text!r} is not pixels; write ?size=256 or ?size=256x384")
        return int(sides[0]), int(sides[-1])

    def dtype(self) -> torch.dtype:
        """Number type the weights are brought to: ?dtype=float32 (the default), bfloat16, float16.

        Raises:
            ConfigError: No such type.
        """
        text = self.options.get("dtype", "float32")
        if text not in DTYPES:
            raise ConfigError(f"dtype={text!r} of model {self.text!r} is unknown; known: {', '.join(DTYPES)}")
        return DTYPES[text]

    @property
    def ignore(self) -> tuple[str, ...]:
        """Names of pickled objects to read as inert records: ?ignore=__main__.Config,other.Thing."""
        return tuple(name for name in self.options.get("ignore", "").split(",") if name)


@final
class Files:
    """A file or folder that may be a model, looked at as far as needed and no further.

    Args:
        path: What the user named.
        ignore: As in `read_checkpoint`.
    Raises:
        ModelError: There is nothing at the path.
    """

    def __init__(self, path: Path, ignore: tuple[str, ...] = ()) -> None:
        if not path.exists():
            raise ModelError(f"{str(path)!r} does not exist; name a checkpoint file or a model's folder")
        self.path, self.ignore = path, ignore

    def find(self, *patterns: str) -> Path | None:
        """The last file (by name) of the first pattern that matches inside the folder; None if none does."""
        if self.path.is_dir():
            for pattern in patterns:
                if found := sorted(one for one in self.path.glob(pattern) if one.is_file()):
                    return found[-1]
        return None

    def only_checkpoint(self) -> Path | None:
        """The one checkpoint file that lies in the folder; None for a file, or if there are none or several."""
        found = [one for one in self.path.iterdir() if one.suffix in SUFFIXES] if self.path.is_dir() else []
        return found[0] if len(found) == 1 and found[0].is_file() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The folder's config.json; empty if it has none."""
        import json

        path = self.path / "config.json"
        if not path.is_file():
            return {}
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{str(path)!r} is not JSON ({error}); restore it from where the model came from"
            ) from error
        return value if isinstance(value, dict) else {}

    @cached_property
    def checkpoint(self) -> Any:
        """What the file holds, memory-mapped, a module saved whole as a record; None for a folder."""
        return read_checkpoint(self.path, ignore=(*MODULE_PARTS, *self.ignore)) if self.path.is_file() else None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The state dict of the file; empty for a folder, or where there is none."""
        if self.checkpoint is None:
            return {}
        try:
            return state_dict_of(self.checkpoint, self.path)
        except ModelError:
            return {}

    def has(self, *keys: str) -> bool:
        """Whether the state dict holds all these keys."""
        return all(key in self.tensors for key in keys)


def file_in(path: Path, *patterns: str) -> Path:
    """The checkpoint that a path means: itself if it is a file, else what `Files.find` finds in the folder.

    Raises:
        ModelError: There is nothing at the path, or nothing of these patterns in the folder.
    """
    found = path if path.is_file() else Files(path).find(*patterns)
    if found is None:
        raise ModelError(f"the folder {str(path)!r} holds no {' or '.join(patterns)}; name the checkpoint file itself")
    return found


def table_shape(
    tensors: Mapping[str, Tensor], key: str, path: Path, *, d: int | None = None, is_transposed: bool = False
) -> tuple[int, int]:
    """Codes and numbers per code, (k, d), of a codebook in a state dict.

    Args:
        tensors: The state dict.
        key: The codebook's.
        path: Where it came from, for messages.
        d: Channels of the latent that is compared with it; None where nothing says.
        is_transposed: Whether it is stored as (d, k).
    Raises:
        ModelError: There is no such key, or it is no such table.
    """
    shape = shape_of(tensors, key, path)
    wanted = "(d, k), channels by codes" if is_transposed else "(k, d), codes by channels"
    if len(shape) != 2 or 0 in shape:
        raise ModelError(
            f"{str(path)!r}: {key!r} has shape {shape} but a codebook is {wanted}; "
            "the file is of another family, or was altered"
        )
    k, found = reversed(shape) if is_transposed else shape
    if d is not None and found != d:
        raise ModelError(
            f"{str(path)!r}: {key!r} has codes of {found} numbers but the latent has {d} channels; "
            "the file mixes two models: restore it"
        )
    return k, found


def never(_: Any) -> str | None:
    """Recognise nothing."""
    return None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family's file registers.

    Args:
        name: As in FAMILIES and before the colon of a model's name.
        title: What people call it, with its project.
        formats: What can stand after the colon, in words.
        abilities: What its models can do at best.
        open: From a name to a model on the CPU.
        recognise: From files to one sentence saying by what they are known as this family; None if they are not.
        wrap: From a live object of the official library to a model; None if it is not one of this family's.
        levels: "one", "two", "many": how many grids an image has.
    """

    name: str
    title: str
    formats: str
    abilities: tuple[str, ...]
    open: Callable[[Spec], Adapter]
    recognise: Callable[[Files], str | None] = never
    wrap: Callable[[Any], Adapter | None] = never  # type: ignore[assignment]
    levels: str = "one"
