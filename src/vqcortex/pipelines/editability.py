"""Validate a study's concept tokens by editing with them: take them out, put them in, swap them, and ask the judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor

from vqcortex.adapters.protocol import Level, allowed_cells
from vqcortex.attribution.insertion import typical_places
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.evaluation.arms import random_order
from vqcortex.evaluation.concept_level import hide_listed, ranks_of
from vqcortex.evaluation.editability import (
    ARMS,
    KINDS,
    OURS,
    RANDOM,
    Kind,
    Trials,
    editability_table,
)
from vqcortex.evaluation.judge import ask
from vqcortex.pipelines.evaluate import Court, concept_lists_of, court_inputs, open_court
from vqcortex.pipelines.interactions import first_test_images, places_of_shard
from vqcortex.pipelines.loaded import load_all
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import EditabilitySettings
from vqcortex.pipelines.stamps import EDITABILITY as STAGE
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.results import save_table
from vqcortex.seeds import generator_for
from vqcortex.tokens.store import TokenBatch
from vqcortex.weights import save_weights

CAP = 0.5  # share of the grid that is changed at most
GALLERY = 4  # images per concept and kind that the page shows
GALLERY_FILE = "gallery.safetensors"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A concept and the images to edit.

    Args:
        concept: Its number.
        own: Test images that show it.
        others: Test images of all other concepts, in turns.
    """

    concept: int
    own: TokenBatch
    others: TokenBatch


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of all concepts' lists.

    Args:
        lists: Codes per arm, best first, (c, m), -1 after the last.
        counts: By arm, how often each listed code stands where in the concept's explained images, (c, m, h, w).
        holding: How many of those images hold each code of our own lists, (c, m).
        use: How often each code is used at all, (k,).
    """

    lists: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    holding: Tensor
    use: Tensor


Edits = dict[str, Int[Tensor, "b h w"]]


def editability(settings: EditabilitySettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Ask the judges whether a concept goes and comes with its tokens, against random and merely frequent codes.

    Every arm changes as many tokens of an image: taken out, as many cells; put in or swapped, the very same positions.

    Args:
        settings: How many images, and how many of the tokens.
        progress: Told how far it is.
        engine: Where concepts are edited.
    Returns:
        Folder with the table editability and gallery.safetensors, some images before and after.
    Raises:
        StudyError: The concepts are not pooled yet.
        ModelError: There are no judges, or the model cannot decode.
        ConfigError: A concept that no judge knows.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    court, _, judges = open_court(study, loaded, settings, (), engine)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "train", "concepts")}
    key = stage_key(STAGE, settings, EditabilitySettings, inputs | court_inputs(judges, settings, loaded.concepts))

    def work(folder: Path) -> None:
        lists = concept_lists_of(study, loaded, court.counts.value, settings.seed)
        counts, holding = {}, torch.zeros_like(lists[OURS])
        for arm, codes in lists.items():
            shards = list(
                engine.map(partial(places_of_shard, store=loaded.store, codes=codes), range(len(loaded.store.shards)))
            )
            counts[arm] = torch.stack([places for places, _ in shards]).sum(0)
            holding = torch.stack([images for _, images in shards]).sum(0) if arm == OURS else holding
        known = Known(lists=lists, counts=counts, holding=holding, use=court.counts.value.sum(0))
        asked = list(_questions(first_test_images(loaded.store, settings.editability_images, settings.batch),
                                len(loaded.concepts), settings.editability_images))  # fmt: skip
        made = engine.map(partial(_edited, court=court, known=known, settings=settings), asked)
        found = list(progress.track(made, "editability: concepts", len(asked)))
        save_table(editability_table([one for trials, _ in found for one in trials], loaded.concepts), folder)
        gallery = {
            f"{asked[n].concept}:{name}": grids for n, (_, shown) in enumerate(found) for name, grids in shown.items()
        }
        save_weights(gallery, folder / GALLERY_FILE)

    run_stage(study, key, work)
    return study.path(STAGE)


def _questions(seen: TokenBatch, concepts: int, most: int) -> Iterator[Question]:
    place = torch.cat([torch.arange(int(one)) for one in seen.concept.bincount(minlength=concepts)])
    turn = place[seen.concept.argsort(stable=True).argsort()]  # each image's place in its concept
    order = (turn * concepts + seen.concept).argsort()
    for concept in range(concepts):
        own = (seen.concept == concept).nonzero()[:, 0].tolist()
        others = order[seen.concept[order] != concept][:most].tolist()
        if own and others:
            yield Question(concept=concept, own=seen.take(own), others=seen.take(others))


def _edited(
    asked: Question, *, court: Court, known: Known, settings: EditabilitySettings
) -> tuple[list[Trials], dict[str, Tensor]]:
    """The trials of one concept, and images for the page."""
    trials: list[Trials] = []
    shown: dict[str, Tensor] = {}
    sizes = sorted({min(one, known.lists[OURS].shape[1]) for one in settings.editability_tokens})
    believed = {name: _asked(court, images.tokens) for name, images in (("own", asked.own), ("others", asked.others))}
    for kind in KINDS:
        images, answer = (asked.own, believed["own"]) if kind == "remove" else (asked.others, believed["others"])
        rows = _undecided(kind, asked.concept, images, answer).nonzero()[:, 0].tolist()
        batch = images.take(rows)
        for size in sizes:
            edits = edits_of(kind, asked.concept, batch, known, size, court.loaded.value.model.levels, settings.seed)
            trials.append(
                Trials(
                    concept=asked.concept, kind=kind, tokens=size, judges=tuple(one.name for one in court.judges.value),
                    success={
                        arm: ~_undecided(kind, asked.concept, batch, _asked(court, grids), every=False)
                        for arm, grids in edits.items()
                    },
                    cells={arm: _mean_changed(batch.tokens, grids) for arm, grids in edits.items()},
                )
            )  # fmt: skip
            if size == sizes[-1] and rows:
                shown |= {f"{kind}:before": batch.tokens[:GALLERY]}
                shown |= {f"{kind}:{arm}": edits[arm][:GALLERY] for arm in (OURS, RANDOM)}
    return trials, shown


def _mean_changed(before: Tensor, after: Tensor) -> float:
    return float((before != after).flatten(1).sum(1).double().mean()) if len(before) else 0.0


@torch.no_grad()
def _asked(court: Court, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "j b c"]:
    """Every judge's log-probabilities."""
    model, judges = court.loaded.value.model, court.judges.value
    if not len(tokens):
        return torch.zeros(len(judges), 0, len(court.loaded.value.concepts), dtype=torch.float64)
    parts = [model.decode(model.embed(some.to(model.codebook.device))) for some in tokens.split(250)]
    return torch.stack([torch.cat([ask(judge, pixels) for pixels in parts]) for judge in judges])


