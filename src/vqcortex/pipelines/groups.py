"""The groups of an audit: where their images come from, and their tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.adapters import generator_of
from vqcortex.adapters.protocol import ENCODE, Adapter, check_ability
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, DataError
from vqcortex.files import hash_of_bytes
from vqcortex.images import load_pixels, open_images
from vqcortex.images.folder import FolderSource
from vqcortex.pipelines.plan import SPLITS, Encoded, Generated, Wanted
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.tokens.manifest import FILE as MANIFEST
from vqcortex.tokens.store import TokenStore, open_store

CONCEPT = "concept:"
NEUTRAL = "neutral"
PIECE = 500  # images made together


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """Some images as tokens.

    Args:
        tokens: The grids, on the CPU.
        image_ids: Unique within the group.
        labels: The concept of each, as its source names it; None where it says nothing about the images beyond
            their group.
    """

    tokens: Int[Tensor, "n h w"]
    image_ids: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Images."""
        return len(self.image_ids)

    def rows(self, *splits: str) -> Int[Tensor, " r"]:
        """Places of the images of these splits: of every ten, 7 train, 1 chooses, 2 test."""
        found = [row for row in range(len(self)) if SPLITS[row % len(SPLITS)] in splits]
        return torch.tensor(found, dtype=torch.int64)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Images of a token store.

    Args:
        store: The store.
        concepts: Those taken.
        most: Images taken at most, the store's first.
    """

    store: TokenStore
    concepts: tuple[str, ...]
    most: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Where the images of a group come from.

    Args:
        name: Of the group.
        place: As the user wrote it.
        source: What is there.
        is_named: Whether the user chose its concepts, or they are but the folder's name; then these make the group and
            say nothing more about it.
    """

    name: str
    place: str
    source: Generated | Encoded | Stored
    is_named: bool

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concepts of its images."""
        return self.source.concepts

    def digest(self, progress: Progress = QUIET) -> str:
        """A hash of everything that decides its images, beside model and seed."""
        if isinstance(self.source, Stored):
            held = [one.sha256 for one in self.source.store.shards]
            return hash_of_bytes(json.dumps([held, self.source.concepts, self.source.most]).encode())
        if isinstance(self.source, Encoded):
            return self.source.inputs(progress)["images"]
        return hash_of_bytes(json.dumps([self.place, self.source.per_concept]).encode())


def named_places(groups: Sequence[str]) -> dict[str, str]:
    """NAME=PLACE taken apart, in order.

    Raises:
        ConfigError: One is not NAME=PLACE, a name comes twice, or there are fewer than two.

    Example:
        >>> named_places(["with=imagefolder:marked", "without=imagefolder:plain"])
        {'with': 'imagefolder:marked', 'without': 'imagefolder:plain'}
    """
    found: dict[str, str] = {}
    for one in groups:
        name, mark, place = one.partition("=")
        if not (mark and name and place):
            raise ConfigError(f"group {one!r} must be NAME=PLACE, as in 'marked=imagefolder:photos/marked'")
        if name in found or name == NEUTRAL:
            raise ConfigError(f"group {name!r} is given twice or called {NEUTRAL!r}; give each a name of its own")
        found[name] = place
    if len(found) < 2:
        raise ConfigError(
            f"{len(found)} attribute group(s) given; an audit compares at least 2: --groups NAME=PLACE, once for each"
        )
    return found


def open_group(name: str, place: str, model: Adapter, most: int, split: str) -> Group:
    """Look what is at a place, and read no image of it.

    Args:
        name: Of the group.
        place: A folder with a study or a token store, an image source (KIND:WHERE), or concept:NAME for images that
            the model draws; #CONCEPT,CONCEPT at its end takes only those concepts of a store or source.
        model: Whose tokens are wanted.
        most: Images taken at most.
        split: Which part of an image source to read.

    Raises:
        ConfigError: The model does not know the concept, the source has no such concept, or there is nothing there.
        StoreError: The store was written with another model.
        DataError: The image source cannot be read.
    """
    where, mark, chosen = place.partition("#")
    try:
        source = _source_at(where, chosen if mark else "", model, most, split)
    except (ConfigError, DataError) as error:
        raise error.within(group=name) from error
    is_flat = isinstance(source, Encoded) and isinstance(source.source, FolderSource) and source.source.is_flat
    return Group(
        name=name, place=place, source=source, is_named=bool(mark) or is_flat or isinstance(source, Generated)
    )  # fmt: skip


def _source_at(where: str, chosen: str, model: Adapter, most: int, split: str) -> Generated | Encoded | Stored:
    if where.startswith(CONCEPT):
        known = generator_of(model).concepts
        wanted = _taken(where.removeprefix(CONCEPT), known, f"model {model.name!r}")
        return Generated(wanted, -(-most // len(wanted)))
    if (folder := _store_folder(Path(where).expanduser())) is not None:
        store = open_store(folder, model_identity=model.identity)
        return Stored(store=store, concepts=_taken(chosen, store.manifest.concepts, f"store {where!r}"), most=most)
    check_ability(model.name, model.abilities, ENCODE, "give token stores instead of pictures")
    source = open_images(where, split)
    wanted = _taken(chosen, source.concepts, f"source {where!r}")
    return Encoded(source, wanted, -(-most // len(wanted)))


def read_group(
    group: Group,
    model: Carried[Adapter],
    *,
    seed: int,
    batch: int,
    progress: Progress = QUIET,
    engine: Engine = SERIAL,
) -> Grids:
    """A group's tokens: read, encoded or drawn.

    Args:
        group: From `open_group`.
        model: What encodes or draws.
        seed: Of what is drawn; an image depends on it, on the group's name and its own number.
        batch: Images at once.
        progress: Told how far it is.
        engine: Where pictures are encoded and images drawn.
    """
    if isinstance(group.source, Stored):
        return _stored(group)
    wanted: Iterator[Wanted] = group.source.images([0] * len(group.concepts))
    if isinstance(group.source, Generated):
        wanted = (Wanted(f"{group.name}/{one.image_id}", one.concept, one.index) for one in wanted)
    pieces = list(iter(lambda: list(islice(wanted, PIECE)), []))
    make = partial(_make_piece, model=model, concepts=group.concepts, seed=seed, batch=batch)
    made = list(progress.track(engine.map(make, pieces), f"audit: {group.name}, pieces", len(pieces)))
    images = [one for piece in pieces for one in piece]
    grid = model.value.grid
    return Grids(
        tokens=torch.cat(made) if made else torch.zeros(0, *grid, dtype=torch.int32),
        image_ids=tuple(one.image_id for one in images),
        labels=None if group.is_named else tuple(group.concepts[one.concept] for one in images),
    )


def _make_piece(
    piece: Sequence[Wanted], *, model: Carried[Adapter], concepts: tuple[str, ...], seed: int, batch: int
) -> Int[Tensor, "n h w"]:
    parts = [piece[at : at + batch] for at in range(0, len(piece), batch)]
    return torch.cat([_grids_of(part, model.value, concepts, seed) for part in parts]).cpu().int()


def _grids_of(part: Sequence[Wanted], model: Adapter, concepts: tuple[str, ...], seed: int) -> Tensor:
    pictures = [one.picture for one in part if one.picture is not None]
    if pictures:
        return model.encode(torch.stack([load_pixels(one.image(), model.size) for one in pictures]).to(model.device))
    generator = generator_of(model)
    concept = torch.tensor([generator.concepts.index(concepts[one.concept]) for one in part])
    return generator.generate(concept, [one.image_id for one in part], seed)


def _stored(group: Group) -> Grids:
    assert isinstance(group.source, Stored)
    store, most = group.source.store, group.source.most
    names = store.manifest.concepts
    tokens: list[Tensor] = []
    ids: list[str] = []
    labels: list[str] = []
    for batch in store.batches(1024, pictures=False):
        rows = [row for row, one in enumerate(batch.concept.tolist()) if names[one] in group.concepts]
        taken = batch.take(rows[: most - len(ids)])
        tokens.append(taken.tokens.int())
        ids += taken.image_ids
        labels += [names[one] for one in taken.concept.tolist()]
        if len(ids) >= most:
            break
    return Grids(
        tokens=torch.cat(tokens) if tokens else torch.zeros(0, *store.manifest.grid, dtype=torch.int32),
        image_ids=tuple(ids),
        labels=None if group.is_named else tuple(labels),
    )


def _store_folder(path: Path) -> Path | None:
    """Where the token store of a study, or a store itself, lies."""
    return next((one for one in (path, path / "tokens") if (one / MANIFEST).is_file()), None)


def _taken(chosen: str, known: Sequence[str], owner: str) -> tuple[str, ...]:
    """Concepts written with commas between them, in the owner's order; all, where none are written."""
    names = [chosen] if chosen in known else [one for one in chosen.split(",") if one]
    for name in names:
        if name not in known:
            shown = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
            raise ConfigError(f"{owner} has no concept {name!r}; it has: {shown}")
    return tuple(one for one in known if not names or one in names)


def labels_of(groups: Mapping[str, Grids]) -> dict[str, tuple[str, ...]]:
    """What sources say about the images of each group beside the group itself."""
    return {name: one.labels for name, one in groups.items() if one.labels is not None}
