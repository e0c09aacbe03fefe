"""Fill a study's token store: generate images of concepts, encode real ones, or import published data."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import final

import torch
from PIL import Image
from torch import Tensor

from vqcortex.adapters import generator_of, load_model
from vqcortex.adapters.protocol import Adapter
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError
from vqcortex.images import ImageRecord, load_pixels, open_images
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.tokens.published import published_concepts, published_splits, read_published
from vqcortex.tokens.store import Manifest, TokenBatch, TokenStore, create_store, open_store

# Of every ten images of a concept, in order: what they are for.
SPLITS = ("train",) * 7 + ("validation",) + ("test",) * 2


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """One image to make: its id, its concept, its split, and where its pixels come from (None: the generator)."""

    image_id: str
    concept: int
    split: str
    record: ImageRecord | None = None


def make_tokens(
    settings: TokensSettings,
    *,
    progress: Progress = QUIET,
    engine: Engine = SERIAL,
) -> TokenStore:
    """Fill the store of a study, or find it filled.

    Args:
        settings: What to put in.
        progress: Told how far it is.
        engine: Where shards are made.
    Returns:
        The store, open for reading.
    Raises:
        ConfigError: Settings are wrong, or a concept is unknown or has no images.
        DataError: The image source cannot be read.
        TokenError: Imported ids lie outside the model's codebook.
    """
    settings.check()
    model = load_model(settings.model, settings.device)
    study = Study(settings.out)
    key = stage_key("tokens", settings, TokensSettings, {"model": model.identity, **_source_hash(settings)})
    run_stage(study, key, lambda folder: _fill(folder, settings, model, progress, engine))
    return open_store(study.path("tokens"), model_identity=model.identity)


def _source_hash(settings: TokensSettings) -> dict[str, str]:
    """What stands for the content of a source: its name, length and labels, which are cheap to read."""
    if settings.images is None:
        return {}
    source = open_images(settings.images, settings.images_split)
    return {"images": f"{settings.images} {settings.images_split} {len(source)} {','.join(source.concepts)}"}


def _fill(folder: Path, settings: TokensSettings, model: Adapter, progress: Progress, engine: Engine) -> None:
    if settings.published is not None:
        _import(folder, settings, model, progress)
        return
    concepts, wanted, total = _plan(settings, model)
    store = create_store(folder, _manifest(settings, model, concepts))
    shards = enumerate(_pieces(wanted, settings.shard))
    count = -(-total // settings.shard)
    # Whole shards of a killed run are kept; their images are passed over unread.
    todo = (piece for number, piece in shards if number >= len(store.shards))
    made = engine.map(lambda piece: _make_shard(piece, model, settings), todo)
    left = count - len(store.shards)
    for batch in progress.track(made, "tokens: shards made", left):
        store.append(batch)
    for name, number in zip(concepts, _counts(store, len(concepts)), strict=True):
        if number == 0:
            raise ConfigError(
                f"concept {name!r} has no images in {settings.images or model.name!r}; leave it out of --concepts"
            )


def _counts(store: TokenStore, concepts: int) -> list[int]:
    return [store.count(concept=one) for one in range(concepts)]


def _manifest(settings: TokensSettings, model: Adapter, concepts: Sequence[str]) -> Manifest:
    way = "encode" if settings.images else "import" if settings.published else "generate"
    return Manifest(
        model=model.name,
        identity=model.identity,
        k=len(model.codebook),
        d=model.codebook.shape[1],
        grid=model.grid,
        concepts=tuple(concepts),
        seed=settings.seed,
        origin={"way": way, "per_concept": settings.per_concept, "source": settings.images or ""},
        pictures=settings.pictures,
    )


def _plan(settings: TokensSettings, model: Adapter) -> tuple[tuple[str, ...], Iterable[Wanted], int]:
    """The concepts, the images to make in order, and at most how many they are."""
    if settings.images is None:
        generator = generator_of(model)
        chosen = choose(settings.concepts, generator.concepts, f"model {model.name!r}")
        total = len(chosen) * settings.per_concept
        # Index first, concept second: asking for more images later only appends.
        wanted = (
            Wanted(f"{name}/{index:06d}", number, SPLITS[index % len(SPLITS)])
            for index in range(settings.per_concept)
            for number, name in enumerate(chosen)
        )
        return chosen, wanted, total
    source = open_images(settings.images, settings.images_split)
    chosen = choose(settings.concepts, source.concepts, f"source {settings.images!r}")
    place = {source.concepts.index(name): number for number, name in enumerate(chosen)}
    return (
        chosen,
        _from_records(source, place, settings.per_concept),
        min(len(source), len(chosen) * settings.per_concept),
    )


def choose(asked: Sequence[str], known: Sequence[str], owner: str) -> tuple[str, ...]:
    """Concepts in the owner's order: those asked for, or all.

    Raises:
        ConfigError: One is unknown (with the nearest known name), or fewer than two are left.
    """
    from difflib import get_close_matches

    for name in asked:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{owner} has no concept {name!r}; it has: {', '.join(known)}.{hint}")
    chosen = tuple(name for name in known if not asked or name in asked)
    if len(chosen) < 2:
        raise ConfigError(
            f"{len(chosen)} concept(s) chosen of {owner}; an extractor needs at least 2 to tell apart: "
            "add to --concepts"
        )
    return chosen


def _from_records(source: Iterable[ImageRecord], place: dict[int, int], most: int) -> Iterator[Wanted]:
    taken = dict.fromkeys(place.values(), 0)
    for record in source:
        concept = place.get(record.concept)
        if concept is None or taken[concept] >= most:
            continue
        yield Wanted(record.image_id, concept, SPLITS[taken[concept] % len(SPLITS)], record)
        taken[concept] += 1
        if all(one >= most for one in taken.values()):
            return


def _pieces(items: Iterable[Wanted], size: int) -> Iterator[list[Wanted]]:
    stream = iter(items)
    while piece := list(islice(stream, size)):
        yield piece


def _make_shard(piece: Sequence[Wanted], model: Adapter, settings: TokensSettings) -> TokenBatch:
    """Tokens of one shard's images, `batch` images at a time."""
    parts = [piece[start : start + settings.batch] for start in range(0, len(piece), settings.batch)]
    grids = [_grids(part, model, settings) for part in parts]
    tokens = torch.cat(grids)
    pictures = [one for grid in grids for one in _pictures(grid, model)] if settings.pictures else None
    return TokenBatch(
        image_ids=tuple(one.image_id for one in piece),
        concept=torch.tensor([one.concept for one in piece]),
        split=tuple(one.split for one in piece),
        tokens=tokens,
        images=None if pictures is None else tuple(pictures),
    )


