"""The page that says what a token store holds: which model made the tokens, how, and in which shards.

A manifest is read from disk and may be foreign, old or hostile, so every field is checked before use, and a
shard's name is checked against the one name it may have: nothing in a manifest can point outside its folder.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

from vqcortex.errors import ConfigError, StoreError
from vqcortex.files import write_json

FORMAT = 1
FILE = "manifest.json"
RECORDED = ("numpy", "pyarrow", "torch", "vqcortex")


def shard_name(number: int) -> str:
    """File name of shard `number`, counted from 0."""
    return f"tokens-{number:05d}.parquet"


def versions_here() -> dict[str, str]:
    """Versions of Python and of the packages that decide a store's bytes."""
    return {"python": platform.python_version()} | {name: _version(name) for name in RECORDED}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One Parquet file of a store.

    Args:
        name: File name inside the store's folder.
        rows: Images in it.
        sha256: Of the file, in hex.
    """

    name: str
    rows: int
    sha256: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a store holds.

    Args:
        model: Name of the model whose tokens these are: "zoo:fashion".
        identity: The model's content hash; a store is only read with the model that wrote it.
        k: Codes in the codebook.
        d: Channels of a code.
        grid: Rows and columns of every token grid, (h, w).
        concepts: Names, in the order that the `concept` column counts from 0.
        seed: What the store's random draws depended on.
        origin: How it was made, as plain JSON values: {"how": "generate", "n": 500}.
        pictures: Every shard has an `image` column.
        versions: Of Python and of the packages used.
        shards: In order; `create_store` and `TokenStore.append` fill this in.
        format: Version of this layout.
    """

    model: str
    identity: str
    k: int
    d: int
    grid: tuple[int, int]
    concepts: tuple[str, ...]
    seed: int
    origin: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = False
    versions: Mapping[str, str] = field(default_factory=versions_here)
    shards: tuple[Shard, ...] = ()
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Images in all shards."""
        return sum(shard.rows for shard in self.shards)

    def checked(self) -> Manifest:
        """Return an equal manifest made of plain JSON values.

        Raises:
            ConfigError: Some field is out of range; all of them are listed.
        """
        try:
            plain = json.loads(json.dumps(asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"a manifest holds plain JSON values only: {error}; convert paths and arrays to text"
            ) from error
        if found := list(_problems(plain)):
            raise ConfigError(f"{len(found)} manifest field(s) wrong:\n" + "\n".join(f"  - {one}" for one in found))
        return _from_plain(plain)

    def difference(self, other: Manifest) -> str | None:
        """First field in which two headers (all but the shards) differ, in words; None: they are equal."""
        mine, theirs = (asdict(replace(one, shards=())) for one in (self, other))
        return next(_differences(mine, theirs), None)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put `manifest` into `folder`, at once or not at all."""
    write_json(folder / FILE, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a store.

    Raises:
        StoreError: There is none, it is not JSON, or some field is wrong.
    """
    plain = _json_of(folder / FILE)
    if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
        raise StoreError(
            f"the store at {str(folder)!r} has format {_short(plain['format'])}; "
            f"this vqcortex reads format {FORMAT}; use the version that wrote it, or make the tokens again"
        )
    if found := list(_problems(plain)):
        raise StoreError(
            f"{str(folder / FILE)!r} is not the manifest of a token store, {len(found)} field(s) wrong:\n"
            + "\n".join(f"  - {one}" for one in found)
            + "\nrestore it from a copy, or make the tokens again in another folder"
        )
    return _from_plain(plain)


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{str(path.parent)!r} holds no {FILE}, so it is not a token store; "
            "give the folder that `vqcortex tokens` wrote"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror or error}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{str(path)!r} is not JSON ({_short(str(error))}); "
            "restore it from a copy, or make the tokens again in another folder"
        ) from error


def _problems(plain: Any) -> Iterator[str]:
    """Everything wrong with a manifest as JSON gave it."""
    if not isinstance(plain, dict):
        yield f"the file holds {_short(plain)}, not an object"
        return
    for name, (is_right, rule) in RULES.items():
        if name not in plain:
            yield f"{name} is missing; {rule}"
        elif not is_right(plain[name]):
            yield f"{name}={_short(plain[name])}; {rule}"
    if unknown := sorted(plain.keys() - RULES.keys()):
        yield f"{', '.join(map(_short, unknown))} unknown; a manifest has {', '.join(RULES)}"
    if isinstance(plain.get("shards"), list):
        yield from _shard_problems(plain["shards"])


def _shard_problems(shards: list[Any]) -> Iterator[str]:
    for number, shard in enumerate(shards):
        wanted = shard_name(number)
        if not isinstance(shard, dict) or shard.keys() != {"name", "rows", "sha256"}:
            yield f"shard {number} is {_short(shard)}; it must have name, rows and sha256"
        elif shard["name"] != wanted:
            yield f"shard {number} is called {_short(shard['name'])}; it must be {wanted!r}, beside it"
        elif not _is_count(shard["rows"]) or not _is_hash(shard["sha256"]):
            yield f"shard {wanted!r} has {_short(shard)}; rows must be 1 or more and sha256 64 hex digits"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**32


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_grid(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)) and value[0] * value[1] <= 2**24


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_name, value)) and len(set(value)) == len(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


RULES = {
    "format": (_is_count, f"this vqcortex writes format {FORMAT}"),
    "model": (_is_name, "it must be a name"),
    "identity": (_is_name, "it must be the model's content hash"),
    "k": (_is_count, f"it must be 1 to {2**32} codes"),
    "d": (_is_count, "it must be 1 channel or more"),
    "grid": (_is_grid, "it must be [rows, columns], each 1 or more"),
    "concepts": (_are_names, "it must be a list of one or more different names"),
    "seed": (_is_seed, "it must be a whole number"),
    "origin": (
        lambda value: isinstance(value, dict),
        "it must be an object that says how the store was made",
    ),
    "pictures": (lambda value: isinstance(value, bool), "it must be true or false"),
    "versions": (_are_texts, "it must be an object of version texts"),
    "shards": (lambda value: isinstance(value, list), "it must be a list"),
}


def _from_plain(plain: dict[str, Any]) -> Manifest:
    h, w = plain["grid"]
    shards = tuple(Shard(**shard) for shard in plain["shards"])
    return Manifest(**plain | {"grid": (h, w), "concepts": tuple(plain["concepts"]), "shards": shards})


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Fields that differ; one inside another is called "origin.n"."""
    for name in sorted(there.keys() | here.keys()):
        one, other = there.get(name), here.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{before}{name}.")
        elif one != other or (name in there) != (name in here):
            words = [_short(side[name]) if name in side else "absent" for side in (there, here)]
            yield f"{before}{name} is {words[0]} there and {words[1]} here"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