def _undecided(
    kind: Kind, concept: int, images: TokenBatch, answer: Float[Tensor, "j b c"], every: bool = True
) -> Bool[Tensor, ...]:
    """Whether an edit would still have something to do: (b,) for every judge at once, or (j, b)."""
    if kind == "remove":
        found = answer.argmax(2) == concept
    else:
        source = images.concept[None, :, None].expand(len(answer), -1, 1)
        found = answer[:, :, concept] <= answer.gather(2, source)[..., 0]
    return found.all(0) if every else found


def edits_of(
    kind: Kind, concept: int, images: TokenBatch, known: Known, size: int, levels: Sequence[Level], seed: int
) -> Edits:
    """The edited grids of every arm.

    Args:
        kind: "remove": cells that hold the concept's tokens take codes drawn by use; "insert": the concept's tokens go
            where they usually stand; "swap": they go where the image's own concept has its tokens.
        concept: The concept taken out or put in.
        images: What is edited.
        known: The lists.
        size: Tokens of them used, the best first.
        levels: Of the model.
        seed: Of the draws.
    """
    if not len(images):
        return dict.fromkeys(ARMS, images.tokens)
    lists = {arm: codes[:, :size] for arm, codes in known.lists.items()}
    if kind == "remove":
        return _removed(concept, images, lists, known, levels, seed)
    if kind == "insert":
        usual = (
            (known.counts[OURS][concept, :size].sum((1, 2)) / known.holding[concept, :size].clamp(min=1))
            .round()
            .clamp(min=1)
        )
        where = typical_places(known.counts[OURS][concept, :size], usual.long().tolist()).any(0)
        free = where.expand_as(images.tokens)
    else:
        ranks = ranks_of(lists[OURS], len(known.use))
        free = _first_cells(ranks[images.concept[:, None, None], images.tokens], size, images, seed)
    put = {arm: _put(arm, concept, images, free, lists, known, seed) for arm in ARMS}
    allowed = allowed_cells(levels, len(known.use))
    if allowed is None:
        return put
    # A code of another level cannot stand there: the token stays.
    return {
        arm: torch.where(allowed.expand(len(grids), -1, -1, -1).gather(1, grids[:, None])[:, 0], grids, images.tokens)
        for arm, grids in put.items()
    }


