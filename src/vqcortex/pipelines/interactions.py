"""Which codes of a concept matter together, on test images, by every extractor of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vqcortex.adapters.protocol import Adapter
from vqcortex.attribution.baselines import Baseline, chosen_baseline
from vqcortex.attribution.insertion import inserted_values, typical_places
from vqcortex.attribution.interactions import (
    Together,
    control_positions,
    corners_of,
    group_effect,
    measure_together,
    pairs_of,
    positions_of,
    synergy,
)
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.pipelines.concepts import concept_lists
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, carry, code_counts, load_all
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import InteractionsSettings
from vqcortex.pipelines.stamps import check_trust, stamp_of
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.pipelines.together import INSERTION, REMOVAL, GroupValues, PairValues, Strictness, group_table, pair_table
from vqcortex.results import save_table, stamped
from vqcortex.tokens.shard import joined
from vqcortex.tokens.store import TokenBatch, TokenStore

CONTROLS = 2  # draws of random codes per image, averaged over
BACKGROUNDS = 4  # images looked through for those that hold neither code, per image wanted


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A concept, its codes, and the images to ask of.

    Args:
        concept: Its number.
        codes: Its tokens, best first, at least 2.
        counts: How often each stands at each position of the concept's explained images, (m, h, w).
        holding: How many of those images hold it, (m,).
        images: Test images of the concept.
        others: Test images of the other concepts.
    """

    concept: int
    codes: tuple[int, ...]
    counts: Tensor
    holding: Tensor
    images: TokenBatch
    others: TokenBatch


Found = tuple[list[PairValues], GroupValues]


