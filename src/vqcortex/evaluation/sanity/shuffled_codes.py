"""With the codes shuffled the images are others, so the maps must be: what stays is not read off the codes."""

from __future__ import annotations

from dataclasses import replace

import torch

from vqcortex.evaluation.sanity.protocol import Limits, Outcome, Subject, measured_difference, skipped
from vqcortex.seeds import generator_for

NAME = "shuffled_codes"


def measure_shuffled_codes(subject: Subject, limits: Limits) -> Outcome:
    """Shuffle the rows of the codebook that embeds the tokens, and nothing else."""
    if (reason := skipped(NAME, subject, limits.different)) is not None:
        return Outcome(reason)
    order = torch.randperm(len(subject.codebook), generator=generator_for(limits.seed, NAME))
    shuffled = replace(subject, codebook=subject.codebook[order.to(subject.codebook.device)])
    return Outcome(measured_difference(NAME, subject.original, shuffled.maps(), limits))
