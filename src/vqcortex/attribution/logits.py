"""What an extractor says of whole grids and of grids with hidden positions, without gradients.

It must never: let memory grow with the number of maskings, or a result depend on how they were cut into forwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.errors import ConfigError, ModelError, ShapeError
from vqcortex.extractors.still import still

AT_ONCE = 256
"""Grids in one forward where a method has more of them than images, by default."""


@contextmanager
def evaluated(extractor: nn.Module) -> Iterator[nn.Module]:
    """The extractor held still, without gradients; as it was afterwards."""
    with still(extractor), torch.no_grad():
        yield extractor


def picked_logits(
    extractor: nn.Module, embedded: Float[Tensor, "b d h w"], concept: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Each image's logit for its concept; the concepts' range is checked, best on the CPU.

    Raises:
        ConfigError: The extractor has a single logit, or none for a concept.
    """
    logits = extractor(embedded)
    check_concepts(logits, concept)
    return logits.gather(1, concept.to(logits.device)[:, None])[:, 0]


def concept_logits(
    extractor: nn.Module, embedded: Float[Tensor, "b d h w"], concept: Int[Tensor, " b"], at_once: int = AT_ONCE
) -> Float[Tensor, " b"]:
    """As `picked_logits`, at most `at_once` grids in one forward, float32 or wider."""
    parts = zip(embedded.split(at_once), concept.split(at_once), strict=True)
    logits = torch.cat([picked_logits(extractor, *part) for part in parts])
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def hidden_logits(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    fill: Float[Tensor, "b d h w"],
    hidden: Bool[Tensor, "b m h w"],
    concept: Int[Tensor, " b"],
    at_once: int = AT_ONCE,
) -> Float[Tensor, "b m"]:
    """Return each image's concept logit under m maskings: hidden positions hold the fill's codes.

    Args:
        at_once: Grids in one forward, at least 1.
    """
    images, maskings = hidden.shape[:2]
    found = torch.empty(
        images * maskings, dtype=torch.promote_types(embedded.dtype, torch.float32), device=embedded.device
    )
    for start in range(0, len(found), at_once):
        row = torch.arange(start, min(start + at_once, len(found)))
        image = row // maskings
        here = image.to(embedded.device)
        masks = hidden[here, (row % maskings).to(embedded.device)][:, None]
        grids = torch.where(masks, fill[here], embedded[here])
        found[start : start + at_once] = picked_logits(extractor, grids, concept[image])
    return found.reshape(images, maskings)


def check_lengths(embedded: Tensor, concept: Tensor, image_ids: Sequence[str]) -> None:
    """Refuse a call without one concept and one id per image."""
    if not len(embedded) == len(concept) == len(image_ids):
        raise ShapeError(
            f"{len(embedded)} images came with {len(concept)} concepts and {len(image_ids)} ids; "
            "one concept and one id per image are needed"
        )


def check_concepts(logits: Float[Tensor, "b c"], concept: Int[Tensor, " b"]) -> None:
    """Refuse concepts without a logit, and an extractor that has but one."""
    if logits.shape[1] < 2:
        raise ConfigError(
            f"this extractor has {logits.shape[1]} logit, but what speaks for a concept shows only against others; "
            "at least 2 concepts are needed; train it with more"
        )
    low, high = int(concept.min()), int(concept.max())
    if low < 0 or high >= logits.shape[1]:
        raise ConfigError(
            f"concepts span [{low}, {high}] but this extractor has logits [0, {logits.shape[1] - 1}]; "
            "was it trained on another list of concepts?"
        )


def check_finite(values: Float[Tensor, "b ..."], image_ids: Sequence[str], what: str) -> None:
    """Refuse NaN and infinity in what an extractor gave; `what` names it in the plural."""
    fine = values.reshape(len(values), -1).isfinite().all(1)
    if not bool(fine.all()):
        first = image_ids[int((~fine).nonzero()[0])]
        raise ModelError(
            f"the extractor gives NaN or infinite {what} for {int((~fine).sum())} of {len(fine)} images, "
            f"{first!r} first; finite numbers are needed; do its weights or the embeddings hold NaN?"
        )


def at_once_problems(at_once: int) -> Iterator[str]:
    """What is wrong with the number of grids in one forward, if anything."""
    if at_once < 1:
        yield f"at_once={at_once} must be at least 1"
