"""Push a generator back to even rates while it draws: a bias on the logits of codes, and the search for its strength.

An autoregressive prior with rates r draws code x at a position with probability sum_g r_g p_g(x); with even rates it
would be sum_g e_g p_g(x). The logarithm of their ratio, added to the logits, makes the one into the other as long as
what was drawn before does not tell the group; where it does, every code that may follow carries about the same bias,
which then cancels. How far that holds is measured, not assumed: the generator is audited again, and the strength
follows.

Source:
    Ours; importance weights of label shift (Lipton et al. 2018, arXiv:1802.03916) turned into logit biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError

SMOOTH = 0.5  # images added to every count: what was never seen gets no infinite bias
MOST = 8.0  # nats a bias may reach


def code_frequency(tokens: Int[Tensor, "n h w"], k: int) -> Float[Tensor, "k h w"]:
    """Share of images that hold each code at each position, smoothed."""
    n, h, w = tokens.shape
    cell = torch.arange(h * w).view(h, w)
    keys = tokens.cpu().long() * (h * w) + cell
    counts = keys.flatten().bincount(minlength=k * h * w).view(k, h, w).double()
    return (counts + SMOOTH / k) / (n + SMOOTH)


def balancing_bias(
    frequency: Float[Tensor, "c k h w"], rates: Float[Tensor, " c"], even: Float[Tensor, " c"]
) -> Float[Tensor, "k h w"]:
    """What to add to the logits so that groups found at `rates` come at `even`, in nats.

    Args:
        frequency: Of each group's images, from `code_frequency`.
        rates: As estimated, summing to 1.
        even: As wanted, summing to 1.
    """
    now = torch.einsum("c,ckhw->khw", rates.double().clamp(min=1e-3), frequency)
    wanted = torch.einsum("c,ckhw->khw", even.double(), frequency)
    return (wanted / now).log().clamp(-MOST, MOST)


def undecided(groups: Sequence[Int[Tensor, "_ h w"]], frequency: Float[Tensor, "c k h w"]) -> Float[Tensor, "h w"]:
    """How little the tokens before each position, row by row, tell of an image's group: 1 nothing, 0 everything.

    The mean over images, every group counting alike, of the entropy of the group, given the tokens before as if they
    were independent, over that of groups that are all as likely.

    Args:
        groups: Attribute images of each group.
        frequency: Theirs, from `code_frequency`.
    """
    c, _, h, w = frequency.shape
    logs, cells = frequency.log().flatten(2), torch.arange(h * w)
    found = []
    for tokens in groups:
        seen = logs[:, tokens.cpu().long().flatten(1), cells]  # (c, n, h*w)
        before = seen.cumsum(2) - seen
        found.append(torch.special.entr(before.softmax(0)).sum(0).mean(0) / math.log(c))
    return torch.stack(found).mean(0).view(h, w)


def suppressing_bias(codes: Sequence[int], k: int, grid: tuple[int, int]) -> Float[Tensor, "k h w"]:
    """Minus infinity for some codes, everywhere: they are never drawn.

    Raises:
        ConfigError: No code would be left.
    """
    if len(set(codes)) >= k:
        raise ConfigError(f"suppressing {len(set(codes))} of {k} codes leaves none to draw; suppress fewer")
    bias = torch.zeros(k, *grid, dtype=torch.float64)
    bias[torch.tensor(sorted(set(codes)), dtype=torch.int64)] = -torch.inf
    return bias


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One strength tried: the share of the full bias, at least 0, and the rate that it gave."""

    strength: float
    rate: float


def find_strength(measure: Callable[[float], float], even: float, before: float, tries: int, close: float) -> list[Try]:
    """Strengths tried until a rate is within `close` of `even`, by the secant on log-odds; the first is 1.

    Args:
        measure: A strength to the rate it gives; expensive.
        even: The rate wanted, in (0, 1).
        before: The rate at strength 0.
        tries: At most so many, at least 1.
        close: As a share.
    Returns:
        All tries in order, that of strength 0 first; the best is the one nearest to `even`.
    """
    found = [Try(strength=0.0, rate=before)]
    strength = 1.0
    for _ in range(tries):
        found.append(Try(strength=strength, rate=measure(strength)))
        if abs(found[-1].rate - even) <= close:
            break
        strength = _next_strength(found, even)
    return found


def best_try(tries: Sequence[Try], even: float) -> Try:
    """The one whose rate is nearest to `even`; the weakest of equals."""
    return min(tries, key=lambda one: (abs(one.rate - even), one.strength))


def _next_strength(tries: Sequence[Try], even: float) -> float:
    """Where a line through the two tries that enclose `even`, or through the last two, meets it."""
    below = [one for one in tries if _odds(one.rate) <= _odds(even)]
    above = [one for one in tries if _odds(one.rate) > _odds(even)]
    if below and above:
        one, other = max(below, key=lambda x: x.rate), min(above, key=lambda x: x.rate)
    else:
        one, other = tries[-2], tries[-1]
    gap = _odds(other.rate) - _odds(one.rate)
    if abs(gap) < 1e-6:
        return max(one.strength, other.strength) * 2
    wanted = one.strength + (_odds(even) - _odds(one.rate)) / gap * (other.strength - one.strength)
    return float(min(max(wanted, 0.0), 4.0))


def _odds(rate: float) -> float:
    kept = min(max(rate, 1e-3), 1 - 1e-3)
    return float(torch.tensor(kept / (1 - kept)).log())
