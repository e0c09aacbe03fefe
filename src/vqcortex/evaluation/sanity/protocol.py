"""What a sanity check is given, and what it says.

Source:
    Adebayo et al. 2018, arXiv:1810.03292: weights and labels. Codes and concepts are ours, as are the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.errors import ModelError
from vqcortex.evaluation.intervals import Interval, interval
from vqcortex.evaluation.rank_agreement import RankAgreement, rank_correlation
from vqcortex.evaluation.sanity import CHECKS
from vqcortex.extractors.protocol import look_up

Verdict = Literal["pass", "fail", "skipped"]
Score = Callable[[nn.Module, Tensor, Tensor, Sequence[str]], Tensor]
"""What explains: from (module, embedded (b, d, h, w), concept (b,), image ids) to importance (b, h, w)."""

LEAST_IMAGES = 8  # below this a mean correlation tells nothing
LEAST_POSITIONS = 4  # on fewer, two orders agree too often by accident
RANKS = "mean rank correlation (Spearman)"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a check is passed, and how much it looks at.

    Args:
        independent: Largest absolute mean rank correlation with maps that must know nothing of each other, 0 to 1.
        different: Largest mean rank correlation with maps that must differ, -1 to 1.
        draws: Randomisations of all weights, at least 1.
        steps: Steps of the cascade at most, at least 1: layers next to each other share one.
        seed: Of every draw.
    """

    independent: float = 0.2
    different: float = 0.5
    draws: int = 3
    steps: int = 6
    seed: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is examined: an explainer, the network it explains, and images.

    Args:
        module: The network, or a ModuleDict of several that are explained together; never changed.
        score: Explains it.
        codebook: The codes.
        tokens: The images.
        concept: What is explained, per image.
        image_ids: One name per image; with the seed, they decide what is drawn.
        original: Their importance as it is, (b, h, w), from the same `score`.
        concepts: How many there are.
        retrained: The same network trained on permuted labels; None: there is none.
        renumbered: From the new number of every code, (k,), to the explainer as it would be made from the renumbered
            codebook, its baseline included; None: renumbering is not examined.
        pool: From tokens, importance and concepts to how often each concept has each code where it matters, (c, k);
            None: renumbering looks at maps only.
    """

    module: nn.Module
    score: Score
    codebook: Float[Tensor, "k d"]
    tokens: Int[Tensor, "b h w"]
    concept: Int[Tensor, " b"]
    image_ids: Sequence[str]
    original: Float[Tensor, "b h w"]
    concepts: int
    retrained: nn.Module | None = None
    renumbered: Callable[[Tensor], Score] | None = None
    pool: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def maps(self, module: nn.Module | None = None) -> Float[Tensor, "b h w"]:
        """Importance of the images' positions, by another network if one is given."""
        embedded = look_up(self.codebook, self.tokens)
        return self.score(self.module if module is None else module, embedded, self.concept, self.image_ids)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Args:
        check: Its name.
        verdict: "pass", "fail", or "skipped" where there is nothing to measure.
        measures: What `value` is, in words.
        value: What was measured; None: nothing could be.
        low: Lower end of its 95 % interval over images; None: there is none.
        high: Upper end, likewise.
        limit: What `value` must not exceed.
        images: Images looked at.
        reason: Why it failed or was skipped; empty for a pass.
    """

    check: str
    verdict: Verdict
    measures: str
    value: float | None
    low: float | None
    high: float | None
    limit: float
    images: int
    reason: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One point of the curve: some layers randomised, maps compared with the original's.

    Args:
        kind: "cascading": these layers and all above them; "independent": these layers alone.
        step: From 1, at the logits, down to the embedding.
        layers: Names.
        signed: Mean rank correlation of the maps as they are; None: all of them are constant.
        low: Lower end of its 95 % interval over images; None: there is none.
        high: Upper end, likewise.
        magnitude: Mean rank correlation of their absolute values, which says whether the sign alone was lost; None as
            for `signed`.
        images: Images looked at.
        flat: Images with a constant map, which are left out.
    """

    kind: Literal["cascading", "independent"]
    step: int
    layers: tuple[str, ...]
    signed: float | None
    low: float | None
    high: float | None
    magnitude: float | None
    images: int
    flat: int


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """A finding, and the curve behind it where there is one."""

    finding: Finding
    curve: tuple[Step, ...] = ()