def interactions(settings: InteractionsSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Test which of a concept's tokens matter together, in pairs and as a whole.

    A pair is taken out of the concept's images that hold both, and put into images of other concepts that hold neither,
    so that codes which exclude each other are tested too. A verdict needs every extractor of the study to agree.

    Args:
        settings: How many codes and images, and what stands for a code that is taken out.
        progress: Told how far it is.
        engine: Where concepts are measured; tests and intervals are made in this process.
    Returns:
        Folder with the tables interactions (one row per pair and form) and interaction_groups (one per concept).
    Raises:
        StudyError: The concepts are not pooled yet.
    """
    settings.check()
    study = Study(settings.out)
    check_trust(study, settings.require_trust)
    loaded = load_all(study, settings.device)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "train", "concepts")}
    key = stage_key("interactions", settings, InteractionsSettings, inputs)
    carried = carry(study, settings.device, loaded)

    def work(folder: Path) -> None:
        keep = study.record("concepts")["key"]["settings"]["keep"]
        codes = concept_lists(study, loaded.concepts, keep)[:, : settings.together]
        frequency = code_counts(loaded.store, EXPLAINED, engine).sum(0)
        baseline = chosen_baseline(
            "resampled" if settings.together_draws else "mean",
            loaded.model.codebook, frequency, settings.together_draws, settings.seed,
        )  # fmt: skip
        asked = questions(loaded.store, codes, settings.together_images, settings.batch, engine)
        measure = partial(_measure_concept, carried=carried, baseline=baseline, settings=settings)
        made = list(progress.track(engine.map(measure, asked), "interactions: concepts", len(codes)))
        pairs, groups = [pair for found, _ in made for pair in found], [group for _, group in made]
        strictness = Strictness(alpha=settings.together_alpha, seed=settings.seed)
        for table in (
            pair_table(pairs, loaded.concepts, strictness),
            group_table(groups, loaded.concepts, strictness),
        ):
            save_table(stamped(table, stamp_of(study)), folder)

    run_stage(study, key, work)
    return study.path("interactions")


def questions(
    store: TokenStore, codes: Tensor, most: int, batch: int, engine: Engine, least: int = 2
) -> Iterator[Question]:
    """One for every concept that has `least` codes and an image, and images beside it."""
    counts, holding = torch.zeros(*codes.shape, *store.manifest.grid, dtype=torch.int64), torch.zeros_like(codes)
    for places, images in engine.map(partial(places_of_shard, store=store, codes=codes), range(len(store.shards))):
        counts += places
        holding += images
    seen = first_test_images(store, most, batch)
    place = torch.cat([torch.arange(int(one)) for one in seen.concept.bincount(minlength=len(codes))])
    turn = place[seen.concept.argsort(stable=True).argsort()]  # each image's place in its concept
    # In turns, so that the first of them come from all concepts alike.
    order = (turn * len(codes) + seen.concept).argsort()
    for concept, row in enumerate(codes.tolist()):
        mine = tuple(code for code in row if code >= 0)
        own = (seen.concept == concept).nonzero()[:, 0].tolist()
        others = order[seen.concept[order] != concept][: BACKGROUNDS * most].tolist()
        if len(mine) >= least and own and others:
            yield Question(
                concept=concept, codes=mine, counts=counts[concept, : len(mine)],
                holding=holding[concept, : len(mine)], images=seen.take(own),
                others=seen.take(others),
            )  # fmt: skip


def places_of_shard(number: int, *, store: TokenStore, codes: Tensor) -> tuple[Tensor, Tensor]:
    """How often a concept's codes stand where in its explained images (c, m, h, w), and how many hold them (c, m)."""
    batch = store.read(number, pictures=False)
    counts, holding = torch.zeros(*codes.shape, *store.manifest.grid, dtype=torch.int64), torch.zeros_like(codes)
    explained = torch.tensor([split in EXPLAINED for split in batch.split])
    for concept in batch.concept[explained].unique().tolist():
        tokens = batch.tokens[explained & (batch.concept == concept)]
        here = tokens[:, None] == codes[concept][None, :, None, None]
        counts[concept], holding[concept] = here.sum(0), here.flatten(2).any(2).sum(0)
    return counts, holding


def first_test_images(store: TokenStore, most: int, batch: int) -> TokenBatch:
    """The first test images of every concept, at most so many of each."""
    taken, parts = [0] * len(store.manifest.concepts), []
    for part in store.batches(batch, split=REPORTED, pictures=False):
        rows = []
        for row, concept in enumerate(part.concept.tolist()):
            if taken[concept] < most:
                taken[concept] += 1
                rows.append(row)
        parts.append(part.take(rows))
        if min(taken) >= most:
            break
    return joined(parts)


def _measure_concept(
    asked: Question, *, carried: Carried[Loaded], baseline: Baseline, settings: InteractionsSettings
) -> Found:
    loaded = carried.value
    extractors = [one.module for one in loaded.members.values()]
    return measure_question(asked, loaded.model, extractors, baseline, settings)


def measure_question(
    asked: Question, model: Adapter, extractors: Sequence[nn.Module], baseline: Baseline, settings: InteractionsSettings
) -> Found:
    """What the codes of a concept do in pairs, taken out and put in, and all together, by every extractor.

    Args:
        asked: The concept, its codes and the images.
        model: Whose codes they are.
        extractors: The study's own first.
        baseline: What stands where a code was taken out.
        settings: Images per pair, seed and batch.
    """
    removed = _removed(asked, model, extractors, baseline, settings)
    pairs = [*_removed_pairs(asked, removed), *_inserted_pairs(asked, model, extractors, settings)]
    return pairs, _group(asked, removed, model, extractors, baseline, settings)


def _removed(
    asked: Question, model: Adapter, extractors: Sequence[nn.Module], baseline: Baseline, settings: InteractionsSettings
) -> list[Together]:
    """What the codes do in the concept's own images, by every extractor."""
    device, images = model.codebook.device, asked.images
    embedded = model.embed(images.tokens.to(device))
    players = positions_of(images.tokens, asked.codes, model.k)
    return [
        measure_together(
            one, embedded, images.concept, images.image_ids, players, baseline=baseline, seed=settings.seed,
            at_once=settings.batch,
        )
        for one in extractors
    ]  # fmt: skip


def _removed_pairs(asked: Question, removed: list[Together]) -> Iterator[PairValues]:
    for number, (a, b) in enumerate(pairs_of(len(asked.codes))):
        both = removed[0].present[:, a] & removed[0].present[:, b]
        yield PairValues(
            concept=asked.concept, codes=(asked.codes[a], asked.codes[b]), form=REMOVAL,
            values=torch.stack([one.pairs[both, number] for one in removed]),
            interaction=removed[0].interaction[both, number],
        )  # fmt: skip


def _inserted_pairs(
    asked: Question, model: Adapter, extractors: Sequence[nn.Module], settings: InteractionsSettings
) -> Iterator[PairValues]:
    """What the codes do where they usually stand, in images that hold neither of a pair, by every extractor."""
    found: dict[tuple[int, int], Tensor] = {}
    usual = (asked.counts.sum((1, 2)) / asked.holding.clamp(min=1)).round().clamp(min=1).long()
    places = typical_places(asked.counts, usual.tolist())
    placed = places.flatten(1).any(1)
    codes = torch.tensor(asked.codes)[placed]
    if len(codes) > 1:
        fits = _fitting(asked.others.tokens, codes, settings.together_images)
        values = _inserted(asked, codes, places[placed], fits, model, extractors, settings)
        for number, (a, b) in enumerate(pairs_of(len(codes))):
            found[int(codes[a]), int(codes[b])] = values[:, fits[fits.any(1), number], number]
    for a, b in pairs_of(len(asked.codes)):
        pair = (asked.codes[a], asked.codes[b])
        values = found.get(pair, torch.zeros(len(extractors), 0, 4, dtype=torch.float64))
        yield PairValues(
            concept=asked.concept, codes=pair, form=INSERTION, values=values, interaction=synergy(values[0])
        )


def _fitting(tokens: Tensor, codes: Tensor, most: int) -> Bool[Tensor, "b p"]:
    """Whether an image is among the first `most` that hold neither code of a pair."""
    lacks = ~(tokens[:, None] == codes[None, :, None, None]).flatten(2).any(2)
    first, second = torch.tensor(pairs_of(len(codes))).unbind(1)
    neither = lacks[:, first] & lacks[:, second]
    return neither & (neither.cumsum(0) <= most)


def _inserted(
    asked: Question,
    codes: Tensor,
    places: Tensor,
    fits: Tensor,
    model: Adapter,
    extractors: Sequence[nn.Module],
    settings: InteractionsSettings,
) -> Float[Tensor, "e b p 4"]:
    """Logits with neither, one, the other and both of every pair, in the images that fit any; 0 where they do not."""
    rows, device = fits.any(1), model.codebook.device
    asks = corners_of(len(codes)) * fits[rows][..., None]
    if not len(asks):
        return torch.zeros(len(extractors), 0, asks.shape[1], 4, dtype=torch.float64)
    images = asked.others.take(rows.nonzero()[:, 0].tolist())
    embedded = model.embed(images.tokens.to(device))
    put, concept = model.codebook[codes.to(device)], torch.full((len(images),), asked.concept)
    found = [
        inserted_values(one, embedded, concept, images.image_ids, put, places, asks.flatten(1), at_once=settings.batch)
        for one in extractors
    ]
    return torch.stack(found).unflatten(2, (-1, 4))


def _group(
    asked: Question,
    removed: list[Together],
    model: Adapter,
    extractors: Sequence[nn.Module],
    baseline: Baseline,
    settings: InteractionsSettings,
) -> GroupValues:
    """All codes together, beside as many random codes of the same image."""
    images, device, k = asked.images, model.codebook.device, model.k
    present, players = removed[0].present, positions_of(asked.images.tokens, asked.codes, k)
    controls = [
        control_positions(images.tokens, asked.codes, images.image_ids, seed=settings.seed, draw=draw)
        for draw in range(CONTROLS)
    ]
    # An image without as many other codes has no control; every draw finds the same number.
    enough = controls[0].flatten(2).any(2).sum(1) == present.sum(1)
    rows = ((present.sum(1) > 1) & enough).nonzero()[:, 0]
    part, values = images.take(rows.tolist()), torch.zeros(len(removed), len(rows), 4, dtype=torch.float64)
    embedded = model.embed(part.tokens.to(device)).repeat(CONTROLS, 1, 1, 1)
    drawn, concept = torch.cat([one[rows] for one in controls]), part.concept.repeat(CONTROLS)
    for number, (ours, one) in enumerate(zip(removed, extractors, strict=True)):
        values[number, :, :2] = torch.stack([ours.joint, ours.alone.sum(1)], 1)[rows]
        if len(rows):
            names = part.image_ids * CONTROLS
            beside = group_effect(one, embedded, concept, names, drawn, baseline=baseline, at_once=settings.batch)
            values[number, :, 2:] = beside.unflatten(0, (CONTROLS, -1)).mean(0)
    held = [present[:, place] for place in range(len(asked.codes))]
    return GroupValues(
        concept=asked.concept, codes=asked.codes, values=values,
        shapley=tuple(
            float(removed[0].shapley[has, place].mean()) if bool(has.any()) else None for place, has in enumerate(held)
        ),
        cells=_cells(players[rows]), control_cells=_cells(drawn),
    )  # fmt: skip


def _cells(players: Bool[Tensor, "b m h w"]) -> float:
    """Positions that belong to players, mean over images; 0 without images."""
    return float(players.flatten(1).sum(1).double().mean()) if len(players) else 0.0
