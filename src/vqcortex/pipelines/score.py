"""Importance of every position of every image, shard by shard."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqcortex.attribution.protocol import Method, build_method, score_together
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.pipelines.loaded import (
    EXPLAINED,
    PUBLISHED,
    Loaded,
    Scored,
    carry,
    code_counts,
    load_all,
    score_name,
    write_scores,
)
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import ScoreSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.tokens.store import TokenBatch


def score(
    settings: ScoreSettings,
    *,
    progress: Progress = QUIET,
    engine: Engine = SERIAL,
) -> Path:
    """Score a study's images with the chosen method, and with the published one beside it.

    Args:
        settings: How to score.
        progress: Told how far it is.
        engine: Where shards are scored.
    Returns:
        Folder of score shards, one Parquet file per token shard: image_id, importance:METHOD as a list of h*w
        float32 per method, and the extractor's probability of the image's concept.
    Raises:
        StudyError: Tokens or extractor are not there yet.
        UnknownName: No such method.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    methods = _methods(settings, loaded, engine)
    inputs = {"tokens": study.fingerprint("tokens"), "train": study.fingerprint("train")}
    key = stage_key("score", settings, ScoreSettings, inputs)
    carried = carry(study, settings.device, loaded)

    def work(folder: Path) -> None:
        paths = {number: folder / score_name(number) for number in range(len(loaded.store.shards))}
        todo = [number for number, path in paths.items() if not path.exists()]  # a killed run left whole shards only
        made = engine.map(partial(_score_shard, carried=carried, methods=methods, batch=settings.batch), todo)
        for number, scored in progress.track(zip(todo, made, strict=True), "score: shards", len(todo)):
            write_scores(scored, paths[number])

    run_stage(study, key, work)
    return study.path("score")


def _methods(settings: ScoreSettings, loaded: Loaded, engine: Engine) -> dict[str, Method]:
    given: dict[str, Any] = {"draws": settings.draws, "noise": settings.noise, "seed": settings.seed}
    baseline = mean_code(loaded, engine)
    names = dict.fromkeys((settings.method, PUBLISHED))
    return {name: build_method(name, codebook=loaded.model.codebook, baseline=baseline, **given) for name in names}


def mean_code(loaded: Loaded, engine: Engine = SERIAL) -> Tensor:
    """The average code of the store's images, by use: what stands for "nothing in particular here"."""
    counts = code_counts(loaded.store, EXPLAINED, engine).sum(0).double()
    mean = (counts / counts.sum()) @ loaded.model.codebook.double().cpu()
    return mean.to(loaded.model.codebook)


def _score_shard(number: int, *, carried: Carried[Loaded], methods: dict[str, Method], batch: int) -> Scored:
    images = carried.value.store.read(number, pictures=False)
    starts = range(0, len(images), batch)
    parts = [images.take(range(start, min(start + batch, len(images)))) for start in starts]
    return _joined([_score_batch(part, carried.value, methods) for part in parts])


def _score_batch(batch: TokenBatch, loaded: Loaded, methods: dict[str, Method]) -> Scored:
    device = loaded.model.codebook.device
    embedded = loaded.model.embed(batch.tokens.to(device))
    concept = batch.concept.to(device)
    extractor = loaded.trained.module
    with torch.no_grad():
        logits = extractor(embedded) / loaded.trained.temperature
    scores = score_together(methods, extractor, embedded, concept, batch.image_ids)
    return Scored(
        image_ids=batch.image_ids,
        importance={name: one.detach().cpu() for name, one in scores.items()},
        probability=logits.softmax(1).gather(1, concept[:, None])[:, 0].cpu(),
    )


def _joined(parts: list[Scored]) -> Scored:
    return Scored(
        image_ids=tuple(name for part in parts for name in part.image_ids),
        importance={name: torch.cat([part.importance[name] for part in parts]) for name in parts[0].importance},
        probability=torch.cat([part.probability for part in parts]),
    )
