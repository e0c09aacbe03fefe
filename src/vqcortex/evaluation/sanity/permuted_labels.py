"""A network that learned permuted labels learned nothing about concepts, so its maps must be other maps."""

from __future__ import annotations

from vqcortex.evaluation.sanity.protocol import Limits, Outcome, Subject, measured_independence, skipped, unmeasured

NAME = "permuted_labels"


def measure_permuted_labels(subject: Subject, limits: Limits) -> Outcome:
    """Compare the maps of the network trained on permuted labels with the original's."""
    if subject.retrained is None:
        why = "no extractor was trained on permuted labels"
        return Outcome(unmeasured(NAME, "skipped", subject, limits.independent, why))
    if (reason := skipped(NAME, subject, limits.independent)) is not None:
        return Outcome(reason)
    return Outcome(measured_independence(NAME, subject.original, [subject.maps(subject.retrained)], limits))
