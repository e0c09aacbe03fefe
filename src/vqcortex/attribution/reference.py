"""The published algorithm with its quirks, each behind a named switch, so that users can compare.

Not in METHODS: with the published noise scale an image's score depends on the images beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.gradient import REDUCTIONS, gradient_of_logits, value_range
from vqcortex.errors import ShapeError
from vqcortex.extractors.still import still


def published_tis(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    noises: Float[Tensor, "s b d h w"] | None = None,
    draws: int = 20,
    spread: float = 0.2,
    reduce: str = "max",
    *,
    batch_noise_scale: bool = True,
    one_backward_per_sample: bool = False,
) -> Float[Tensor, "b h w"]:
    """Return the published token importance score; the arguments are those of `published_gradient`.

    Args:
        reduce: "max" as published by default, "mean" as its option; the others are ours.

    Source:
        Yang et al. 2025, arXiv:2506.00698, token importance score, as its published code computes it.
    """
    gradient = published_gradient(
        extractor,
        embedded,
        concept,
        noises,
        draws,
        spread,
        batch_noise_scale=batch_noise_scale,
        one_backward_per_sample=one_backward_per_sample,
    )
    return REDUCTIONS[reduce](gradient)


def published_gradient(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    noises: Float[Tensor, "s b d h w"] | None = None,
    draws: int = 20,
    spread: float = 0.2,
    *,
    batch_noise_scale: bool = True,
    one_backward_per_sample: bool = False,
) -> Float[Tensor, "b d h w"]:
    """Return the mean gradient of the published code, summed in float64.

    Args:
        noises: Standard normal numbers per draw, scaled in here; None: from torch's global generator, as
            published.
        draws: Noisy copies; `noises`, where given, must hold as many.
        spread: Standard deviation of the noise as a fraction of the value range.
        batch_noise_scale: The range is that of the whole batch, as published; False: of each image.
        one_backward_per_sample: One backward over the whole batch for every image, each keeping its graph to
            the end, as published: the same numbers for far more time and memory. For the record and for
            benchmarks.

    Raises:
        ShapeError: `noises` does not hold `draws` draws of the embedding's shape.
    """
    _check_noises(noises, draws, embedded)
    scale = spread * (embedded.max() - embedded.min() if batch_noise_scale else value_range(embedded))
    total = torch.zeros_like(embedded, dtype=torch.float64)
    take = _gradient_per_sample if one_backward_per_sample else gradient_of_logits
    with still(extractor), torch.enable_grad():
        if one_backward_per_sample:
            extractor.requires_grad_(True)  # as published; `still` puts every flag back
        for unit in _units(noises, draws, embedded):
            total = total + take(extractor, embedded + unit * scale, concept)
    return total.detach() / draws


def _gradient_per_sample(
    extractor: nn.Module, embedded: Float[Tensor, "b d h w"], concept: Int[Tensor, " b"]
) -> Float[Tensor, "b d h w"]:
    leaf = embedded.detach().requires_grad_()
    logits = extractor(leaf)
    rows = []
    for i, one in enumerate(concept.tolist()):
        chosen = torch.zeros_like(logits)
        chosen[i, one] = 1
        rows.append(torch.autograd.grad(logits, leaf, chosen, create_graph=True)[0][i])
    return torch.stack(rows)


def _units(noises: Tensor | None, draws: int, like: Tensor) -> Iterator[Tensor]:
    if noises is not None:
        yield from noises.to(like)
        return
    for _ in range(draws):
        yield torch.randn(like.shape).to(like)


def _check_noises(noises: Tensor | None, draws: int, embedded: Tensor) -> None:
    if noises is not None and noises.shape != (draws, *embedded.shape):
        raise ShapeError(
            f"noises has shape {tuple(noises.shape)} but {draws} draws for these embeddings are "
            f"{(draws, *embedded.shape)}; pass draws={len(noises)}, or as many noises as draws"
        )
