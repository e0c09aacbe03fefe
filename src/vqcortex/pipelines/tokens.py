"""Fill a study's token store: generate images of concepts, encode real ones, or import tokens made elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vqcortex.adapters import generator_of, load_model
from vqcortex.adapters.protocol import Adapter
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, ModelError
from vqcortex.images import load_pixels
from vqcortex.pipelines.plan import (
    SPLITS,
    Encoded,
    Generated,
    Wanted,
    choose,
    plan_of,
    prompted_inputs,
    published_inputs,
)
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.tokens.prompted import prompted_concepts, read_prompted
from vqcortex.tokens.published import published_concepts, published_splits, read_published
from vqcortex.tokens.store import Manifest, TokenBatch, TokenStore, can_grow, create_store, open_store


def make_tokens(
    settings: TokensSettings,
    *,
    progress: Progress = QUIET,
    engine: Engine = SERIAL,
) -> TokenStore:
    """Fill the store of a study, or find it filled.

    A finished store that asked for fewer images per concept, and for the same in everything else, is not made again:
    the missing images are appended.

    Args:
        settings: What to put in.
        progress: Told how far it is.
        engine: Where shards are made; what is imported is read in this process.
    Returns:
        The store, open for reading.
    Raises:
        ConfigError: Settings are wrong, or a concept is unknown or has no images.
        DataError: The image source, the published files or the table of prompts cannot be read.
        TokenError: Imported ids lie outside the model's codebook.
    """
    settings.check()
    model = load_model(settings.model, settings.device)
    study = Study(settings.out)
    if settings.published is not None or settings.prompts is not None:
        _import_all(study, settings, model, progress)
    else:
        _make_all(study, settings, model, progress, engine)
    return open_store(study.path("tokens"), model_identity=model.identity)


def _import_all(study: Study, settings: TokensSettings, model: Adapter, progress: Progress) -> None:
    if settings.prompts is not None:
        read = prompted_inputs(settings.prompts, progress)
    else:
        assert settings.published is not None
        read = published_inputs(settings.published, progress)
    inputs = {"model": model.identity, **read}
    key = stage_key("tokens", settings, TokensSettings, inputs)
    run_stage(study, key, lambda folder: _import(folder, settings, model, progress))


def _make_all(study: Study, settings: TokensSettings, model: Adapter, progress: Progress, engine: Engine) -> None:
    plan = plan_of(settings, model)
    inputs = {"model": model.identity, **plan.inputs(progress)}
    key = stage_key("tokens", settings, TokensSettings, inputs)
    header = _manifest(settings, model, plan.concepts)

    def work(folder: Path) -> None:
        _fill(create_store(folder, header, grow=True), settings, model, plan, progress, engine)

    def continues(before: Mapping[str, Any]) -> bool:
        return can_grow(study.path("tokens"), header) and _is_beginning(before, key, plan, progress)

    run_stage(study, key, work, continues)


def _is_beginning(
    before: Mapping[str, Any], key: Mapping[str, Any], plan: Generated | Encoded, progress: Progress
) -> bool:
    """Whether what was made under an earlier key is this work for fewer images of each concept."""
    few = before.get("settings", {}).get("per_concept", plan.per_concept)
    smaller = {**key, "settings": {**key["settings"], "per_concept": few}, "inputs": before.get("inputs")}
    if few >= plan.per_concept or before != smaller:
        return False
    # The images made then must still be the first of their concepts; they are read last, for they may be many.
    return bool(before["inputs"] == {**key["inputs"], **plan.of_each(few).inputs(progress)})


def _fill(
    store: TokenStore,
    settings: TokensSettings,
    model: Adapter,
    plan: Generated | Encoded,
    progress: Progress,
    engine: Engine,
) -> None:
    # A store holds the first images of each concept, whether it was killed or finished with fewer: what is there is
    # passed over unread.
    pieces = _pieces(plan.images(_counts(store)), settings.shard)
    carried = Carried(model, model_at, settings.model, settings.device, model.identity)
    left = -(-(plan.total - len(store)) // settings.shard)
    made = engine.map(partial(_make_shard, carried=carried, settings=settings), pieces)
    for batch in progress.track(made, "tokens: shards made", left):
        store.append(batch)
    for name, number in zip(plan.concepts, _counts(store), strict=True):
        if number == 0:
            raise ConfigError(
                f"concept {name!r} has no images in {settings.images or model.name!r}; leave it out of --concepts"
            )


def model_at(name: str, device: str, identity: str) -> Adapter:
    """A model where work is done.

    Raises:
        ModelError: The model of that name is another one there.
    """
    model = load_model(name, device)
    if model.identity != identity:
        raise ModelError(
            f"model {name!r} has identity {model.identity[:12]} here and {identity[:12]} where the work was given out; "
            "install the same model everywhere"
        )
    return model


def _counts(store: TokenStore) -> list[int]:
    """Images of each concept."""
    counts = torch.zeros(len(store.manifest.concepts), dtype=torch.int64)
    for batch in store.batches(4096, pictures=False):
        counts += batch.concept.bincount(minlength=len(counts))
    return counts.tolist()


def _manifest(settings: TokensSettings, model: Adapter, concepts: Sequence[str]) -> Manifest:
    way = "encode" if settings.images else "import" if settings.published or settings.prompts else "generate"
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


def _pieces(items: Iterable[Wanted], size: int) -> Iterator[list[Wanted]]:
    stream = iter(items)
    while piece := list(islice(stream, size)):
        yield piece


def _make_shard(piece: Sequence[Wanted], *, carried: Carried[Adapter], settings: TokensSettings) -> TokenBatch:
    """Tokens of one shard's images, `batch` images at a time."""
    model = carried.value
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
    pixels = [load_pixels(one.picture.image(), model.size) for one in part if one.picture is not None]
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
    """Bring in grids made elsewhere, whole shards of a killed run kept."""
    concepts, batches = _prompted(settings, model) if settings.prompts is not None else _published(settings, model)
    store = create_store(folder, _manifest(settings, model, concepts))
    done = len(store.shards)
    for number, batch in enumerate(progress.track(batches, "tokens: shards imported", 0)):
        if number >= done:
            store.append(_with_pictures(batch, model, settings) if settings.pictures else batch)


def _prompted(settings: TokensSettings, model: Adapter) -> tuple[tuple[str, ...], Iterator[TokenBatch]]:
    """Concepts and grids of a table of prompts."""
    table = settings.prompts
    assert table is not None
    concepts = choose(settings.concepts, prompted_concepts(table), f"table {str(table)!r}")
    return concepts, read_prompted(table, model.k, model.grid, concepts, order=SPLITS, size=settings.shard)


def _published(settings: TokensSettings, model: Adapter) -> tuple[tuple[str, ...], Iterator[TokenBatch]]:
    """Concepts and grids of the published layout; its own train, val and test parts are kept."""
    published = settings.published
    assert published is not None
    concepts, codebook = published_concepts(published), model.codebook.detach().cpu()
    return concepts, (
        batch
        for split in published_splits(published)
        for batch in read_published(
            published, split, len(codebook), model.grid, codebook=codebook, concepts=concepts, size=settings.shard
        )
    )


def _with_pictures(batch: TokenBatch, model: Adapter, settings: TokensSettings) -> TokenBatch:
    """The same images with what their grids decode to."""
    parts = batch.tokens.split(settings.batch)
    return replace(batch, images=tuple(one for part in parts for one in _pictures(part, model)))
