"""The transferable oracle: greedy removal that may ask one judge, to be scored by the others.

How far any explanation can go is not what one judge can be fooled by, but what holds for judges nobody asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.errors import ConfigError
from vqcortex.evaluation.fills import Fill, Filler, decoded, filler
from vqcortex.evaluation.judge import Judge, ask, log_odds_of
from vqcortex.evaluation.values import check_images, slices

PREFIX = "oracle:"
TIE = 1e-5
"""Log-odds nearer than this share of the largest one (at least of 1) are equal: rounding must not decide."""


def oracle_arm(judge: str) -> str:
    """Name of the arm that asked a judge."""
    return PREFIX + judge


def fair_pairs(arms: Sequence[str], judges: Sequence[str]) -> Bool[Tensor, "a j"]:
    """True where a judge may score an arm: everywhere but at the oracle that asked this judge.

    Raises:
        ConfigError: An oracle asked the only judge there is, so that nobody is left to score it.

    Example:
        >>> fair_pairs(["tis", "oracle:cnn"], ["cnn", "patch"]).tolist()
        [[True, True], [False, True]]
    """
    fair = torch.tensor([[arm != oracle_arm(judge) for judge in judges] for arm in arms]).reshape(len(arms), -1)
    for arm, judged in zip(arms, fair.tolist(), strict=True):
        if not any(judged):
            raise ConfigError(
                f"arm {arm!r} asked the only judge, {', '.join(judges)}, so none is left to score it; "
                "an oracle needs at least 2 judges"
            )
    return fair


@torch.no_grad()
def greedy_on_judge(
    adapter: Adapter,
    judge: Judge,
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    fill: Fill,
    removals: int,
    *,
    candidates: int | None = None,
    batch: int = 64,
) -> Float[Tensor, "b h w"]:
    """The order of greedy removal as a score: h*w for the position removed first, 1 for the last.

    Each time, the position goes whose loss lowers the judge's log-odds of the concept most; they order as the
    probability does, and still tell positions apart where it is 1. Of equal positions the first in reading order goes.

    Args:
        adapter: The model that made the tokens.
        judge: The one that is asked; it may not score the result, see `fair_pairs`.
        tokens: Grids to remove positions of.
        concept: What each image shows, as an index into the judge's concepts.
        image_ids: One name per grid; random fills depend on it.
        fill: What a removed position holds.
        removals: Positions searched for one by one, 1..h*w; the others follow in the order that they have when the
            last of these is chosen. Costs about removals * h*w pictures per image.
        candidates: Positions tried for each removal but the first, at least 1: those that came first in the round
            before. About h*w + removals * candidates pictures per image; the oracle may be weaker. None: all.
        batch: Pictures per step, at least 1; changes speed and memory, never results.

    Raises:
        ConfigError: removals is below 1 or above h*w, candidates below 1, or the judge does not know a concept.

    Source:
        Greedy on the deletion curve of Petsiuk et al. 2018, arXiv:1806.07421, section 4.1.
    """
    check_images(tokens, image_ids, len(adapter.codebook), concept=concept)
    cells = tokens.shape[1] * tokens.shape[2]
    if not 1 <= removals <= cells:
        raise ConfigError(f"removals={removals} must be 1 to {cells}, the positions of the grid")
    if candidates is not None and candidates < 1:
        raise ConfigError(f"candidates={candidates} must be at least 1, or None to try every position")
    parts = []
    for rows in slices(len(tokens), batch):
        pixels = decoded(adapter, tokens[rows])
        ready = filler(fill, adapter, tokens[rows], image_ids[rows], pixels)
        parts.append(_greedy(judge, ready, tokens[rows], concept[rows], removals, candidates or cells, batch))
    return torch.cat(parts)


def _greedy(
    judge: Judge,
    fill: Filler,
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    removals: int,
    candidates: int,
    batch: int,
) -> Float[Tensor, "b h w"]:
    """Greedy removal in a few images."""
    images, cells = len(tokens), tokens[0].numel()
    left = torch.arange(cells).expand(images, -1)  # numbers of those still there, most promising first
    gone = torch.zeros(images, cells, dtype=torch.bool)
    removed: list[Tensor] = []
    for turn in range(max(1, min(removals, cells - 1))):  # the last one needs no choice
        tried, rest = left.tensor_split([candidates if turn else cells], 1)
        tried = tried.sort(1).values  # of equal positions the first in reading order goes
        trial = gone[:, None].expand(-1, tried.shape[1], -1).scatter(2, tried[..., None], True)
        odds = _log_odds(judge, fill, trial.unflatten(2, tokens.shape[1:]), concept, tokens.device, batch)
        ordered = torch.cat([tried.gather(1, _lowest_first(odds)), rest], 1)
        removed.append(ordered[:, :1])
        gone, left = gone.scatter(1, ordered[:, :1], True), ordered[:, 1:]
    order = torch.cat([*removed, left], 1)
    scores = torch.arange(cells, 0, -1, dtype=torch.float64).expand(images, -1)
    return torch.empty_like(scores).scatter(1, order, scores).unflatten(1, tokens.shape[1:]).to(tokens.device)


def _log_odds(
    judge: Judge,
    fill: Filler,
    trials: Bool[Tensor, "b m h w"],
    concept: Int[Tensor, " b"],
    device: torch.device,
    batch: int,
) -> Float[Tensor, "b m"]:
    """The judge's log-odds of the concept in each trial of each image, float64, on the CPU."""
    image = torch.arange(len(trials)).repeat_interleave(trials.shape[1])
    hidden, mine = trials.flatten(0, 1), concept.cpu()[image]
    answers = [
        log_odds_of(ask(judge, fill(image[rows].to(device), hidden[rows].to(device))), mine[rows])
        for rows in slices(len(image), batch)
    ]
    return torch.cat(answers).unflatten(0, (len(trials), -1))


def _lowest_first(values: Float[Tensor, "b m"]) -> Int[Tensor, "b m"]:
    """Order from the lowest up; runs of values nearer to each other than TIE keep the order they came in."""
    tie = TIE * values.abs().amax(1, keepdim=True).clamp_min(1)
    ascending, order = values.sort(dim=1, stable=True)
    run = torch.cat([torch.zeros_like(order[:, :1]), (ascending.diff(dim=1) > tie).long().cumsum(1)], 1)
    return torch.empty_like(run).scatter(1, order, run).sort(dim=1, stable=True).indices
