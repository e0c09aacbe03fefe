"""The published codebook search, quirks and all, to compare with and to measure against; not a strategy to use.

One image at a time; parameters for every position, of which all but the free ones are kept by multiplying their
gradient with zero; gradients of the extractor's weights and of the codebook computed and thrown away; start states that
differ between the two arms; the last random draw decoded; and, per judge, the best of the checkpoints kept.

Source:
    Yang et al. 2025, arXiv:2506.00698, and the published code, github YangTianze009/CORTEX (commit 0dbafb3),
    VQGAN_explanation/eval/codebook_level_explanation.py, told in our own words and code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.config import raise_all
from vqcortex.extractors.still import still
from vqcortex.results import Trace
from vqcortex.search.ascent import probability_of, traced
from vqcortex.search.problem import Problem, embed, nearest, pose
from vqcortex.seeds import generator_for

FIXED = 300.0  # logit of the standing token where nothing may change; every other code has its negative
NEVER_ZERO = 1e-20  # added inside both logarithms of the published Gumbel noise


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSearch:
    """One arm of the published codebook search; switch a quirk off to see what it does.

    Args:
        arm: "token" (Gumbel-softmax over the codebook) or "embedding".
        steps: Steps of Adam, at least 1.
        rate: Its learning rate, above 0.
        temperature: Of the softmax, above 0, constant.
        checkpoint_every: Steps between two looks at the picture, at least 1.
        seed: The published code has none; here one generator runs through all images, in order.
        all_rows: Parameters for all h*w positions, and not for the free ones alone.
        weight_gradients: Compute gradients of weights and codebook in every step, and drop them.
        decodes_draw: The result of the token arm is the last random draw, and not the argmax.
        company_matters: An image's draws depend on how many images came before it.
    """

    arm: Literal["token", "embedding"] = "token"
    steps: int = 5000
    rate: float = 0.01
    temperature: float = 1.0
    checkpoint_every: int = 500
    seed: int = 0
    all_rows: bool = True
    weight_gradients: bool = True
    decodes_draw: bool = True
    company_matters: bool = True

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        if self.arm not in ("token", "embedding"):
            yield f"arm={self.arm!r} must be one of token, embedding"
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be at least 1"
        for name in ("rate", "temperature"):
            if not getattr(self, name) > 0:
                yield f"{name}={getattr(self, name)} must be above 0"

    def __call__(
        self,
        extractor: nn.Module,
        codebook: Float[Tensor, "k d"],
        tokens: Int[Tensor, "b h w"],
        free: Bool[Tensor, "rows columns"],
        target: Int[Tensor, " targets"],
        image_ids: Sequence[str],
    ) -> PublishedTrace:
        """Search every image for its target, one after the other; arguments and errors as in `Search`."""
        problem = pose(codebook, tokens, free, target, image_ids)
        at = checkpoints(self.steps, self.checkpoint_every)
        shared, seen = generator_for(self.seed), []
        with still(extractor):
            extractor.requires_grad_(self.weight_gradients)
            for one in problem.parts(1):
                own = shared if self.company_matters else generator_for(self.seed, one.keys[0][0])
                seen.append(torch.stack(list(_ARMS[self.arm](self, extractor, one, own))))
            grids = torch.stack(seen, 1)
            with torch.no_grad():
                chances = torch.stack([probability_of(extractor, problem, one) for one in grids[:-1]])
        trace = traced(f"published_{self.arm}", problem, grids[-1], at, chances)
        return PublishedTrace(trace=trace, checkpoints=grids[:-1])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTrace:
    """What the published search leaves behind.

    Args:
        trace: Its last state; `steps` counts as the published code does, from 0 to steps - 1.
        checkpoints: The grids its judges look at, at each of those steps.
    """

    trace: Trace
    checkpoints: Int[Tensor, "s b h w"]


def checkpoints(steps: int, every: int) -> tuple[int, ...]:
    """Return the steps at which the published search looks at the picture: every `every`-th, and the last.

    Example:
        >>> len(checkpoints(5000, 500))
        11
    """
    return tuple(step for step in range(steps) if step % every == 0 or step == steps - 1)


def best_of_checkpoints(probability: Float[Tensor, "s b"]) -> Float[Tensor, " b"]:
    """What the published evaluation reports for a judge: the target's probability at the checkpoint it likes best."""
    return probability.amax(0)


