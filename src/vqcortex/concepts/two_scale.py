"""Local and global in one table: what images of a concept hold, and what would raise the concept anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vqcortex.concepts.pooling import ConceptTokens
from vqcortex.errors import ConfigError, ShapeError
from vqcortex.results import Column, Table

COLUMNS = {
    "concept": Column(unit="name", meaning="The concept."),
    "code": Column(unit="code id", meaning="The code."),
    "local_rank": Column(unit="rank, from 1", meaning="Place among the concept tokens; empty where not one of them."),
    "global_rank": Column(
        unit="rank, from 1", meaning="Place among all codes by effect; equal effects share the best."
    ),
    "count": Column(unit="positions", meaning="Best positions that hold the code, over all images of the concept."),
    "share": Column(unit="share, 0 to 1", meaning="Images of the concept with the code at a best position."),
    "effect": Column(unit="logits", meaning="Mean change of the concept's logit when the code is put at a position."),
    "agreement": Column(unit="Spearman, -1 to 1", meaning="Rank correlation of count and effect over concept tokens."),
}


def join_scales(found: ConceptTokens, code_relevance: Float[Tensor, " k"], name: str, *, also: int = 0) -> Table:
    """Return one row per concept token, joining its importance in images with its effect anywhere.

    Args:
        found: The concept tokens; keep all of them for a correlation over every code seen.
        code_relevance: Effect of each of the k codes on the concept, in logits, as in
            `Traversal.code_relevance`.
        name: The concept's name.
        also: Codes of the largest effect that get a row even when images of the concept do not hold them,
            0..k.

    Raises:
        ShapeError: A concept token has no relevance.
    """
    _check_codes(found, code_relevance, also)
    effect = code_relevance.detach().double().cpu().numpy()
    ranks = _ranks(effect)
    agreement = rank_agreement(found, code_relevance)
    same = {"concept": name, "agreement": agreement}
    rows = [
        {**same, **local, "global_rank": int(ranks[local["code"]]), "effect": float(effect[local["code"]])}
        for local in [*_seen(found), *_unseen(found, effect, also)]
    ]
    return Table("two_scale", COLUMNS, rows)


def rank_agreement(found: ConceptTokens, code_relevance: Float[Tensor, " k"]) -> float | None:
    """Return Spearman's correlation of count and effect over the concept tokens.

    None where it does not exist: fewer than three codes, or all counts or all effects alike.
    """
    _check_codes(found, code_relevance)
    counts = found.counts.double().numpy()
    effect = code_relevance.detach().double().cpu().numpy()[found.codes.numpy()]
    if len(counts) < 3 or np.ptp(counts) == 0 or np.ptp(effect) == 0:
        return None
    return float(np.corrcoef(_middle_ranks(counts), _middle_ranks(effect))[0, 1])


def _seen(found: ConceptTokens) -> list[dict[str, Any]]:
    lists = zip(found.codes.tolist(), found.counts.tolist(), found.share.tolist(), strict=True)
    return [
        {"code": code, "local_rank": rank, "count": count, "share": share}
        for rank, (code, count, share) in enumerate(lists, start=1)
    ]


def _unseen(found: ConceptTokens, effect: NDArray[np.float64], also: int) -> list[dict[str, Any]]:
    seen = set(found.codes.tolist())
    best: Sequence[int] = np.argsort(-effect, kind="stable")[:also].tolist()
    return [{"code": code, "local_rank": None, "count": None, "share": None} for code in best if code not in seen]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank from 1, the largest first; equal values share the best rank."""
    return 1 + np.searchsorted(np.sort(-values), -values, side="left")


def _middle_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank from 0, the smallest first; equal values share the middle of their ranks."""
    order = np.sort(values)
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right") - 1) / 2


def _check_codes(found: ConceptTokens, code_relevance: Tensor, also: int = 0) -> None:
    k = len(code_relevance)
    if len(found.codes) and int(found.codes.max()) >= k:
        raise ShapeError(
            f"concept token {int(found.codes.max())} has no relevance: {k} are given; "
            "one per code is needed; was the traversal made with another model?"
        )
    if not 0 <= also <= k:
        raise ConfigError(f"also={also} must be 0 to {k}, the number of codes; 0 adds none")
