"""The whole codebook at every position, for every concept; and the two scales side by side."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqcortex.adapters.protocol import allowed_cells
from vqcortex.concepts.pooling import ConceptTokens
from vqcortex.concepts.two_scale import COLUMNS as SCALE_COLUMNS
from vqcortex.concepts.two_scale import join_scales
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, carry, code_counts, load_all
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import TraverseSettings
from vqcortex.pipelines.stamps import check_trust, stamp_of
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.results import Column, Table, Traversal, save_table, stamped
from vqcortex.search.traverse import linear_error
from vqcortex.search.traverse import traverse as traverse_codebook
from vqcortex.weights import save_weights

ALSO = 10  # codes of the largest global effect that get a row in the two-scale table although no image holds them

CELL_COLUMNS = {
    "concept": Column(unit="name", meaning="The concept whose logit changes."),
    "code": Column(unit="code id", meaning="The code put there."),
    "row": Column(unit="row, from 0", meaning="Grid row."),
    "column": Column(unit="column, from 0", meaning="Grid column."),
    "estimated": Column(unit="logits", meaning="First-order estimate of the mean change.", better="higher"),
    "measured": Column(unit="logits", meaning="Mean change when really swapped.", better="higher"),
    "measured_error": Column(unit="logits", meaning="Its standard error over images; empty for one image."),
    "images": Column(unit="images", meaning="Images averaged over: test images of the other concepts."),
}

ERROR_COLUMNS = {
    "concept": Column(unit="name", meaning="The concept."),
    "cells": Column(unit="cells", meaning="Cells verified: the best ones, and as many drawn at random."),
    "pearson": Column(unit="correlation, -1 to 1", meaning="Of estimate and measurement.", better="higher"),
    "spearman": Column(unit="rank correlation, -1 to 1", meaning="Of estimate and measurement.", better="higher"),
    "mean_absolute_error": Column(unit="logits", meaning="Of the estimate.", better="lower"),
    "slope": Column(unit="ratio", meaning="Measured per estimated; 1 is exact, below 1 the estimate is too large."),
}


def traverse(settings: TraverseSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Traverse the codebook for every concept of a study.

    The effect of a code on a concept is averaged over test images of the *other* concepts: what would make them it.

    Args:
        settings: How much to traverse and verify.
        progress: Told how far it is.
        engine: Where concepts are traversed.
    Returns:
        Folder with the tables traversal_cells, traversal_error and two_scale, and effects.safetensors with the
        mean effect of every code at every position per concept, (c, k, h, w), in logits.
    Raises:
        StudyError: The concepts are not pooled yet.
        TrustError: Trust is required, and it is low or unknown.
    """
    settings.check()
    study = Study(settings.out)
    check_trust(study, settings.require_trust)
    loaded = load_all(study, settings.device)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "train", "concepts")}
    key = stage_key("traverse", settings, TraverseSettings, inputs)
    carried = carry(study, settings.device, loaded)

    def work(folder: Path) -> None:
        alive = code_counts(loaded.store, EXPLAINED, engine).sum(0) > 0
        numbers = range(len(loaded.concepts))
        found = engine.map(partial(_traverse_concept, carried=carried, alive=alive, settings=settings), numbers)
        _write(folder, study, loaded, list(progress.track(found, "traverse: concepts", len(numbers))))

    run_stage(study, key, work)
    return study.path("traverse")


def _traverse_concept(
    concept: int, *, carried: Carried[Loaded], alive: Tensor, settings: TraverseSettings
) -> Traversal:
    loaded = carried.value
    device = loaded.model.codebook.device
    allowed = allowed_cells(loaded.model.levels, loaded.model.k)
    found = traverse_codebook(
        loaded.trained.module,
        other_images(loaded, concept, settings.traverse_images, settings.batch),
        loaded.model.codebook,
        concept,
        count=settings.verify,
        sampled=settings.verify,
        alive=alive.to(device),
        allowed=None if allowed is None else allowed.to(device),
        seed=settings.seed,
        batch=settings.batch,
    )
    return replace(
        found, effect=found.effect.cpu(), cells=found.cells.cpu(), estimated=found.estimated.cpu(),
        measured=found.measured.cpu(), measured_error=found.measured_error.cpu(),
    )  # fmt: skip


def _write(folder: Path, study: Study, loaded: Loaded, found: list[Traversal]) -> None:
    save_weights({"effect": torch.stack([one.effect for one in found])}, folder / "effects.safetensors")
    trust = stamp_of(study)
    save_table(stamped(_cells(found, loaded.concepts), trust), folder)
    save_table(_errors(found, loaded.concepts), folder)
    save_table(stamped(_scales(found, study, loaded), trust), folder)


def other_images(loaded: Loaded, concept: int, most: int, batch: int) -> list[Tensor]:
    """Token grids of test images of all other concepts, at most `most` in all and evenly spread over them."""
    others = [one for one in range(len(loaded.concepts)) if one != concept]
    each = -(-most // len(others))
    grids = []
    for one in others:
        stream = loaded.store.batches(each, split=REPORTED, concept=one, pictures=False)
        grids += [first.tokens for first in [next(stream, None)] if first is not None]
    return list(torch.cat(grids)[:most].split(batch))


def _cells(found: list[Traversal], concepts: tuple[str, ...]) -> Table:
    rows: list[dict[str, Any]] = []
    for one in found:
        numbers = zip(
            one.cells.tolist(), one.estimated.tolist(), one.measured.tolist(), one.measured_error.tolist(),
            strict=True,
        )  # fmt: skip
        rows += [
            {
                "concept": concepts[one.concept], "code": code, "row": row, "column": column, "estimated": estimated,
                "measured": measured, "measured_error": None if isnan(error) else error, "images": one.images,
            }
            for (code, row, column), estimated, measured, error in numbers
        ]  # fmt: skip
    return Table("traversal_cells", CELL_COLUMNS, rows)


def _errors(found: list[Traversal], concepts: tuple[str, ...]) -> Table:
    rows = [{"concept": concepts[one.concept], "cells": len(one.cells), **linear_error(one)} for one in found]
    return Table("traversal_error", ERROR_COLUMNS, rows)


def _scales(found: list[Traversal], study: Study, loaded: Loaded) -> Table:
    keep = study.record("concepts")["key"]["settings"]["keep"]
    tokens = study.table("concept_tokens")
    rows: list[Any] = []
    for one in found:
        name = loaded.concepts[one.concept]
        local = _tokens_of(tokens.where(concept=name, n=keep), one.concept, keep)
        also = min(ALSO, len(one.code_relevance))
        rows += join_scales(local, one.code_relevance, name, also=also).rows
    return Table("two_scale", SCALE_COLUMNS, rows)


def _tokens_of(rows: list[Any], concept: int, n: int) -> ConceptTokens:
    """Concept tokens back from their table."""

    def column(name: str) -> Tensor:
        return torch.tensor([float("nan") if row[name] is None else row[name] for row in rows])

    return ConceptTokens(
        concept=concept, n=n, images=rows[0]["images"], codes=column("code").long(), counts=column("count").long(),
        share=column("share"), low=column("share_low"), high=column("share_high"), lift=column("lift"),
        frequency=column("frequency"),
    )  # fmt: skip