class Check(Protocol):
    """One sanity check; the subject is as before when it returns, and the same call gives the same outcome."""

    def __call__(self, subject: Subject, limits: Limits) -> Outcome: ...


def examine(name: str, subject: Subject, limits: Limits) -> Outcome:
    """Do one check.

    Args:
        name: Entry of CHECKS.
        subject: What is examined.
        limits: When it passes.

    Raises:
        UnknownName: There is no such check.
    """
    check = CHECKS[name]
    try:
        return check(subject, limits)
    except ModelError as error:  # a network of random weights may have no finite gradient: that is a finding
        first = str(error).splitlines()[0]
        return Outcome(unmeasured(name, "fail", subject, limits.independent, f"the method refused: {first}"))


def unmeasured(check: str, verdict: Verdict, subject: Subject, limit: float, reason: str) -> Finding:
    """A finding without a number."""
    return Finding(
        check=check, verdict=verdict, measures=RANKS, value=None, low=None, high=None, limit=limit,
        images=len(subject.image_ids), reason=reason,
    )  # fmt: skip


def skipped(check: str, subject: Subject, limit: float) -> Finding | None:
    """Why rank correlations say nothing of these images; None where they do."""
    images, (h, w) = len(subject.image_ids), subject.tokens.shape[1:]
    if images < LEAST_IMAGES:
        why = f"{images} images say nothing of a mean correlation; at least {LEAST_IMAGES} are needed"
        return unmeasured(check, "skipped", subject, limit, why)
    if h * w < LEAST_POSITIONS:
        why = f"a {h}x{w} grid has too few positions to order; at least {LEAST_POSITIONS} are needed"
        return unmeasured(check, "skipped", subject, limit, why)
    return None


def measured_independence(check: str, original: Tensor, others: Sequence[Tensor], limits: Limits) -> Finding:
    """Whether maps know nothing of the original's: the mean over `others` of |mean rank correlation over images|.

    The absolute value is taken of each mean over images, so that networks which turn the same order round, each in a
    direction of its own, do not cancel.

    Args:
        check: Its name.
        original: Maps (b, h, w).
        others: Maps of the same images, each (b, h, w), at least one.
        limits: The `independent` one counts.
    """
    found = [rank_correlation(original, one) for one in others]
    is_flat = torch.stack([one.is_flat for one in found]).any(0)
    rho = torch.stack([one.rho for one in found])
    signs = rho[:, ~is_flat].mean(1).sign() if not bool(is_flat.all()) else rho[:, 0]
    return _judged(check, RankAgreement((rho * signs[:, None]).mean(0), is_flat), limits.independent, INDEPENDENT)


def measured_difference(check: str, original: Tensor, other: Tensor, limits: Limits) -> Finding:
    """Whether maps (b, h, w) differ from the original's: their mean rank correlation over images, signed."""
    return _judged(check, rank_correlation(original, other), limits.different, DIFFERENT)


INDEPENDENT = "the maps keep the order they had, so they show something other than what was learned"
DIFFERENT = "the maps hardly change, so they show something other than this"


def _judged(check: str, found: RankAgreement, limit: float, meaning: str) -> Finding:
    images, flat = len(found.rho), int(found.is_flat.sum())
    finding = Finding(
        check=check, verdict="fail", measures=RANKS, value=None, low=None, high=None, limit=limit, images=images
    )
    mean = mean_over(found)
    if mean is None or 2 * flat > images:
        why = f"constant maps on {flat} of {images} images: they order nothing, so there is nothing to compare"
        return replace(finding, reason=why)
    finding = replace(finding, value=mean.value, low=mean.low, high=mean.high)
    if mean.value <= limit:
        return replace(finding, verdict="pass")
    return replace(finding, reason=meaning)


def mean_over(found: RankAgreement) -> Interval | None:
    """Mean over the images whose correlation is defined, with its interval; None: there are none."""
    return None if bool(found.is_flat.all()) else interval(found.rho[~found.is_flat])
