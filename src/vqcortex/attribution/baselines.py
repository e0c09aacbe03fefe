"""What stands for "nothing here": no code, one code, or codes drawn by how often they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from vqcortex.attribution.logits import AT_ONCE, check_lengths, concept_logits, evaluated
from vqcortex.config import raise_all
from vqcortex.errors import ConfigError, ShapeError
from vqcortex.seeds import generator_for

BASELINES = ("mean", "zero", "frequent", "resampled")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnCodes:
    """Whole grids of codes drawn by use, so that what replaces a code is always a code the model knows.

    Draw number i of an image depends on (seed, image id, i) alone. A draw may be the code that stood there.

    Args:
        codebook: The codes.
        frequency: How often each is used, not negative, any scale.
        draws: Grids averaged over by methods that do not bring a number of their own, at least 1.
        seed: Any whole number.
    """

    codebook: Float[Tensor, "k d"] = field(repr=False, compare=False)
    frequency: Real[Tensor, " k"] = field(repr=False, compare=False)
    draws: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        raise_all([] if self.draws >= 1 else [f"draws={self.draws} of the baseline must be at least 1"])
        check_frequency(self.frequency, len(self.codebook))

    def tokens(self, draw: int, grid: tuple[int, int], image_ids: Sequence[str]) -> Int[Tensor, "b h w"]:
        """Draw number `draw` of each image, on the CPU."""
        upto = self.frequency.double().cpu().cumsum(0)
        upto = upto / upto[-1]  # ends at exactly 1, so that codes never used are never drawn
        rows = [
            torch.rand(grid, dtype=torch.float64, generator=generator_for(self.seed, name, "baseline", draw))
            for name in image_ids
        ]
        return torch.searchsorted(upto, torch.stack(rows), right=True)


Baseline: TypeAlias = Float[Tensor, " n"] | DrawnCodes | None
"""One code (d,), such as the mean code; codes drawn by use; None: zero."""


def draws_of(baseline: Baseline) -> int:
    """Grids to average over: one, unless the baseline is drawn."""
    return baseline.draws if isinstance(baseline, DrawnCodes) else 1


def expected(baseline: Baseline) -> Float[Tensor, " n"] | None:
    """The mean of what the baseline draws; a single code is its own mean."""
    return mean_code(baseline.codebook, baseline.frequency) if isinstance(baseline, DrawnCodes) else baseline


def baseline_grid(
    baseline: Baseline, draw: int, embedded: Float[Tensor, "b d h w"], image_ids: Sequence[str]
) -> Float[Tensor, "b d h w"]:
    """The baseline in the place of every code of every image.

    Args:
        draw: Which draw, from 0; of no consequence for a single code.

    Raises:
        ShapeError: The baseline's codes have another number of channels than the embedding.
    """
    if baseline is None:
        return torch.zeros_like(embedded)
    if isinstance(baseline, DrawnCodes):
        _check_channels(baseline.codebook.shape[1:], embedded)
        tokens = baseline.tokens(draw, (embedded.shape[2], embedded.shape[3]), image_ids)
        return baseline.codebook.to(embedded)[tokens.to(embedded.device)].permute(0, 3, 1, 2)
    _check_channels(baseline.shape, embedded)
    return baseline.to(embedded)[:, None, None].expand_as(embedded)


def completeness_gap(
    scores: Float[Tensor, "b h w"],
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    *,
    baseline: Baseline,
    draws: Sequence[int] | None = None,
    at_once: int = AT_ONCE,
) -> Float[Tensor, " b"]:
    """Return by how much scores fail to add up: their sum minus (logit of the image - mean logit of its baseline).

    In logits, per image; 0 is perfect. It asks nothing of the method, so it can be taken of anybody's scores.

    Args:
        baseline: What the scores measure from.
        draws: Numbers of the draws they used, repeated where used more than once; None: each draw once.
        at_once: Grids in one forward, at least 1.

    Source:
        Sundararajan et al. 2017, arXiv:1703.01365, proposition 1.
    """
    check_lengths(embedded, concept, image_ids)
    concept, used = concept.cpu(), list(range(draws_of(baseline)) if draws is None else draws)
    with evaluated(extractor):
        full = concept_logits(extractor, embedded, concept, at_once)
        empty = torch.zeros_like(full)
        for draw in sorted(set(used)):
            grid = baseline_grid(baseline, draw, embedded, image_ids)
            empty += used.count(draw) / len(used) * concept_logits(extractor, grid, concept, at_once)
    return scores.sum((1, 2)) - (full - empty)


def chosen_baseline(
    wanted: Tensor | DrawnCodes | str | None, codebook: Tensor | None, frequency: Tensor | None, draws: int, seed: int
) -> Baseline:
    """Return the baseline that a name stands for; anything but a name is returned as it is.

    Args:
        wanted: "mean": the mean code, by use where a frequency is given; "frequent": the code used most;
            "resampled": codes drawn by use; "zero" or None: no code.
        draws: For "resampled".
        seed: For "resampled".

    Raises:
        ConfigError: The name is unknown, or what it needs was not given.
    """
    if not isinstance(wanted, str) or wanted == "zero":
        return None if isinstance(wanted, str) else wanted
    raise_all(_baseline_problems(wanted, codebook, frequency))
    assert codebook is not None
    if wanted == "mean":
        return mean_code(codebook, frequency)
    assert frequency is not None
    check_frequency(frequency, len(codebook))
    if wanted == "frequent":
        return codebook[int(frequency.argmax())]
    return DrawnCodes(codebook=codebook, frequency=frequency, draws=draws, seed=seed)


def _baseline_problems(wanted: str, codebook: Tensor | None, frequency: Tensor | None) -> Iterator[str]:
    if wanted not in BASELINES:
        yield f"baseline={wanted!r} must be 'mean', 'zero', 'frequent', 'resampled' or a tensor (d,)"
        return
    if codebook is None:
        yield f"baseline={wanted!r} needs a codebook, and none was given; pass codebook=, or 'zero'"
    if frequency is None and wanted != "mean":
        yield f"baseline={wanted!r} needs to know how often each code is used; pass frequency=, one count per code"


def mean_code(codebook: Float[Tensor, "k d"], frequency: Real[Tensor, " k"] | None) -> Float[Tensor, " d"]:
    """The average code, by use if a frequency is given."""
    if frequency is None:
        return codebook.mean(0)
    check_frequency(frequency, len(codebook))
    uses = frequency.double().cpu()
    live = uses > 0
    weighted = uses[live, None] * codebook.double().cpu()[live]
    # Sorted, so that the numbers of the codes have no say in the sum, not even in its last bit.
    return (weighted.sort(0).values.sum(0) / uses.sum()).to(codebook)


def check_frequency(frequency: Tensor, codes: int) -> None:
    """Refuse frequencies that are not one share per code."""
    if tuple(frequency.shape) != (codes,):
        raise ShapeError(
            f"frequency has shape {tuple(frequency.shape)} but ({codes},) is needed, one number per code; "
            "count it over tokens of the same model"
        )
    if not bool(frequency.isfinite().all()) or bool((frequency < 0).any()) or not float(frequency.sum()) > 0:
        raise ConfigError(
            "frequency must be finite, not negative, and above 0 for some code; count it over at least one image"
        )


def _check_channels(shape: Sequence[int], embedded: Tensor) -> None:
    if tuple(shape) != tuple(embedded.shape[1:2]):
        raise ShapeError(
            f"the baseline has shape {tuple(shape)} but codes have {embedded.shape[1]} channels; "
            "give one code, as in codebook.mean(0)"
        )
