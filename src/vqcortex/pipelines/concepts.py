"""From importance to concepts: their tokens, where they sit, and which codes go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vqcortex.concepts.clusters import CodeClusters, cluster_codes
from vqcortex.concepts.pooling import PoolCounts, all_concept_tokens, best_tokens, count_image_tokens, tokens_table
from vqcortex.concepts.saliency import ConceptMaps, activation_map, sum_maps
from vqcortex.errors import ConfigError
from vqcortex.pipelines.loaded import EXPLAINED, Loaded, load_all, scored_shards
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import ConceptsSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.results import Column, Table, save_table
from vqcortex.weights import save_weights


def pool_concepts(settings: ConceptsSettings, *, progress: Progress = QUIET) -> Path:
    """Pool the scores of a study's training and validation images into concepts.

    Returns:
        Folder with the tables concept_tokens and clusters, and maps.safetensors: the mean activation map of each
        concept (mean, error: (c, h, w); images: (c,)) and the cluster of each code (labels: (k,)).
    Raises:
        StudyError: The scores are not there yet.
        ConfigError: More positions than the grid has, or a concept without images.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    h, w = loaded.store.manifest.grid
    if max(settings.positions) > h * w:
        raise ConfigError(
            f"positions={max(settings.positions)} is more than the {h}x{w} grid holds; "
            f"give 1 to {h * w} with --positions"
        )
    method = study.record("score")["key"]["settings"]["method"]
    inputs = {"tokens": study.fingerprint("tokens"), "score": study.fingerprint("score")}
    key = stage_key("concepts", settings, ConceptsSettings, inputs)
    run_stage(study, key, lambda folder: _pool(folder, settings, study, loaded, method, progress))
    return study.path("concepts")


def _pool(
    folder: Path, settings: ConceptsSettings, study: Study, loaded: Loaded, method: str, progress: Progress
) -> None:
    k, c = loaded.store.manifest.k, len(loaded.concepts)
    pool: PoolCounts | None = None
    maps: ConceptMaps | None = None
    best: list[Tensor] = []
    labels: list[Tensor] = []
    shards = scored_shards(study, loaded.store, EXPLAINED)
    for batch, scored in progress.track(shards, "concepts: shards pooled", len(loaded.store.shards)):
        if not len(batch):
            continue
        importance = scored.importance[method]
        counts = count_image_tokens(
            batch.tokens, importance, batch.concept, k=k, concepts=c, positions=settings.positions
        )
        summed = sum_maps(activation_map(importance, signed=True), batch.concept, c)
        pool = counts if pool is None else pool + counts
        maps = summed if maps is None else maps + summed
        # 16-bit codes of the n best positions: the only thing here that grows with the images.
        best.append(best_tokens(batch.tokens, importance, settings.keep).to(torch.int32))
        labels.append(batch.concept)
    if pool is None or maps is None:
        raise ConfigError("no training or validation images were scored; make more tokens with --per-concept")
    check_images(pool, loaded.concepts)
    found = [one for n in settings.positions for one in all_concept_tokens(pool, n, keep=settings.top)]
    save_table(tokens_table(found, loaded.concepts), folder)
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
