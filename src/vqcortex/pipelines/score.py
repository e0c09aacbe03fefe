"""Importance of every position of every image, shard by shard."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vqcortex.attribution.protocol import Method, build_method, score_together
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.pipelines.loaded import PUBLISHED, Loaded, Scored, load_all, score_name, write_scores
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
    methods = _methods(settings, loaded)
    inputs = {"tokens": study.fingerprint("tokens"), "train": study.fingerprint("train")}
    key = stage_key("score", settings, ScoreSettings, inputs)

    def work(folder: Path) -> None:
        numbers = range(len(loaded.store.shards))
        one = partial(_score_shard, loaded=loaded, methods=methods, settings=settings, folder=folder)
        for _ in progress.track(engine.map(one, numbers), "score: shards", len(numbers)):
            pass

    run_stage(study, key, work)
    return study.path("score")


def _methods(settings: ScoreSettings, loaded: Loaded) -> dict[str, Method]:
    given = {"draws": settings.draws, "noise": settings.noise, "seed": settings.seed}
    baseline = mean_code(loaded)
    names = dict.fromkeys((settings.method, PUBLISHED))
    return {name: build_method(name, codebook=loaded.model.codebook, baseline=baseline, **given) for name in names}


def mean_code(loaded: Loaded) -> Tensor:
    """The average code of the store's images, by use: what stands for "nothing in particular here"."""
    from vqcortex.pipelines.loaded import EXPLAINED, code_counts

    counts = code_counts(loaded.store, EXPLAINED).sum(0).double()
    mean = (counts / counts.sum()) @ loaded.model.codebook.double().cpu()
    return mean.to(loaded.model.codebook)


def _score_shard(
    number: int, *, loaded: Loaded, methods: dict[str, Method], settings: ScoreSettings, folder: Path
) -> int:
    path = folder / score_name(number)
    if not path.exists():  # a killed run left whole shards only
        batch = loaded.store.read(number)
        parts = [
            _score_batch(batch.take(range(start, min(start + settings.batch, len(batch)))), loaded, methods)
            for start in range(0, len(batch), settings.batch)
        ]
        write_scores(_joined(parts), path)
    return number


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
