"""Gather what the page shows: pictures and tables, so that the page needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqcortex.concepts.saliency import activation_map
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.exhibit import ClusterExhibit, CodeExhibit, ConceptExhibit, EditExhibit, Exhibit, SearchExhibit
from vqcortex.pipelines.concepts import load_maps
from vqcortex.pipelines.edit import RECORD as EDIT_RECORD
from vqcortex.pipelines.edit import edit_stages, read_record, told_of
from vqcortex.pipelines.editability import load_gallery
from vqcortex.pipelines.judges import STAGE as JUDGES
from vqcortex.pipelines.judges import is_judged_by_own, judge_facts, judge_notes
from vqcortex.pipelines.levels import finest_grid, patch_of, picture_error, picture_map
from vqcortex.pipelines.loaded import (
    EXPLAINED,
    REPORTED,
    Loaded,
    carry,
    code_counts,
    load_all,
    load_at,
    scored_shards,
)
from vqcortex.pipelines.search import Found, load_found
from vqcortex.pipelines.study import STAGES, Study, command_of, read_json
from vqcortex.results import Table, load_table
from vqcortex.tokens.shard import joined
from vqcortex.tokens.store import TokenBatch

Rows = Sequence[Mapping[str, Any]]
CODES_SHOWN = 12
PATCHES = 4
CLUSTER_PATCHES = 8
SEARCH_IMAGES = 4
SWAPS_SHOWN = 6
EDIT_TITLES = {"remove": "{} taken out", "insert": "{} put in", "swap": "swapped for {}"}
LOOKED_AT = 4000  # images searched for occurrences of a code: enough for patches, and flat in the store's size


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the page shows of a concept, before its pictures are made.

    Args:
        concept: Its number.
        name: Its name.
        images: Example images.
        importance: Of their positions, (b, h, w).
        activation: Its mean activation map, (h, w).
        activation_error: Standard error of that, (h, w).
        images_averaged: Images behind it.
        tokens: Rows of its concept tokens.
        scales: Rows of its two-scale table.
        swaps: Rows of its best verified swaps.
    """

    concept: int
    name: str
    images: TokenBatch
    importance: Tensor
    activation: Tensor
    activation_error: Tensor
    images_averaged: int
    tokens: Rows
    scales: Rows
    swaps: Rows


def gather(study: Study, examples: int, device: str, batch: int, engine: Engine = SERIAL) -> Exhibit:
    """Everything a study's page shows.

    Args:
        study: With every stage before the report finished.
        examples: Images per concept.
        device: Where decoding happens.
        batch: Images per step.
        engine: Where the pictures of concepts and clusters are made.
    """
    loaded = load_all(study, device)
    tables = read_tables(study)
    finder = Carried(Patches(loaded, batch), patches_at, *carry(study, device, loaded).arguments, batch)
    concepts = engine.map(partial(_concept, finder=finder), _shown(study, loaded, examples, tables))
    clusters = engine.map(partial(_cluster, finder=finder), _cluster_rows(study, tables["clusters"]))
    return Exhibit(
        title=f"What the tokens of {loaded.model.name} mean",
        model=_model_facts(study, loaded),
        extractor=_extractor_facts(loaded),
        history=tuple(read_json(study.path("train") / "history.json")["epochs"]),
        concepts=tuple(concepts),
        clusters=tuple(clusters),
        searches=tuple(_searches(load_found(study), loaded)),
        tables=tables,
        stages=tuple(_stages(study)),
        notes=(*judge_notes(tables), *_notes(tables)),
        judges=judge_facts(tables),
        trust=study.trust,
        edits=(*_asked_edits(study, loaded), *_validating_edits(study, loaded)),
    )