def _removed(
    concept: int, images: TokenBatch, lists: Mapping[str, Tensor], known: Known, levels: Sequence[Level], seed: int
) -> Edits:
    drawn = torch.stack(
        [drawn_codes(known.use, images.tokens.shape[1:], levels, seed, name) for name in images.image_ids]
    )
    last, found = random_order(images.tokens, images.image_ids, seed), {}
    size = lists[OURS].shape[1]
    ranks = {arm: ranks_of(codes, len(known.use))[concept][images.tokens] for arm, codes in lists.items()}
    budget = (ranks[OURS] < size).flatten(1).sum(1).clamp(max=max(1, int(CAP * images.tokens[0].numel())))
    for arm in ARMS:
        hidden = hide_listed(ranks[arm], ranks[arm] < size, last, budget)
        found[arm] = torch.where(hidden, drawn, images.tokens)
    return found


def drawn_codes(
    use: Int[Tensor, " k"], grid: tuple[int, ...], levels: Sequence[Level], seed: int, name: str
) -> Int[Tensor, "h w"]:
    """Codes drawn as often as they are used, one for every position of an image."""
    allowed = allowed_cells(levels, len(use))
    source, count = generator_for(seed, name, "taken out"), grid[0] * grid[1]
    if allowed is None:
        return torch.multinomial(use.double(), count, replacement=True, generator=source).view(grid)
    chances = (use[:, None, None] * allowed).flatten(1).T.double()
    return torch.multinomial(chances, 1, generator=source)[:, 0].view(grid)


def _first_cells(ranks: Int[Tensor, "b h w"], size: int, images: TokenBatch, seed: int) -> Bool[Tensor, "b h w"]:
    """Cells with listed codes, by place on the list, at most the cap."""
    listed = ranks < size
    budget = listed.flatten(1).sum(1).clamp(max=max(1, int(CAP * ranks[0].numel())))
    return hide_listed(ranks, listed, random_order(images.tokens, images.image_ids, seed), budget)


def _put(
    arm: str, concept: int, images: TokenBatch, free: Tensor, lists: Mapping[str, Tensor], known: Known, seed: int
) -> Int[Tensor, "b h w"]:
    """An arm's codes at the free positions: the one that stands there most often, or a random one of random codes."""
    codes = lists[arm][concept]
    codes = codes[codes >= 0]
    if not len(codes):
        return images.tokens
    if arm == RANDOM:
        put = torch.stack(
            [
                codes[torch.randint(len(codes), free.shape[1:], generator=generator_for(seed, name, concept, "put in"))]
                for name in images.image_ids
            ]
        )
    else:
        put = codes[known.counts[arm][concept, : len(codes)].argmax(0)].expand_as(images.tokens)
    return torch.where(free, put, images.tokens)


def load_gallery(study: Study) -> dict[str, Tensor]:
    """Images for the page, by "concept number:kind:before or arm"; empty before the stage has run."""
    path = study.path(STAGE) / GALLERY_FILE
    return load_file(path) if study.fingerprints(STAGE) and path.is_file() else {}
