"""Who believes what the search stage found: every strategy, in its region and from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar, final

import torch
from torch import Tensor

from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import Engine
from vqcortex.evaluation.beliefs import (
    UNTOUCHED,
    Beliefs,
    Witnesses,
    belief_table,
    join_beliefs,
    measure_beliefs,
    witness_table,
)
from vqcortex.evaluation.intervals import Resampling
from vqcortex.evaluation.judge import Judge
from vqcortex.extractors.checkpoint import TrainedExtractor
from vqcortex.pipelines.loaded import Loaded
from vqcortex.pipelines.search import Found, is_likely
from vqcortex.results import Table
from vqcortex.search.likelihood import GeneratorLikelihood
from vqcortex.search.statistics import TokenStatistics

J = TypeVar("J", bound=Judge)
REGION, WHOLE = "region", "whole grid"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some searches of one strategy.

    Args:
        scope: "region" or "whole grid".
        strategy: How it was searched.
        grids: What it found, (b, r, h, w).
        target: Concept searched for, (b,).
        start: What it was made from, (b, h, w); None: from nothing.
        free: True where tokens could change, (h, w).
    """

    scope: str
    strategy: str
    grids: Tensor
    target: Tensor
    start: Tensor | None
    free: Tensor


def belief_tables(
    found: Found,
    loaded: Carried[Loaded],
    judges: Carried[tuple[J, ...]],
    statistics: Carried[TokenStatistics],
    batch: int,
    resampling: Resampling,
    engine: Engine,
) -> tuple[Table, Table]:
    """The tables search_beliefs and search_witnesses."""
    pieces = list(_pieces(found, batch))
    work = partial(_believed, loaded=loaded, judges=judges, statistics=statistics, searched=found.extractors)
    parts = zip(pieces, engine.map(work, pieces), strict=True)
    grouped = groupby(parts, key=lambda one: (one[0].scope, one[0].strategy))
    believed = [join_beliefs([one for _, one in some]) for _, some in grouped]
    concepts = loaded.value.concepts
    return belief_table(believed, concepts, resampling), witness_table(believed, concepts)


def _pieces(found: Found, size: int) -> Iterator[Piece]:
    for strategy, grids in {UNTOUCHED: found.start[:, None], **found.tokens}.items():
        for first in range(0, len(grids), size):
            rows = slice(first, first + size)
            yield Piece(scope=REGION, strategy=strategy, grids=grids[rows], target=found.target[rows],
                        start=found.start[rows], free=found.free)  # fmt: skip
    for strategy, grids in found.scratch.items():
        for first in range(0, len(grids), size):
            targets = torch.arange(len(grids))[first : first + size]
            yield Piece(scope=WHOLE, strategy=strategy, grids=grids[targets], target=targets, start=None,
                        free=torch.ones_like(found.free))  # fmt: skip


def _believed(
    piece: Piece,
    *,
    loaded: Carried[Loaded],
    judges: Carried[tuple[J, ...]],
    statistics: Carried[TokenStatistics],
    searched: Sequence[str],
) -> Beliefs:
    model = loaded.value.model
    device = model.codebook.device
    counted, free = statistics.value.to(device), piece.free.to(device)
    witnesses = Witnesses(
        extractors={name: _calibrated(one) for name, one in loaded.value.members.items()},
        searched=tuple(searched),
        judges=judges.value,
        plausible={
            "log_frequency": lambda grids, target: counted.means(grids, free)[0],
            "neighbour_log_odds": lambda grids, target: counted.means(grids, free)[1],
            "log_likelihood": GeneratorLikelihood(model) if is_likely(model) else None,
        },
    )
    start = None if piece.start is None else piece.start.to(device)
    return measure_beliefs(
        model, witnesses, piece.scope, piece.strategy, piece.grids.to(device), piece.target.to(device), start
    )


def _calibrated(trained: TrainedExtractor) -> Callable[[Tensor], Tensor]:
    return lambda embedded: (trained.module(embedded) / trained.temperature).log_softmax(1)
