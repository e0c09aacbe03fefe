"""Numbers of codes are names: with every code renumbered, in codebook and tokens alike, nothing may change, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from vqcortex.evaluation.sanity.protocol import Finding, Limits, Outcome, Subject, unmeasured
from vqcortex.extractors.protocol import look_up
from vqcortex.seeds import generator_for

NAME = "renumbered_codes"
MEASURES = "share of images whose map changed"


def measure_renumbered_codes(subject: Subject, limits: Limits) -> Outcome:
    """Renumber the codes and compare every map bit by bit, and what each concept has where it matters.

    The explainer is made again from the renumbered codebook, so that a baseline computed from it is examined as well.
    """
    if subject.renumbered is None:
        return Outcome(unmeasured(NAME, "skipped", subject, 0.0, "renumbering was not asked for"))
    order = torch.randperm(len(subject.codebook), generator=generator_for(limits.seed, NAME))
    order = order.to(subject.codebook.device)  # the new number of every code
    codebook = torch.empty_like(subject.codebook)
    codebook[order] = subject.codebook
    tokens, before = order[subject.tokens.to(order.device)], subject.original
    embedded = look_up(codebook, tokens)
    after = subject.renumbered(order)(subject.module, embedded, subject.concept, subject.image_ids)
    changed = (before != after).flatten(1).any(1)
    moved = _moved(subject, tokens, order, before, after)
    value = float(changed.double().mean())
    reasons = []
    if value:
        apart = float((before - after).abs().max())
        reasons.append(f"maps of {int(changed.sum())} of {len(changed)} images change, by up to {apart:.3g}")
    if moved:
        reasons.append(f"{moved} counts of codes where they matter change")
    reason = "; ".join(reasons) and f"{'; '.join(reasons)}: the numbers of the codes, or their order, have a say"
    finding = Finding(
        check=NAME, verdict="fail" if reason else "pass", measures=MEASURES, value=value, low=None, high=None,
        limit=0.0, images=len(changed), reason=reason,
    )  # fmt: skip
    return Outcome(finding)


def _moved(subject: Subject, tokens: Tensor, order: Tensor, before: Tensor, after: Tensor) -> int:
    """How many counts (concept, code) are others, up to the renumbering."""
    if subject.pool is None:
        return 0
    here = subject.pool(subject.tokens, before, subject.concept)
    there = subject.pool(tokens, after, subject.concept)
    return int((here != there[:, order.to(there.device)]).sum())