def _token_arm(
    search: PublishedSearch, extractor: nn.Module, one: Problem, rng: torch.Generator
) -> Iterator[Int[Tensor, "h w"]]:
    """Yield the drawn grid at every checkpoint, then the result."""
    free = _free(one)
    logits = _published_logits(one, free, rng)
    mask = free.flatten()[:, None].to(logits)
    if not search.all_rows:
        logits, mask = logits[free.flatten()].clone(), mask[free.flatten()]
    adam = torch.optim.Adam([logits.requires_grad_()], lr=search.rate)
    codebook = one.codebook.clone().requires_grad_(search.weight_gradients)
    at = checkpoints(search.steps, search.checkpoint_every)
    for step in range(search.steps):
        soft = ((logits + _published_gumbel(logits, rng)) / search.temperature).softmax(1)
        drawn = soft.argmax(1)
        hard = F.one_hot(drawn, len(codebook)).to(soft)
        chosen = ((hard - soft).detach() + soft) @ codebook
        logits.grad = _uphill(search, extractor, _placed(one, chosen), one.target, logits, codebook) * mask
        adam.step()
        if step in at:
            yield _grid(one, drawn)
    yield _grid(one, drawn if search.decodes_draw else logits.argmax(1))


def _embedding_arm(
    search: PublishedSearch, extractor: nn.Module, one: Problem, rng: torch.Generator
) -> Iterator[Int[Tensor, "h w"]]:
    """Yield the grid of nearest codes at every checkpoint, then the result."""
    free = _free(one).flatten()
    point = one.codebook[one.grids.flatten()].clone()  # (hw, d)
    mask = free[:, None].to(point)
    if not search.all_rows:
        point, mask = point[free].clone(), mask[free]
    adam = torch.optim.Adam([point.requires_grad_()], lr=search.rate)
    at = checkpoints(search.steps, search.checkpoint_every)
    for step in range(search.steps):
        point.grad = _uphill(search, extractor, _placed(one, point), one.target, point) * mask
        adam.step()
        if step in at:
            yield _grid(one, nearest(point.detach(), one.codebook))
    yield _grid(one, nearest(point.detach(), one.codebook))


_ARMS = {"token": _token_arm, "embedding": _embedding_arm}


def _free(one: Problem) -> Bool[Tensor, "h w"]:
    free = torch.zeros(one.grids.shape[1:], dtype=torch.bool, device=one.grids.device)
    free[one.places] = True
    return free


def _published_logits(one: Problem, free: Tensor, rng: torch.Generator) -> Float[Tensor, "hw k"]:
    """The standing token far above the rest, except at the free positions, which begin at normal draws."""
    logits = torch.full((free.numel(), len(one.codebook)), -FIXED)
    logits.scatter_(1, one.grids.view(-1, 1).cpu(), FIXED)
    places = free.flatten().cpu()
    logits[places] = torch.randn(int(places.sum()), len(one.codebook), generator=rng)
    return logits.to(one.codebook)


def _published_gumbel(like: Tensor, rng: torch.Generator) -> Tensor:
    even = torch.rand(like.shape, generator=rng).to(like)
    return -torch.log(-torch.log(even + NEVER_ZERO) + NEVER_ZERO)


def _uphill(
    search: PublishedSearch,
    extractor: nn.Module,
    embedded: Tensor,
    target: Tensor,
    moved: Tensor,
    *more: Tensor,
) -> Tensor:
    """Gradient of minus the target's logit with respect to `moved`; the rest is computed for the record and dropped."""
    loss = -extractor(embedded)[0, target[0]]
    wanted = [moved, *more, *extractor.parameters()] if search.weight_gradients else [moved]
    return torch.autograd.grad(loss, wanted, allow_unused=True)[0]


def _placed(one: Problem, codes: Float[Tensor, "n d"]) -> Float[Tensor, "1 d h w"]:
    """One embedding with the codes at all positions, or at the free ones when there are only as many."""
    height, width = one.grids.shape[1:]
    if len(codes) == height * width:
        return codes.T.reshape(1, -1, height, width)
    embedded = embed(one.grids, one.codebook)
    rows, columns = one.places
    return embedded.index_put(
        (torch.zeros_like(rows)[:, None], _channels(embedded), rows[:, None], columns[:, None]), codes
    )


def _channels(embedded: Tensor) -> Int[Tensor, "1 d"]:
    return torch.arange(embedded.shape[1], device=embedded.device)[None]


def _grid(one: Problem, tokens: Int[Tensor, " n"]) -> Int[Tensor, "h w"]:
    """One grid with the tokens at all positions, or at the free ones when there are only as many."""
    height, width = one.grids.shape[1:]
    if len(tokens) == height * width:
        return tokens.view(height, width)
    grid = one.grids[0].clone()
    grid[one.places] = tokens
    return grid