def read_tables(study: Study) -> dict[str, Table]:
    """Every table of a study's main job by its name: what other commands left beside it changes no report."""
    found = [path for path in sorted(study.folder.glob("*/*.json")) if path.parent.name in STAGES]
    paths = [path for path in found if path.with_suffix(".parquet").exists()]
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
        self.loaded = loaded
        self._tokens, self._labels = torch.cat(grids), torch.cat(labels)

    def of(self, code: int, count: int, concept: int | None = None) -> np.ndarray:
        """Up to `count` neighbourhoods of 3x3 positions with the code in the middle, (p, H', W', 3)."""
        here = self._tokens == code
        if concept is not None:
            here = here & (self._labels == concept)[:, None, None]
        found = here.nonzero()
        levels, (tall, wide) = self.loaded.model.levels, self.loaded.model.size
        h, w = finest_grid(levels)
        p, q = tall // h, wide // w
        if not len(found):
            return np.zeros((0, 3 * p, 3 * q, 3), np.uint8)
        first = _first_per_image(found)[:count]
        images = pictures(self.loaded, self._tokens[first[:, 0]])
        cuts = [
            _around(image, *patch_of(levels, row, column, (tall, wide)), (3 * p, 3 * q))
            for image, (_, row, column) in zip(images, first.tolist(), strict=True)
        ]
        return np.stack(cuts)


