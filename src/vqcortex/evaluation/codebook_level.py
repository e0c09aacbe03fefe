"""Codebook level: do searched tokens turn an image into the target, for judges the search never asked?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.errors import ConfigError, ShapeError
from vqcortex.evaluation.fills import decoded
from vqcortex.evaluation.judge import Judge, ask, log_odds_of, probability_of
from vqcortex.evaluation.values import Condition, Evidence, check_images, check_names, join_evidence, slices
from vqcortex.seeds import generator_for


def measure_codebook_level(
    adapter: Adapter,
    judges: Sequence[Judge],
    start: Int[Tensor, "b h w"],
    source: Int[Tensor, " b"],
    target: Int[Tensor, " b"],
    image_ids: Sequence[str],
    searched: Mapping[str, Int[Tensor, "b _ h w"]],
    *,
    batch: int = 64,
) -> Evidence:
    """Probability of the target after a search, its rise, and the fall of the source, averaged over restarts.

    Every restart counts: nothing is chosen by a judge.

    Args:
        adapter: The model whose codebook was searched.
        judges: Classifiers that took no part in the search.
        start: The grids that every arm started from.
        source: Concept of the start.
        target: Concept searched for, another one.
        image_ids: One name per grid.
        searched: Final grids per arm: token_selection, embedding_optimisation, random_codes. The number of
            restarts may differ between arms.
        batch: Images per step; changes speed and memory, never results.

    Returns:
        Evidence with the metrics `target_probability`, `target_rise`, `target_log_odds_rise`, `source_drop`
        and `changed_tokens`; its `concept` is the target.

    Raises:
        ConfigError: No arm or judge, one given twice, or a target that is its source.
        ShapeError: An arm's grids do not fit the start.
    """
    check_images(start, image_ids, len(adapter.codebook), source=source, target=target)
    check_names("judge", [judge.name for judge in judges])
    check_searched(start, searched, len(adapter.codebook))
    if (same := (source.cpu() == target.cpu()).nonzero()).numel():
        name = image_ids[int(same[0, 0])]
        raise ConfigError(f"image {name!r} has its own concept as target; choose another")
    parts = [
        swaps_of_batch(
            adapter,
            judges,
            start[rows],
            source[rows],
            target[rows],
            image_ids[rows],
            {arm: grids[rows] for arm, grids in searched.items()},
        )
        for rows in slices(len(start), batch)
    ]
    return join_evidence(parts)


@torch.no_grad()
def swaps_of_batch(
    adapter: Adapter,
    judges: Sequence[Judge],
    start: Int[Tensor, "b h w"],
    source: Int[Tensor, " b"],
    target: Int[Tensor, " b"],
    image_ids: Sequence[str],
    searched: Mapping[str, Int[Tensor, "b _ h w"]],
) -> Evidence:
    """Evidence of one batch."""
    before = views(judges, decoded(adapter, start), source, target)  # (3, j, b)
    rise = torch.stack(
        [mean_rise(adapter, judges, before, grids, source, target) for grids in searched.values()]
    )  # (q, 3, j, b)
    changed = torch.stack([changes(start, grids) for grids in searched.values()])  # (q, b)
    metrics = {
        "target_probability": before[0] + rise[:, 0],
        "target_rise": rise[:, 0],
        "target_log_odds_rise": rise[:, 1],
        "source_drop": -rise[:, 2],
        "changed_tokens": changed[:, None].expand(-1, len(judges), -1),
    }
    return Evidence(
        level="codebook",
        conditions=tuple(Condition(arm=arm, masking="search", fill="none") for arm in searched),
        judges=tuple(judge.name for judge in judges),
        image_ids=tuple(image_ids),
        concept=target.cpu(),
        source=source.cpu(),
        positions=start.shape[1] * start.shape[2],
        before=before[0].float(),
        metrics={name: values.float() for name, values in metrics.items()},
        touched=changed.float(),
    )


def views(
    judges: Sequence[Judge],
    pixels: Float[Tensor, "b 3 H W"],
    source: Int[Tensor, " b"],
    target: Int[Tensor, " b"],
) -> Float[Tensor, "3 j b"]:
    """Probability and log-odds of the target and probability of the source, by every judge, float64."""
    answers = [ask(judge, pixels) for judge in judges]
    return torch.stack(
        [
            torch.stack([probability_of(answer, target) for answer in answers]),
            torch.stack([log_odds_of(answer, target) for answer in answers]),
            torch.stack([probability_of(answer, source) for answer in answers]),
        ]
    )


def mean_rise(
    adapter: Adapter,
    judges: Sequence[Judge],
    before: Float[Tensor, "3 j b"],
    grids: Int[Tensor, "b r h w"],
    source: Int[Tensor, " b"],
    target: Int[Tensor, " b"],
) -> Float[Tensor, "3 j b"]:
    """`views` minus `before`, mean over restarts; decoded one by one, so that memory stays flat.

    The difference comes first: a search that changed nothing has a rise of exactly 0.
    """
    rises = [views(judges, decoded(adapter, one), source, target) - before for one in grids.unbind(1)]
    return torch.stack(rises).mean(0)


def changes(start: Int[Tensor, "b h w"], grids: Int[Tensor, "b r h w"]) -> Float[Tensor, " b"]:
    """Number of tokens that differ from the start, mean over restarts, float64 on the CPU."""
    return (grids != start[:, None]).flatten(2).sum(2).double().mean(1).cpu()


def random_codes(
    start: Int[Tensor, "b h w"],
    free: Bool[Tensor, "h w"],
    codes: int,
    image_ids: Sequence[str],
    *,
    restarts: int = 1,
    seed: int = 0,
) -> Int[Tensor, "b r h w"]:
    """The control arm: the start with uniformly drawn codes at the free positions.

    Args:
        start: The grids of the other arms.
        free: True where a token may change.
        codes: k.
        image_ids: Draws depend on the id, the restart and the seed.
        restarts: r, at least 1.
        seed: See `image_ids`.
    """
    if restarts < 1:
        raise ConfigError(f"restarts={restarts} must be at least 1")
    drawn = [
        torch.randint(codes, free.shape, generator=generator_for(seed, name, "random codes", restart))
        for name in image_ids
        for restart in range(restarts)
    ]
    grids = torch.stack(drawn).reshape(len(start), restarts, *free.shape).to(start)
    return torch.where(free.to(start.device), grids, start[:, None])


def check_searched(start: Int[Tensor, "b h w"], searched: Mapping[str, Tensor], codes: int) -> None:
    """Return if every arm has grids of the start's shape with tokens of the codebook."""
    check_names("arm", list(searched))
    for arm, grids in searched.items():
        if grids.ndim != 4 or grids.shape[1] < 1 or (grids.shape[0], *grids.shape[2:]) != tuple(start.shape):
            raise ShapeError(
                f"grids of arm {arm!r} have shape {tuple(grids.shape)} but (b, r, h, w) = "
                f"({len(start)}, at least 1, {start.shape[1]}, {start.shape[2]}) is needed"
            )
        flat = grids.flatten(0, 1)
        check_images(flat, [arm] * len(flat), codes)
