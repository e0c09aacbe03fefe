"""Image level: how far a judge's belief in the concept falls when n positions are hidden."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.errors import ConfigError
from vqcortex.evaluation.arms import check_count, check_scores, places
from vqcortex.evaluation.fills import Fill, decoded, filler
from vqcortex.evaluation.judge import Judge, ask, log_odds_of, probability_of
from vqcortex.evaluation.values import (
    Condition,
    Evidence,
    Level,
    Masking,
    check_images,
    check_names,
    join_evidence,
    slices,
)

SHARES = (1, 3, 5, 10, 20, 30, 50)  # percent of positions


@final
@dataclass(frozen=True, slots=True)
class Mask:
    """Hidden positions before a fill is chosen; fields as in `Condition`."""

    arm: str
    masking: Masking
    chosen: int | None = None


MasksOf = Callable[[slice], Mapping[Mask, Bool[Tensor, "b h w"]]]


def steps_for(shares: Sequence[int | float] = SHARES, positions: int = 256) -> tuple[int, ...]:
    """Numbers of positions for shares in percent: rounded, at least 1, each once, ascending."""
    if wrong := [share for share in shares if not 0 < share <= 100]:
        raise ConfigError(f"share {wrong[0]} must be above 0 and at most 100 percent of the positions")
    return tuple(sorted({max(1, round(share / 100 * positions)) for share in shares}))


def measure_drop(
    adapter: Adapter,
    judges: Sequence[Judge],
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    scores: Mapping[str, Float[Tensor, "b h w"]],
    counts: Sequence[int],
    fills: Sequence[Fill],
    *,
    masking: Masking = "positions",
    batch: int = 64,
) -> Evidence:
    """Probability and log-odds of the concept before minus after hiding, per image, arm, fill, n and judge.

    Args:
        adapter: The model that made the tokens.
        judges: Classifiers that took no part in making the scores.
        tokens: Grids to hide positions of.
        concept: What each image shows, as an index into the judges' concepts.
        image_ids: One name per grid; random fills depend on it.
        scores: Importance or control scores per arm; higher is hidden first.
        counts: Numbers of positions to hide (n), each 1 to h*w.
        fills: What takes their place.
        masking: "positions" hides exactly n in every arm. "by_id" also hides every cell that shares its token
            with a chosen one, as the published code does; arms then hide different areas: see `touched`.
        batch: Images per step; changes speed and memory, never results.

    Returns:
        Evidence with the metrics `probability_drop` and `log_odds_drop`; higher: the arm found more.

    Raises:
        ConfigError: No arm, fill or judge, one given twice, or a count outside 1 to h*w.

    Source:
        Yang et al. 2025, arXiv:2506.00698, the masking experiments.
        Where we differ: equal areas, several fills, intervals.
    """
    cells = tokens.shape[1] * tokens.shape[2]
    check_names("arm", list(scores))
    check_counts(counts, cells)
    for arm, score in scores.items():
        check_scores(score, tokens, arm)
    if masking not in ("positions", "by_id"):
        raise ConfigError(f"masking {masking!r} is not for single images; choose 'positions' or 'by_id'")

    def masks_of(rows: slice) -> dict[Mask, Tensor]:
        ranked = {arm: places(score[rows].to(tokens.device)) for arm, score in scores.items()}
        chosen = {Mask(arm, masking, n): rank < n for arm, rank in ranked.items() for n in counts}
        if masking == "positions":
            return chosen
        codes = len(adapter.codebook)
        return {mask: same_ids(tokens[rows], hidden, codes) for mask, hidden in chosen.items()}

    return measure_masks(adapter, judges, tokens, concept, image_ids, masks_of, fills, level="image", batch=batch)


def check_counts(counts: Sequence[int], cells: int) -> None:
    """Return if every n is wanted once and fits the grid."""
    check_names("n", [str(n) for n in counts])
    for n in counts:
        check_count(n, cells)
    if 0 in counts:
        raise ConfigError("n=0 hides nothing and would measure nothing; choose at least 1")


def same_ids(tokens: Int[Tensor, "b h w"], chosen: Bool[Tensor, "b h w"], codes: int) -> Bool[Tensor, "b h w"]:
    """True at every cell whose token stands at a chosen position of the same image."""
    ids = tokens.flatten(1)
    picked = torch.zeros(len(ids), codes, dtype=torch.int32, device=ids.device)
    picked.scatter_add_(1, ids, chosen.flatten(1).int())
    return (picked.gather(1, ids) > 0).reshape(tokens.shape)


@torch.no_grad()
def measure_masks(
    adapter: Adapter,
    judges: Sequence[Judge],
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    masks_of: MasksOf,
    fills: Sequence[Fill],
    *,
    level: Level,
    batch: int,
) -> Evidence:
    """Drops under every mask and fill, a batch at a time; `masks_of` gives the masks of a slice of images."""
    check_images(tokens, image_ids, len(adapter.codebook), concept=concept)
    check_names("judge", [judge.name for judge in judges])
    check_names("fill", [fill.name for fill in fills])
    parts = [
        drops_of_batch(adapter, judges, tokens[rows], concept[rows], image_ids[rows], masks_of(rows), fills, level)
        for rows in slices(len(tokens), batch)
    ]
    return join_evidence(parts)


def drops_of_batch(
    adapter: Adapter,
    judges: Sequence[Judge],
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    masks: Mapping[Mask, Bool[Tensor, "b h w"]],
    fills: Sequence[Fill],
    level: Level,
) -> Evidence:
    """Evidence of one batch; the untouched images are decoded and judged once."""
    pixels = decoded(adapter, tokens)
    before = beliefs(judges, pixels, concept)  # (2, j, b)
    ready = [filler(fill, adapter, tokens, image_ids, pixels) for fill in fills]
    every = torch.arange(len(tokens), device=tokens.device)
    drops = [before - beliefs(judges, filled(every, hidden), concept) for hidden in masks.values() for filled in ready]
    probability, log_odds = torch.stack(drops, 1).float().unbind()  # (q, j, b) each
    areas = torch.stack([hidden.flatten(1).sum(1) for hidden in masks.values()])
    return Evidence(
        level=level,
        conditions=tuple(
            Condition(arm=mask.arm, masking=mask.masking, chosen=mask.chosen, fill=fill.name)
            for mask in masks
            for fill in fills
        ),
        judges=tuple(judge.name for judge in judges),
        image_ids=tuple(image_ids),
        concept=concept.cpu(),
        positions=tokens.shape[1] * tokens.shape[2],
        before=before[0].float(),
        metrics={"probability_drop": probability, "log_odds_drop": log_odds},
        touched=areas.repeat_interleave(len(fills), 0).float().cpu(),
    )


def beliefs(
    judges: Sequence[Judge], pixels: Float[Tensor, "b 3 H W"], concept: Int[Tensor, " b"]
) -> Float[Tensor, "2 j b"]:
    """Probability and log-odds of each image's concept, by every judge, float64."""
    answers = [ask(judge, pixels) for judge in judges]
    probability = torch.stack([probability_of(answer, concept) for answer in answers])
    return torch.stack([probability, torch.stack([log_odds_of(answer, concept) for answer in answers])])
