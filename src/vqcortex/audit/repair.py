"""Push a generator back to even rates while it draws: a bias on the logits of codes, and the search for its strength.

Wanted are images x with probability p(x) w(g), the generator's own times a weight of their group: even rates over the
rates that were found. Drawn code by code, that is p(code | before) times the mean weight of the images that may still
come of it, sum_g w(g) p(g | before, code); its logarithm is what is added to the logits. The group's probability is
naive Bayes on codes and positions, calibrated on images of known groups (`GroupSteering`). A bias that is the same for
all images (`balancing_bias`) knows nothing of what was drawn before.

How far that holds is measured, not assumed: the generator is audited again, and the strength follows.

Source:
    Weights of groups: label shift, Lipton et al. 2018, arXiv:1802.03916. The mean weight of what may still come as a
    factor on each step: Yang and Klein 2021, FUDGE, arXiv:2104.05218, section 3. Where we differ: groups and rates
    instead of one wanted attribute, and counted frequencies instead of a trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor

from vqcortex.errors import ConfigError, ShapeError
from vqcortex.files import hash_of_bytes

SMOOTH = 0.5  # images added to every count: what was never seen gets no infinite bias
MOST = 8.0  # nats a bias may reach
LEAST = 1e-3  # rate below which a group that hardly comes is not pushed further
HELD = 3  # every third attribute image calibrates the evidence of the others


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
    now = torch.einsum("c,ckhw->khw", rates.double().clamp(min=LEAST), frequency)
    wanted = torch.einsum("c,ckhw->khw", even.double(), frequency)
    return (wanted / now).log().clamp(-MOST, MOST)


@final
@dataclass(frozen=True, slots=True)
class GroupSteering:
    """Draws each group as often as wanted, every image by itself: a steering, see `adapters/steering.py`.

    With p(g | before, x) the probability of group g after the codes before and code x, the bias of x is
    log sum_g p(g | before, x) exp(weight_g): the factor by which a generator's images of g are wanted more often than
    they come, as far as x tells. Where an image is decided, all codes get the same bias, which then cancels.

    Args:
        evidence: Log-frequency of every code at every position in each group's images, (c, k, h, w).
        before: How much the evidence of what was drawn before counts at each place, at least 0: codes that stand side
            by side say the same thing many times over, and their evidence adds up as if they did not; (h, w).
        rates: How often each group comes without a push, summing to 1, (c,).
        weight: Of each group, in nats, (c,).

    Raises:
        ShapeError: The four do not fit together.
        ConfigError: One of them holds NaN or infinity.
    """

    evidence: Tensor
    before: Tensor
    rates: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        held = {"evidence": self.evidence, "before": self.before, "rates": self.rates, "weight": self.weight}
        c, *cells = self.evidence.shape if self.evidence.ndim == 4 else (0,)
        if self.evidence.ndim != 4 or any(
            tuple(one.shape) != wanted
            for one, wanted in ((self.before, tuple(cells[1:])), (self.rates, (c,)), (self.weight, (c,)))
        ):
            shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in held.items())
            raise ShapeError(f"{shapes} do not fit; give evidence (c, k, h, w), before (h, w), rates and weight (c,)")
        for name, one in held.items():
            if not one.isfinite().all():
                raise ConfigError(f"{name} of a steering holds NaN or infinity; make it of finite numbers")

    @property
    def identity(self) -> str:
        """A hash of all four."""
        held = (self.evidence, self.before, self.rates, self.weight)
        return hash_of_bytes(b"".join(one.double().contiguous().numpy().tobytes() for one in held))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, h, w)."""
        _, k, h, w = self.evidence.shape
        return k, h, w

    def at(self, strength: float) -> GroupSteering:
        """The same with all weights times `strength`."""
        return replace(self, weight=self.weight * strength)

    def bias(self, drawn: Int[Tensor, "b p"], places: Int[Tensor, " p"], place: int) -> Float[Tensor, "b k"]:
        logs = self.evidence.flatten(2)
        said = logs[:, drawn.cpu(), places.cpu()].sum(2).T  # (b, c)
        odds = self.rates.log() + self.before.flatten()[place] * said
        told = (odds[:, :, None] + logs[:, :, place]).log_softmax(1)  # (b, c, k)
        return (told + self.weight[:, None]).logsumexp(1).to(drawn.device)


def group_steering(
    groups: Sequence[Int[Tensor, "_ h w"]], k: int, rates: Float[Tensor, " c"], even: Float[Tensor, " c"]
) -> GroupSteering:
    """What draws groups that come at `rates` at `even` rates.

    Args:
        groups: Attribute images of each, at least 3.
        k: Codes of the model.
        rates: As estimated, summing to 1.
        even: As wanted, summing to 1.
    """
    held, kept = [one[::HELD] for one in groups], [_without_every(one, HELD) for one in groups]
    evidence = torch.stack([code_frequency(one, k) for one in kept]).log()
    now = rates.double().cpu().clamp(min=LEAST)
    weight = even.double().cpu().log() - now.log()
    return GroupSteering(evidence=evidence, before=evidence_kept(held, evidence), rates=now / now.sum(), weight=weight)


def evidence_kept(groups: Sequence[Int[Tensor, "_ h w"]], evidence: Float[Tensor, "c k h w"]) -> Float[Tensor, "h w"]:
    """The factor on the evidence of what stands before each place with which the group is told best, in [0, 3].

    Told best: the largest mean log-probability of the group given before and the place's own code, over images that did
    not make `evidence`, every group counting alike. As temperature scaling does it, one number per place.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling).
    """
    c, _, h, w = evidence.shape
    logs, cells = evidence.flatten(2), torch.arange(h * w)
    own = torch.cat([logs[:, one.cpu().long().flatten(1), cells].permute(1, 2, 0) for one in groups])  # (n, h*w, c)
    before = own.cumsum(1) - own
    group = torch.cat([torch.full((len(one),), at) for at, one in enumerate(groups)])
    share = torch.cat([torch.full((len(one),), 1 / (c * len(one)), dtype=torch.float64) for one in groups])

    def surprise(factor: float, place: int) -> float:
        told = (factor * before[:, place] + own[:, place]).log_softmax(1)
        return -float(share @ told.gather(1, group[:, None])[:, 0])

    found = [minimize_scalar(surprise, bounds=(0, 3), args=(place,), method="bounded").x for place in cells.tolist()]
    return torch.tensor(found, dtype=torch.float64).view(h, w)


def _without_every(images: Int[Tensor, "n h w"], step: int) -> Int[Tensor, "m h w"]:
    return images[torch.arange(len(images)) % step != 0]


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
