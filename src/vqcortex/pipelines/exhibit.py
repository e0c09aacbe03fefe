"""Gather what the page shows: pictures and tables, so that the page needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcortex.concepts.saliency import activation_map
from vqcortex.exhibit import ClusterExhibit, CodeExhibit, ConceptExhibit, Exhibit, SearchExhibit
from vqcortex.pipelines.concepts import load_maps
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, load_all, scored_shards
from vqcortex.pipelines.search import Found, load_found
from vqcortex.pipelines.study import STAGES, Study, command_of, read_json
from vqcortex.results import Table, load_table
from vqcortex.tokens.store import TokenBatch

CODES_SHOWN = 12
PATCHES = 4
CLUSTER_PATCHES = 8
SEARCH_IMAGES = 4
SWAPS_SHOWN = 6
LOOKED_AT = 4000  # images searched for occurrences of a code: enough for patches, and flat in the store's size


def gather(study: Study, examples: int, device: str, batch: int) -> Exhibit:
    """Everything a study's page shows.

    Args:
        study: With every stage before the report finished.
        examples: Images per concept.
        device: Where decoding happens.
        batch: Images per step.
    """
    loaded = load_all(study, device)
    tables = read_tables(study)
    seen = _seen(study, loaded, examples)
    finder = Patches(loaded, batch)
    return Exhibit(
        title=f"What the tokens of {loaded.model.name} mean",
        model=_model_facts(study, loaded),
        extractor=_extractor_facts(loaded),
        history=tuple(read_json(study.path("train") / "history.json")["epochs"]),
        concepts=tuple(_concept(study, loaded, one, seen, tables, finder) for one in range(len(loaded.concepts))),
        clusters=tuple(_clusters(tables["clusters"], load_maps(study), finder)),
        searches=tuple(_searches(load_found(study), loaded)),
        tables=tables,
        stages=tuple(_stages(study)),
        notes=tuple(_notes(tables)),
    )


def read_tables(study: Study) -> dict[str, Table]:
    """Every table of a study by its name."""
    paths = [path for path in sorted(study.folder.glob("*/*.json")) if path.with_suffix(".parquet").exists()]
    tables = {path.stem: load_table(path) for path in paths}
    verdicts = [tables[f"{level}_verdicts"] for level in ("image", "concept", "codebook")]
    rows = [row for table in verdicts for row in table.rows]
    return {**tables, "verdicts": Table("verdicts", verdicts[0].columns, rows)}


@torch.no_grad()
def pictures(loaded: Loaded, tokens: Tensor) -> np.ndarray:
    """Decoded grids as uint8 arrays (b, H, W, 3)."""
    device = loaded.model.codebook.device
    parts = [loaded.model.decode(loaded.model.embed(part.to(device))) for part in tokens.split(250)]
    return (torch.cat(parts) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


class Patches:
    """Finds where codes stand in a study's images and cuts their decoded neighbourhoods out.

    Args:
        loaded: Store and model.
        batch: Images per step.
    """

    def __init__(self, loaded: Loaded, batch: int) -> None:
        grids, labels = [], []
        taken = 0
        for part in loaded.store.batches(batch, pictures=False):
            grids.append(part.tokens)
            labels.append(part.concept)
            taken += len(part)
            if taken >= LOOKED_AT:
                break
        self._loaded = loaded
        self._tokens, self._labels = torch.cat(grids), torch.cat(labels)

    def of(self, code: int, count: int, concept: int | None = None) -> np.ndarray:
        """Up to `count` neighbourhoods of 3x3 positions with the code in the middle, (p, H', W', 3)."""
        here = self._tokens == code
        if concept is not None:
            here = here & (self._labels == concept)[:, None, None]
        found = here.nonzero()
        (h, w), (tall, wide) = self._loaded.model.grid, self._loaded.model.size
        p, q = tall // h, wide // w
        if not len(found):
            return np.zeros((0, 3 * p, 3 * q, 3), np.uint8)
        first = _first_per_image(found)[:count]
        images = pictures(self._loaded, self._tokens[first[:, 0]])
        padded = np.pad(images, ((0, 0), (p, p), (q, q), (0, 0)))
        cuts = [
            image[row * p : (row + 3) * p, column * q : (column + 3) * q]
            for image, (_, row, column) in zip(padded, first.tolist(), strict=True)
        ]
        return np.stack(cuts)


def _first_per_image(found: Tensor) -> Tensor:
    """The first occurrence in every image."""
    is_first = torch.ones(len(found), dtype=torch.bool)
    is_first[1:] = found[1:, 0] != found[:-1, 0]
    return found[is_first]


def _seen(study: Study, loaded: Loaded, examples: int) -> dict[int, tuple[TokenBatch, Tensor]]:
    """The first test images of every concept with their importance."""
    method = study.record("score")["key"]["settings"]["method"]
    rows: dict[int, list[tuple[TokenBatch, Tensor]]] = {one: [] for one in range(len(loaded.concepts))}
    for batch, scored in scored_shards(study, loaded.store, (REPORTED,)):
        for row, concept in enumerate(batch.concept.tolist()):
            if len(rows[concept]) < examples:
                rows[concept].append((batch.take([row]), scored.importance[method][[row]]))
        if all(len(one) >= examples for one in rows.values()):
            break
    from vqcortex.tokens.shard import joined

    return {
        concept: (joined([one for one, _ in found]), torch.cat([maps for _, maps in found]))
        for concept, found in rows.items()
        if found
    }


def _concept(
    study: Study,
    loaded: Loaded,
    concept: int,
    seen: Mapping[int, tuple[TokenBatch, Tensor]],
    tables: Mapping[str, Table],
    finder: Patches,
) -> ConceptExhibit:
    name = loaded.concepts[concept]
    maps = load_maps(study)
    batch, importance = seen[concept]
    keep = study.record("concepts")["key"]["settings"]["keep"]
    tokens = tables["concept_tokens"].where(concept=name, n=keep)[:CODES_SHOWN]
    swaps = tables["traversal_cells"].where(concept=name)[:SWAPS_SHOWN]
    return ConceptExhibit(
        name=name,
        image_ids=batch.image_ids,
        images=pictures(loaded, batch.tokens),
        importance=activation_map(importance, signed=True).float().numpy(),
        activation=maps["mean"][concept].numpy(),
        activation_error=maps["error"][concept].numpy(),
        images_averaged=int(maps["images"][concept]),
        codes=tuple(_code(row, tables["two_scale"], finder, concept) for row in tokens),
        best_swaps=tuple(swaps),
    )


def _code(row: Mapping[str, Any], scales: Table, finder: Patches, concept: int) -> CodeExhibit:
    code = row["code"]
    both = scales.where(concept=row["concept"], code=code)
    numbers = {key: row[key] for key in ("count", "share", "lift", "frequency")}
    numbers |= {"low": row["share_low"], "high": row["share_high"]}
    numbers |= {key: both[0][key] for key in ("local_rank", "global_rank", "effect")} if both else {}
    known = {key: float(value) for key, value in numbers.items() if value is not None}
    return CodeExhibit(code=code, numbers=known, patches=finder.of(code, PATCHES, concept))


def _clusters(table: Table, maps: Mapping[str, Tensor], finder: Patches) -> list[ClusterExhibit]:
    found = []
    for row in table.rows:
        codes = row["codes"]
        cut = [finder.of(code, 1) for code in codes[:CLUSTER_PATCHES]]
        found.append(
            ClusterExhibit(
                number=row["cluster"],
                codes=tuple(codes),
                stability=row["stability"],
                profile=maps["profile"][row["cluster"]].float().numpy(),
                patches=np.concatenate(cut),
            )
        )
    return found


def _searches(found: Found, loaded: Loaded) -> list[SearchExhibit]:
    pairs = list(dict.fromkeys(zip(found.source.tolist(), found.target.tolist(), strict=True)))
    return [_search(found, loaded, source, target) for source, target in pairs]


def _search(found: Found, loaded: Loaded, source: int, target: int) -> SearchExhibit:
    rows = ((found.source == source) & (found.target == target)).nonzero()[:SEARCH_IMAGES, 0]
    return SearchExhibit(
        source=loaded.concepts[source],
        target=loaded.concepts[target],
        free=found.free.numpy(),
        before=pictures(loaded, found.start[rows]),
        after={name: pictures(loaded, grids[rows, 0]) for name, grids in found.tokens.items()}
        | _scratch(found, loaded, target),
    )


def _scratch(found: Found, loaded: Loaded, target: int) -> dict[str, np.ndarray]:
    """Whole grids searched from nothing, shown beside the edits."""
    if found.scratch is None:
        return {}
    return {"from_scratch": pictures(loaded, found.scratch[target][:SEARCH_IMAGES])}


def _model_facts(study: Study, loaded: Loaded) -> dict[str, str]:
    manifest = loaded.store.manifest
    (h, w), (tall, wide) = loaded.model.grid, loaded.model.size
    way = manifest.origin.get("way", "unknown")
    source = manifest.origin.get("source") or loaded.model.name
    return {
        "name": loaded.model.name,
        "identity": manifest.identity[:16],
        "codes": f"{manifest.k:,} of {manifest.d} numbers",
        "grid": f"{h}×{w} tokens for {tall}×{wide} pixels",
        "images": f"{len(loaded.store):,}",
        "made by": f"{way} ({source})",
        "explained with": f"{sum(loaded.store.count(split) for split in EXPLAINED):,} training and validation images",
        "judged on": f"{loaded.store.count(REPORTED):,} test images",
        "codes in use": f"{_live(loaded):,}",
        "seed": str(manifest.seed),
    }


def _live(loaded: Loaded) -> int:
    from vqcortex.pipelines.loaded import code_counts

    return int((code_counts(loaded.store, (*EXPLAINED, REPORTED)).sum(0) > 0).sum())


def _extractor_facts(loaded: Loaded) -> dict[str, str]:
    metrics = loaded.trained.metrics
    facts = {"architecture": loaded.trained.extractor, "parameters": f"{metrics['parameters']:,}"}
    tops = [int(name[3:]) for name in metrics if name.startswith("top")]
    facts |= {f"accuracy, top {n}": f"{metrics[f'top{n}']:.1%}" for n in sorted(tops)}
    facts["epochs"] = f"{metrics['epochs']}, best {metrics['best_epoch']}"
    facts["temperature"] = f"{loaded.trained.temperature:.3f}"
    facts |= {name.replace("_", " "): f"{metrics[name]:.4f}" for name in metrics if "ece" in name or "entropy" in name}
    return facts


def _stages(study: Study) -> list[dict[str, Any]]:
    found = []
    for stage in STAGES:
        if (study.path(stage) / "stage.json").exists() and stage != "report":
            record = study.record(stage)
            settings = record["key"]["settings"]
            found.append(
                {
                    "stage": stage, "command": f"{command_of(stage, settings)} --out STUDY",
                    "settings": settings, "versions": record["versions"],
                }
            )  # fmt: skip
    return found


def _notes(tables: Mapping[str, Table]) -> list[str]:
    """Sentences the reader must see, besides the losses that the page itself reads off the verdicts."""
    notes = []
    scratch = tables["scratch"].rows
    if scratch:
        mean = sum(row["probability"] for row in scratch) / len(scratch)
        notes.append(
            f"Grids searched from scratch convince the judges with probability {mean:.2f} on average: "
            "low means that the search finds patterns that fool the extractor rather than the concept."
        )
    return notes
