"""What every image source is made of: a record, row names, decoding that says which picture is broken."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, overload, runtime_checkable

import pyarrow as pa
from PIL import Image

from vqcortex.errors import DataError
from vqcortex.files import hash_of_bytes, hash_of_file
from vqcortex.splits import SPELLINGS as SPELLINGS

MOST_CONCEPTS = 1_000_000  # a larger label is a mistake, and would ask for that many names
# What Pillow and pyarrow raise on bytes that are not what they claim to be.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
    pa.ArrowException, Image.DecompressionBombError,
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One labelled picture.

    Args:
        image_id: Unique within the source, the same on every run.
        concept: Index into the source's concepts.
        image: Decoded, in its own mode and size.
    """

    image_id: str
    concept: int
    image: Image.Image


@final
@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that nobody has decoded yet: small enough to hand to another process.

    Args:
        place: Where it comes from, for messages: "birds/owl/1.png", "row 3 of 'x.parquet'".
        held: The bytes of a picture file, the path of one, or pixels where a library gives nothing else.
    """

    place: str
    held: bytes | Path | Image.Image

    def image(self) -> Image.Image:
        """The picture, decoded, in its own mode and size.

        Raises:
            DataError: It cannot be read; the message names its place.
        """
        with decoding(self.place):
            return self.held if isinstance(self.held, Image.Image) else decoded(self.held)

    def digest(self) -> str:
        """SHA-256 of what the pixels are decoded from, in hex; equal digests mean equal pixels.

        Raises:
            DataError: It cannot be read; the message names its place.
        """
        with decoding(self.place):
            if isinstance(self.held, Path):
                return hash_of_file(self.held)
            return hash_of_bytes(self.held if isinstance(self.held, bytes) else _pixels_of(self.held))


def _pixels_of(image: Image.Image) -> bytes:
    """Everything that decides what a decoded picture looks like."""
    return repr((image.mode, image.size, image.getpalette())).encode() + image.tobytes()


@runtime_checkable
class ImageSource(Protocol):
    """Pictures with concepts, in a fixed order.

    Attributes:
        concepts: Different names, in the order that `ImageRecord.concept` counts.
        image_ids: One per picture, in order; no picture is opened.
    """

    @property
    def concepts(self) -> tuple[str, ...]: ...

    @property
    def image_ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ImageRecord]:
        """Every picture, decoded, in order."""
        ...

    def labels(self) -> Iterator[int]:
        """Concept of every picture, in order; no picture is opened unless a library hides its labels.

        Raises:
            DataError: While reading, a label that is no concept.
        """
        ...

    def pictures(self, rows: Iterable[int]) -> Iterator[Picture]:
        """The pictures of these rows, counted from 0 and rising; none is decoded, and no other is read.

        Raises:
            DataError: While reading, a row that holds no picture.
        """
        ...


def records(source: ImageSource) -> Iterator[ImageRecord]:
    """Every picture of a source, decoded, in order."""
    pictures = source.pictures(range(len(source)))
    for name, concept, picture in zip(source.image_ids, source.labels(), pictures, strict=True):
        yield ImageRecord(name, concept, picture.image())


@final
class RowNames(Sequence[str]):
    """The ids "train/000000", "train/000001", ... without holding them.

    Args:
        before: What stands before the slash.
        rows: How many there are.
    """

    def __init__(self, before: str, rows: int) -> None:
        self.before, self.rows = before, range(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self._name(row) for row in self.rows[index]]
        return self._name(self.rows[index])

    def _name(self, row: int) -> str:
        return f"{self.before}/{row:06d}"


def existing(place: str) -> Path:
    """The path, ~ expanded.

    Raises:
        DataError: Nothing is there.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise DataError(f"{str(path)!r} does not exist; check the path after the colon")
    return path


def decoded(source: bytes | Path) -> Image.Image:
    """A picture, all of it read."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
        return image.copy()


@contextmanager
def decoding(place: str) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of `place`, and the DataError says so."""
    try:
        yield
    except DataError as error:
        raise error.within(image=place) from None
    except BROKEN as error:
        raise DataError(f"{place} cannot be read: {first_line(error)}; replace it or take it out") from error


def concepts_of(labels: Iterable[Any]) -> tuple[str, ...]:
    """Names for labels that came without: the texts sorted, or every number up to the highest.

    Raises:
        DataError: No labels, or something other than texts or numbers from 0.
    """
    found = set(labels)
    if found and all(isinstance(one, str) and one for one in found):
        return tuple(sorted(found))
    if found and all(type(one) is int and 0 <= one < MOST_CONCEPTS for one in found):
        return tuple(map(str, range(max(found) + 1)))
    odd = sorted({short(one) for one in found if type(one) is not int or not 0 <= one < MOST_CONCEPTS})
    raise DataError(
        f"labels such as {', '.join(odd[:3]) or 'none at all'} name no concepts; "
        f"write texts only, or whole numbers 0 to {MOST_CONCEPTS - 1} only"
    )


def number_of(label: Any, number: dict[str, int]) -> int:
    """Concept of a label: a text is a concept's name, a number its place.

    Raises:
        DataError: There is no such concept.
    """
    if isinstance(label, str) and label in number:
        return number[label]
    if type(label) is int and 0 <= label < len(number):
        return label
    raise DataError(f"label {short(label)} is none of the {len(number)} concepts; mend or drop the row")


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names with later copies numbered: ImageNet has two kinds of "crane"."""
    times: dict[str, int] = {}
    out = []
    for name in names:
        times[name] = times.get(name, 0) + 1
        out.append(name if times[name] == 1 else f"{name} ({times[name]})")
    return tuple(out)


def first_line(error: BaseException) -> str:
    """An error's text, at most one line of it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def short(value: object) -> str:
    """How a value is shown in a message, at most 60 letters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
