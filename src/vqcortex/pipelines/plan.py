"""Which images a study takes, in what order, and what stands for their content.

An image's split is a function of its place among the images of its concept, and of nothing else: a plan for more
images of each concept holds every image of a plan for fewer, with the same id and the same split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import tee
from pathlib import Path
from typing import final

from vqcortex.adapters import generator_of
from vqcortex.adapters.protocol import Adapter
from vqcortex.errors import ConfigError
from vqcortex.files import hash_of_file
from vqcortex.images import ImageSource, Picture, open_images
from vqcortex.images.source import decoding
from vqcortex.pipelines.progress import Progress
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.tokens.prompted import prompted_files
from vqcortex.tokens.published import published_files

# Of every ten images of a concept, in order: what they are for.
SPLITS = ("train",) * 7 + ("validation",) + ("test",) * 2
NAMES_SHOWN, NAME_SHOWN = 20, 60  # concepts in a message, and letters of one


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """One image to make.

    Args:
        image_id: Unique in the study.
        concept: Its concept, as an index into the study's.
        index: Its place among the images of its concept, from 0.
        picture: Where its pixels come from; None: the generator.
    """

    image_id: str
    concept: int
    index: int
    picture: Picture | None = None

    @property
    def split(self) -> str:
        """What it is for: "train", "validation" or "test"."""
        return SPLITS[self.index % len(SPLITS)]


@final
@dataclass(frozen=True, slots=True)
class Generated:
    """Images that the model draws.

    Args:
        concepts: Names, in the model's order.
        per_concept: Images of each.
    """

    concepts: tuple[str, ...]
    per_concept: int

    @property
    def total(self) -> int:
        """How many images there are."""
        return len(self.concepts) * self.per_concept

    def images(self, done: Sequence[int]) -> Iterator[Wanted]:
        """The images to make, in order, without the first `done` of each concept."""
        # Index first, concept second: every concept has its images whenever one stops.
        return (
            Wanted(f"{name}/{index:06d}", number, index)
            for index in range(self.per_concept)
            for number, name in enumerate(self.concepts)
            if index >= done[number]
        )

    def of_each(self, number: int) -> Generated:
        """The same with another number of images of each concept."""
        return replace(self, per_concept=number)

    def inputs(self, progress: Progress) -> dict[str, str]:
        """Nothing: the model and the settings decide every token."""
        return {}


@final
@dataclass(frozen=True, slots=True)
class Encoded:
    """Images of a source.

    Args:
        source: Where they are.
        concepts: Names, in the source's order.
        per_concept: At most so many of each, the source's first.
    """

    source: ImageSource
    concepts: tuple[str, ...]
    per_concept: int

    @property
    def total(self) -> int:
        """At most how many images there are."""
        return min(len(self.source), len(self.concepts) * self.per_concept)

    def images(self, done: Sequence[int]) -> Iterator[Wanted]:
        """The images to make, in order, without the first `done` of each concept; the others stay unopened."""
        chosen, ahead = tee(one for one in self._chosen() if one[2] >= done[one[1]])
        pictures = self.source.pictures(row for row, _, _ in ahead)
        for (row, concept, index), picture in zip(chosen, pictures, strict=True):
            yield Wanted(self.source.image_ids[row], concept, index, picture)

    def of_each(self, number: int) -> Encoded:
        """The same with at most another number of images of each concept."""
        return replace(self, per_concept=number)

    def inputs(self, progress: Progress) -> dict[str, str]:
        """A hash over ids, concepts and content of the images taken, in order; no other image is opened.

        Raises:
            DataError: One of them cannot be read.
        """
        images = progress.track(self.images([0] * len(self.concepts)), "tokens: images compared", self.total)
        lines = ([one.image_id, one.concept, one.picture.digest()] for one in images if one.picture is not None)
        return {"images": _hash_of_lines([list(self.concepts)], lines)}

    def _chosen(self) -> Iterator[tuple[int, int, int]]:
        """(row of the source, concept of the study, place in that concept) of each image taken."""
        number_of = {self.source.concepts.index(name): number for number, name in enumerate(self.concepts)}
        taken = [0] * len(self.concepts)
        for row, label in enumerate(self.source.labels()):
            number = number_of.get(label)
            if number is None or taken[number] >= self.per_concept:
                continue
            yield row, number, taken[number]
            taken[number] += 1
            if min(taken) >= self.per_concept:
                return


def plan_of(settings: TokensSettings, model: Adapter) -> Generated | Encoded:
    """The images that settings without `published` ask for.

    Raises:
        ConfigError: A concept is unknown, or fewer than two are left.
        DataError: The image source cannot be read.
    """
    if settings.images is None:
        known = generator_of(model).concepts
        return Generated(choose(settings.concepts, known, f"model {model.name!r}"), settings.per_concept)
    source = open_images(settings.images, settings.images_split)
    chosen = choose(settings.concepts, source.concepts, f"source {settings.images!r}")
    return Encoded(source, chosen, settings.per_concept)


def published_inputs(folder: Path, progress: Progress) -> dict[str, str]:
    """A hash over names and content of the files that an import reads.

    Raises:
        DataError: The folder holds no split, or a file cannot be read.
    """
    files = progress.track(published_files(folder), "tokens: files compared", 0)
    return {"published": _hash_of_lines(_named(path, folder) for path in files)}


def prompted_inputs(table: Path, progress: Progress) -> dict[str, str]:
    """A hash over names and content of a table of prompts and of the .npy files it names.

    Raises:
        DataError: The table or a file cannot be read.
    """
    files = progress.track(prompted_files(table), "tokens: files compared", 0)
    return {"prompts": _hash_of_lines(_named(path, table.expanduser().parent) for path in files)}


def _named(path: Path, folder: Path) -> list[str]:
    """A file's name and content, wherever its folder is."""
    with decoding(str(path)):
        return [path.relative_to(folder).as_posix(), hash_of_file(path)]


def _hash_of_lines(*parts: Iterable[object]) -> str:
    """SHA-256 over JSON values, one a line: nothing depends on where or when files were written."""
    found = hashlib.sha256()
    for part in parts:
        for line in part:
            found.update(json.dumps(line).encode() + b"\n")
    return found.hexdigest()


def choose(asked: Sequence[str], known: Sequence[str], owner: str) -> tuple[str, ...]:
    """Concepts in the owner's order: those asked for, or all.

    Raises:
        ConfigError: One is unknown (with the nearest known name), or fewer than two are left.
    """
    for name in asked:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{owner} has no concept {name!r}; it has: {_listed(known)}.{hint}")
    chosen = tuple(name for name in known if not asked or name in asked)
    if len(chosen) < 2:
        raise ConfigError(
            f"{len(chosen)} concept(s) chosen of {owner}; an extractor needs at least 2 to tell apart: "
            "take more with --concepts, or a source that has more"
        )
    return chosen


def _listed(names: Sequence[str]) -> str:
    """The first names, shortened where they are whole prompts."""
    shown = [name if len(name) <= NAME_SHOWN else f"{name[:NAME_SHOWN]}..." for name in names[:NAMES_SHOWN]]
    return ", ".join(shown) + (f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else "")