def _grids(part: Sequence[Wanted], model: Adapter, settings: TokensSettings) -> Tensor:
    if settings.images is None:
        generator = generator_of(model)
        names = generator.concepts
        chosen = choose(settings.concepts, names, model.name)
        concept = torch.tensor([names.index(chosen[one.concept]) for one in part])
        return generator.generate(concept, [one.image_id for one in part], settings.seed).cpu()
    pixels = [load_pixels(one.record.image, model.size) for one in part if one.record is not None]
    return model.encode(torch.stack(pixels).to(settings.device)).cpu()


@torch.no_grad()
def _pictures(grid: Tensor, model: Adapter) -> list[bytes]:
    """PNG bytes of what a grid decodes to."""
    pixels = model.decode(model.embed(grid.to(model.codebook.device)))
    arrays = (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [_png(Image.fromarray(array)) for array in arrays]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _import(folder: Path, settings: TokensSettings, model: Adapter, progress: Progress) -> None:
    """Bring in the published layout; its own train, val and test parts are kept."""
    published = settings.published
    assert published is not None
    concepts = published_concepts(published)
    store = create_store(folder, _manifest(settings, model, concepts))
    codebook = model.codebook.detach().cpu()
    shards = (
        batch
        for split in published_splits(published)
        for batch in read_published(
            published, split, len(codebook), model.grid, codebook=codebook, concepts=concepts, size=settings.shard
        )
    )
    done = len(store.shards)
    for number, batch in enumerate(progress.track(shards, "tokens: shards imported", 0)):
        if number >= done:  # whole shards of a killed run are kept
            store.append(batch)