def _around(image: np.ndarray, top: int, left: int, p: int, q: int, size: tuple[int, int]) -> np.ndarray:
    """Three by three patches of p x q pixels with one in the middle, black beyond the edge, at a size (H', W')."""
    padded = np.pad(image, ((p, p), (q, q), (0, 0)))
    cut = padded[top : top + 3 * p, left : left + 3 * q]
    if cut.shape[:2] == size:
        return cut
    # Patches of a coarser level are larger: shown at the size of the finest.
    return np.asarray(Image.fromarray(cut).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def patches_at(folder: Path, device: str, tokens: str, train: str, batch: int) -> Patches:
    """The patches of a study where work is done; arguments as in `load_at`."""
    return Patches(load_at(folder, device, tokens, train), batch)


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
    return {
        concept: (joined([one for one, _ in found]), torch.cat([maps for _, maps in found]))
        for concept, found in rows.items()
        if found
    }


def _shown(study: Study, loaded: Loaded, examples: int, tables: Mapping[str, Table]) -> Iterator[Shown]:
    seen, maps = _seen(study, loaded, examples), load_maps(study)
    keep = study.record("concepts")["key"]["settings"]["keep"]
    for concept, name in enumerate(loaded.concepts):
        images, importance = seen[concept]
        yield Shown(
            concept=concept,
            name=name,
            images=images,
            importance=importance,
            activation=maps["mean"][concept],
            activation_error=maps["error"][concept],
            images_averaged=int(maps["images"][concept]),
            tokens=tables["concept_tokens"].where(concept=name, n=keep)[:CODES_SHOWN],
            scales=tables["two_scale"].where(concept=name),
            swaps=tables["traversal_cells"].where(concept=name)[:SWAPS_SHOWN],
        )


def _concept(shown: Shown, *, finder: Carried[Patches]) -> ConceptExhibit:
    codes = [_code(row, shown, finder.value) for row in shown.tokens]
    levels = finder.value.loaded.model.levels
    return ConceptExhibit(
        name=shown.name,
        image_ids=shown.images.image_ids,
        images=pictures(finder.value.loaded, shown.images.tokens),
        importance=picture_map(activation_map(shown.importance, signed=True).float(), levels).numpy(),
        activation=picture_map(shown.activation, levels).numpy(),
        activation_error=picture_error(shown.activation_error, levels).numpy(),
        images_averaged=shown.images_averaged,
        codes=tuple(codes),
        best_swaps=tuple(shown.swaps),
    )


def _code(row: Mapping[str, Any], shown: Shown, finder: Patches) -> CodeExhibit:
    code = row["code"]
    both = [one for one in shown.scales if one["code"] == code]
    numbers = {key: row[key] for key in ("count", "share", "lift", "frequency")}
    numbers |= {"low": row["share_low"], "high": row["share_high"]}
    numbers |= {key: both[0][key] for key in ("local_rank", "global_rank", "effect")} if both else {}
    known = {key: float(value) for key, value in numbers.items() if value is not None}
    return CodeExhibit(code=code, numbers=known, patches=finder.of(code, PATCHES, shown.concept))


def _cluster_rows(study: Study, table: Table) -> list[tuple[Mapping[str, Any], Tensor]]:
    profile = load_maps(study)["profile"]
    return [(row, profile[row["cluster"]]) for row in table.rows]


def _cluster(about: tuple[Mapping[str, Any], Tensor], *, finder: Carried[Patches]) -> ClusterExhibit:
    row, profile = about
    cut = [finder.value.of(code, 1) for code in row["codes"][:CLUSTER_PATCHES]]
    return ClusterExhibit(
        number=row["cluster"],
        codes=tuple(row["codes"]),
        stability=row["stability"],
        profile=profile.float().numpy(),
        patches=np.concatenate(cut),
    )


def _searches(found: Found, loaded: Loaded) -> list[SearchExhibit]:
    pairs = list(dict.fromkeys(zip(found.source.tolist(), found.target.tolist(), strict=True)))
    return [_search(found, loaded, source, target) for source, target in pairs]


def _search(found: Found, loaded: Loaded, source: int, target: int) -> SearchExhibit:
    rows = ((found.source == source) & (found.target == target)).nonzero()[:SEARCH_IMAGES, 0]
    return SearchExhibit(
        source=loaded.concepts[source],
        target=loaded.concepts[target],
        free=picture_map(found.free.float(), loaded.model.levels).bool().numpy(),
        before=pictures(loaded, found.start[rows]),
        after={name: pictures(loaded, grids[rows, 0]) for name, grids in found.tokens.items()}
        | _scratch(found, loaded, target),
    )


def _scratch(found: Found, loaded: Loaded, target: int) -> dict[str, np.ndarray]:
    """Whole grids searched from nothing, shown beside the edits."""
    return {f"from_scratch:{name}": pictures(loaded, grids[target][:SEARCH_IMAGES])
            for name, grids in found.scratch.items()}  # fmt: skip


def _asked_edits(study: Study, loaded: Loaded) -> Iterator[EditExhibit]:
    """What `vqcortex edit` left in the study, in the order of the folders' names."""
    for stage in edit_stages(study):
        record = read_record(study.path(stage) / EDIT_RECORD)
        images = record["images"][:SEARCH_IMAGES]
        before, after = (torch.tensor([one[name] for one in images]) for name in ("before", "after"))
        first = images[0]
        about = told_of(study.path(stage))
        yield EditExhibit(
            title=f"{first['source']} → {first['target']}" if first["target"] else f"{first['source']}, by hand",
            about=tuple(about), before=pictures(loaded, before),
            after={"edited": pictures(loaded, after)},
        )  # fmt: skip


def _validating_edits(study: Study, loaded: Loaded) -> Iterator[EditExhibit]:
    """What editability left: per concept and kind of edit, with the concept's tokens and with random codes."""
    gallery = load_gallery(study)
    for name, before in gallery.items():
        concept, kind, which = name.split(":")
        if which == "before":
            arms = {one.split(":")[2]: grids for one, grids in gallery.items() if one.startswith(f"{concept}:{kind}:")}
            yield EditExhibit(
                title=EDIT_TITLES[kind].format(loaded.concepts[int(concept)]), about=(),
                before=pictures(loaded, before),
                after={arm: pictures(loaded, grids) for arm, grids in arms.items() if arm != "before"},
            )  # fmt: skip


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
    left_out = {"report"} if is_judged_by_own(study) else {"report", JUDGES}
    for stage in STAGES:
        if (study.path(stage) / "stage.json").exists() and stage not in left_out:
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
    scratch = tables["scratch"]
    for strategy in dict.fromkeys(row["strategy"] for row in scratch.rows):
        rows = scratch.where(strategy=strategy)
        mean = sum(row["probability"] for row in rows) / len(rows)
        notes.append(
            f"Grids that {strategy.replace('_', ' ')} finds from scratch convince the judges with probability "
            f"{mean:.2f} on average: low means that the search finds patterns that fool the extractor rather than "
            "the concept."
        )
    return notes
