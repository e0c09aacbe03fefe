"""Another concept of the same image has other reasons, so its map must differ."""

from __future__ import annotations

from dataclasses import replace

import torch

from vqcortex.evaluation.sanity.protocol import Limits, Outcome, Subject, measured_difference, skipped, unmeasured
from vqcortex.seeds import generator_for

NAME = "swapped_concept"


def measure_swapped_concept(subject: Subject, limits: Limits) -> Outcome:
    """Explain another concept of every image, drawn from the others."""
    if subject.concepts < 2:
        why = f"{subject.concepts} concept has no other to explain; at least 2 are needed"
        return Outcome(unmeasured(NAME, "skipped", subject, limits.different, why))
    if (reason := skipped(NAME, subject, limits.different)) is not None:
        return Outcome(reason)
    away = [_away(subject.concepts, limits.seed, name) for name in subject.image_ids]
    other = (subject.concept + torch.tensor(away, device=subject.concept.device)) % subject.concepts
    return Outcome(measured_difference(NAME, subject.original, replace(subject, concept=other).maps(), limits))


def _away(concepts: int, seed: int, name: str) -> int:
    """How far the other concept of an image is, 1..concepts-1."""
    return int(torch.randint(1, concepts, (), generator=generator_for(seed, name, NAME)))
