"""From importance to concepts: their tokens, where they sit, and which codes go together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor

from vqcortex.concepts.clusters import CodeClusters, cluster_codes
from vqcortex.concepts.pooling import PoolCounts, all_concept_tokens, best_tokens, count_image_tokens, tokens_table
from vqcortex.concepts.saliency import ConceptMaps, activation_map, sum_maps
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError
from vqcortex.pipelines.loaded import EXPLAINED, Loaded, load_all, scored_shard
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import ConceptsSettings
from vqcortex.pipelines.stamps import STAGE as TRUST
from vqcortex.pipelines.stamps import check_trust, trust_of
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.results import Column, Table, Trust, save_table, stamped
from vqcortex.tokens.store import TokenStore
from vqcortex.weights import save_weights


@final
@dataclass(frozen=True, slots=True)
class Pooled:
    """What one shard adds to the concepts.

    Args:
        counts: Of codes where they matter.
        maps: Sums of activation maps.
        best: Codes at each image's best positions, (b, n), int32.
        labels: Concepts of the images, (b,).
    """

    counts: PoolCounts
    maps: ConceptMaps
    best: Tensor
    labels: Tensor


def pool_concepts(settings: ConceptsSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Pool the scores of a study's training and validation images into concepts.

    Args:
        settings: How to pool.
        progress: Told how far it is.
        engine: Where shards are counted; the clusters are found in this process.
    Returns:
        Folder with the tables concept_tokens and clusters, and maps.safetensors: the mean activation map of each
        concept (mean, error: (c, h, w); images: (c,)) and the cluster of each code (labels: (k,)).
    Raises:
        StudyError: The scores are not there yet.
        ConfigError: More positions than the grid has, or a concept without images.
        TrustError: Trust is required, and it is low or unknown.
    """
    settings.check()
    study = Study(settings.out)
    check_trust(study, settings.require_trust)
    loaded = load_all(study, settings.device)
    h, w = loaded.store.manifest.grid
    if max(settings.positions) > h * w:
        raise ConfigError(
            f"positions={max(settings.positions)} is more than the {h}x{w} grid holds; "
            f"give 1 to {h * w} with --positions"
        )
    method = study.record("score")["key"]["settings"]["method"]
    inputs = {name: study.fingerprint(name) for name in ("tokens", "score")} | study.fingerprints(TRUST)
    trust = trust_of(study, edited=False)  # edits are made with the concepts, so they come later
    key = stage_key("concepts", settings, ConceptsSettings, inputs)
    pool = partial(
        _pool_shard, scores=study.path("score").absolute(), store=loaded.store, method=method, settings=settings
    )

    def work(folder: Path) -> None:
        numbers = range(len(loaded.store.shards))
        shards = progress.track(engine.map(pool, numbers), "concepts: shards pooled", len(numbers))
        _write(folder, settings, loaded, trust, (one for one in shards if one is not None))

    run_stage(study, key, work)
    return study.path("concepts")


def _pool_shard(
    number: int, *, scores: Path, store: TokenStore, method: str, settings: ConceptsSettings
) -> Pooled | None:
    """What a shard adds; None: none of its images explains."""
    batch, scored = scored_shard(number, scores, store, EXPLAINED)
    if not len(batch):
        return None
    k, c = store.manifest.k, len(store.manifest.concepts)
    importance = scored.importance[method]
    return Pooled(
        counts=count_image_tokens(
            batch.tokens, importance, batch.concept, k=k, concepts=c, positions=settings.positions
        ),
        maps=sum_maps(activation_map(importance, signed=True), batch.concept, c),
        # Codes of the n best positions: the only thing here that grows with the images.
        best=best_tokens(batch.tokens, importance, settings.keep).to(torch.int32),
        labels=batch.concept,
    )


def _write(folder: Path, settings: ConceptsSettings, loaded: Loaded, trust: Trust, shards: Iterable[Pooled]) -> None:
    k, c = loaded.store.manifest.k, len(loaded.concepts)
    pool: PoolCounts | None = None
    maps: ConceptMaps | None = None
    best: list[Tensor] = []
    labels: list[Tensor] = []
    for one in shards:
        pool = one.counts if pool is None else pool + one.counts
        maps = one.maps if maps is None else maps + one.maps
        best.append(one.best)
        labels.append(one.labels)
    if pool is None or maps is None:
        raise ConfigError("no training or validation images were scored; make more tokens with --per-concept")
    check_images(pool, loaded.concepts)
    found = [one for n in settings.positions for one in all_concept_tokens(pool, n, keep=settings.top)]
    save_table(stamped(tokens_table(found, loaded.concepts), trust), folder)
    codes = torch.cat(best).long()
    clusters = cluster_codes(
        codes, torch.cat(labels), k=k, concepts=c, seed=settings.seed, resamples=settings.resamples,
        clusters=min(settings.clusters, len(codes.unique())),
    )  # fmt: skip
    save_table(_clusters_table(clusters, codes, loaded.concepts), folder)
    save_weights(
        {
            "mean": maps.mean.float(), "error": maps.error.nan_to_num().float(), "images": maps.images,
            "labels": clusters.labels, "profile": clusters.profile.float(),
        },
        folder / "maps.safetensors",
    )  # fmt: skip


def check_images(pool: PoolCounts, concepts: tuple[str, ...]) -> None:
    """Return quietly if every concept has images to pool."""
    for name, count in zip(concepts, pool.images.tolist(), strict=True):
        if not count:
            raise ConfigError(f"concept {name!r} has no images to pool; make tokens of it, or leave it out")


CLUSTER_COLUMNS = {
    "cluster": Column(unit="number, from 0", meaning="The largest cluster is 0."),
    "codes": Column(unit="code ids", meaning="Members, most often an image token first."),
    "size": Column(unit="codes", meaning="Number of members."),
    "stability": Column(
        unit="Jaccard, 0 to 1",
        meaning="Mean overlap with the best match over bootstrap resamples of images; above 0.75 is stable.",
        better="higher",
    ),
    "top_concept": Column(unit="name", meaning="Concept for which its codes matter most."),
    "top_share": Column(unit="share, 0 to 1", meaning="Share of that concept in the cluster's mean profile."),
}


def _clusters_table(found: CodeClusters, codes: Tensor, concepts: tuple[str, ...]) -> Table:
    uses = codes.flatten().bincount(minlength=len(found.labels))
    rows: list[dict[str, Any]] = []
    for number in range(len(found.size)):
        members = (found.labels == number).nonzero()[:, 0]
        order = uses[members].argsort(descending=True, stable=True)
        top = int(found.top_concept[number])
        rows.append(
            {
                "cluster": number,
                "codes": members[order].tolist(),
                "size": len(members),
                "stability": float(found.stability[number]),
                "top_concept": concepts[top],
                "top_share": float(found.profile[number, top]),
            }
        )
    return Table("clusters", CLUSTER_COLUMNS, rows)


def concept_lists(study: Study, concepts: tuple[str, ...], keep: int) -> Tensor:
    """Concept tokens of a study as a table of codes (c, m), best first, padded with -1."""
    table = study.table("concept_tokens")
    lists = [[row["code"] for row in table.where(concept=name, n=keep)] for name in concepts]
    width = max(map(len, lists))
    return torch.tensor([codes + [-1] * (width - len(codes)) for codes in lists])


def load_maps(study: Study) -> dict[str, Tensor]:
    """The arrays beside the tables: mean, error, images, labels, profile."""
    study.record("concepts")
    return load_file(study.path("concepts") / "maps.safetensors")
