"""Do probabilities mean what they say: one temperature for the logits, and the error that is left.

Source:
    Guo et al. 2017, arXiv:1706.04599, section 2 (expected calibration error) and 4.2 (temperature scaling).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0
HALVINGS = 60  # of the bracket around the temperature: past the precision of float64


def fit_temperature(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """Return the temperature that minimises the cross entropy of softmax(logits / temperature).

    The cross entropy is convex in the inverse temperature, so its slope is bisected in float64: no step size, no
    random start, the same number every time.

    Args:
        logits: Of images that neither trained the model nor will judge it.
        labels: True classes, 0..c-1.

    Returns:
        0.05 to 20; an end of that range when no finite temperature is best (all right, or worse than chance).
    """
    values = logits.detach().double()
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(values, labels, math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def slope(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], inverse: float) -> float:
    """Derivative of the mean cross entropy by the inverse temperature: expected logit minus the true one's."""
    expected = ((logits * inverse).softmax(1) * logits).sum(1)
    true = logits.gather(1, labels.to(logits.device).long()[:, None])[:, 0]
    return float((expected - true).mean())


def calibration_gaps(
    probabilities: Float[Tensor, "n c"], labels: Int[Tensor, " n"], bins: int = BINS
) -> Float[Tensor, " m"]:
    """Summed confidence minus summed hits per bin of confidence; gaps of batches add up to those of their union.

    Args:
        probabilities: Of every class; the largest is the confidence.
        labels: True classes, 0..c-1.
        bins: m, equally wide; a bin holds its upper edge.
    """
    confidence, guess = probabilities.double().max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = confidence - (guess == labels.to(guess.device)).double()
    return torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add(0, place, gap)


def expected_calibration_error(
    probabilities: Float[Tensor, "n c"], labels: Int[Tensor, " n"], bins: int = BINS
) -> float:
    """Mean over images of |confidence - accuracy| of their confidence bin, 0 (calibrated) to 1."""
    return float(calibration_gaps(probabilities, labels, bins).abs().sum() / len(labels))
