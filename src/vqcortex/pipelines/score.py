"""Importance of every position of every image, shard by shard."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.pipelines.loaded import (
    PUBLISHED,
    Loaded,
    Scored,
    carry,
    load_all,
    score_name,
    write_scores,
)
from vqcortex.pipelines.methods import MethodPlan, plan_methods, score_methods
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import ScoreSettings
from vqcortex.pipelines.stamps import check_trust
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
        TrustError: Trust is required, and it is low or unknown.
    """
    settings.check()
    study = Study(settings.out)
    check_trust(study, settings.require_trust, settings.method)
    loaded = load_all(study, settings.device)
    plan = plan_methods((settings.method, PUBLISHED), settings, loaded, engine)
    inputs = {"tokens": study.fingerprint("tokens"), "train": study.fingerprint("train")}
    key = stage_key("score", settings, ScoreSettings, inputs)
    carried = carry(study, settings.device, loaded)

    def work(folder: Path) -> None:
        paths = {number: folder / score_name(number) for number in range(len(loaded.store.shards))}
        todo = [number for number, path in paths.items() if not path.exists()]  # a killed run left whole shards only
        made = engine.map(partial(_score_shard, carried=carried, plan=plan, batch=settings.batch), todo)
        for number, scored in progress.track(zip(todo, made, strict=True), "score: shards", len(todo)):
            write_scores(scored, paths[number])

    run_stage(study, key, work)
    return study.path("score")


def _score_shard(number: int, *, carried: Carried[Loaded], plan: MethodPlan, batch: int) -> Scored:
    images = carried.value.store.read(number, pictures=False)
    starts = range(0, len(images), batch)
    parts = [images.take(range(start, min(start + batch, len(images)))) for start in starts]
    return _joined([_score_batch(part, carried.value, plan) for part in parts])


def _score_batch(batch: TokenBatch, loaded: Loaded, plan: MethodPlan) -> Scored:
    scores = score_methods(plan, loaded, batch.tokens, batch.concept, batch.image_ids)
    with torch.no_grad():
        logits = loaded.trained.module(loaded.model.embed(batch.tokens.to(loaded.model.codebook.device)))
    probability = (logits / loaded.trained.temperature).softmax(1).cpu()
    return Scored(
        image_ids=batch.image_ids,
        importance={name: one.detach().cpu() for name, one in scores.items()},
        probability=probability.gather(1, batch.concept[:, None])[:, 0],
    )


def _joined(parts: list[Scored]) -> Scored:
    return Scored(
        image_ids=tuple(name for part in parts for name in part.image_ids),
        importance={name: torch.cat([part.importance[name] for part in parts]) for name in parts[0].importance},
        probability=torch.cat([part.probability for part in parts]),
    )
