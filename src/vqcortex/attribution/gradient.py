"""The one engine behind every gradient method: the mean gradient over noisy copies, and its reductions.

It must never: take a backward pass per image, keep a graph from one draw to the next, or let an image's
result depend on the images beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.logits import check_concepts, check_finite, check_lengths
from vqcortex.attribution.noise import unit_noises
from vqcortex.errors import ModelError
from vqcortex.extractors.still import still

REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "max": lambda gradient: gradient.amax(1),
    "mean": lambda gradient: gradient.mean(1),
    "abs_max": lambda gradient: gradient.abs().amax(1),
    "abs_mean": lambda gradient: gradient.abs().mean(1),
    "norm": lambda gradient: torch.linalg.vector_norm(gradient, dim=1),
}
"""From a gradient (b, d, h, w) to one number per position (b, h, w)."""


def mean_gradient(
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
    *,
    draws: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    sampling: str = "plain",
) -> Float[Tensor, "b d h w"]:
    """Return the gradient of each image's concept logit, averaged over noisy copies of its embedding.

    Images do not meet inside an extractor, so the gradient of the summed logits holds every image's own
    gradient: one backward per draw serves the whole batch. No graph outlives its draw.

    Args:
        extractor: From embeddings (b, d, h, w) to logits (b, c); held still, and given back as it was.
        concept: The concept explained, per image.
        image_ids: One name per image; with the seed, it decides the image's noise.
        draws: Noisy copies per image, at least 1; without noise all copies are the same and one is taken.
        noise: Standard deviation of the noise as a fraction of each image's own value range, 0 or more.
        seed: Any whole number.
        sampling: How the copies are drawn: see `noise.unit_noises`.

    Raises:
        ShapeError: There are not as many ids or concepts as images.
        ConfigError: A concept has no logit, or there is but one.
        ModelError: The logits do not depend on the embedding, or a gradient is not finite.

    Source:
        Smilkov et al. 2017, arXiv:1706.03825, section 2.1. The noise scale is that of each image, not of the
        batch.
    """
    check_lengths(embedded, concept, image_ids)
    concept = concept.cpu()  # its range is checked at every draw, which must not make a GPU wait
    with still(extractor), torch.inference_mode(False), torch.enable_grad():
        total = torch.zeros_like(embedded, dtype=torch.promote_types(embedded.dtype, torch.float32))
        spread = noise * value_range(embedded)
        units = unit_noises(embedded, image_ids, draws, sampling, seed)
        copies: Iterator[Tensor] = (embedded + spread * unit for unit in units) if noise else iter([embedded.clone()])
        for copy in copies:
            total += gradient_of_logits(extractor, copy, concept)
    check_finite(total, image_ids, "gradients")
    return total / (draws if noise else 1)


def gradient_of_logits(
    extractor: nn.Module, embedded: Float[Tensor, "b d h w"], concept: Int[Tensor, " b"]
) -> Float[Tensor, "b d h w"]:
    """Return the gradient of each image's concept logit with one backward; gradients must be enabled."""
    leaf = embedded.detach().requires_grad_()
    logits = extractor(leaf)
    if not logits.requires_grad:
        raise ModelError(
            "the extractor's logits have no gradient with respect to the embedding; a forward without "
            "no_grad, detach or argmax on the way is needed; check the extractor's forward, or take a method "
            "without backward passes, such as occlusion"
        )
    check_concepts(logits, concept)
    picked = logits.gather(1, concept.to(logits.device)[:, None])
    return torch.autograd.grad(picked.sum(), leaf)[0]


def value_range(embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Return the largest minus the smallest value of each image's embedding."""
    return embedded.amax((1, 2, 3), keepdim=True) - embedded.amin((1, 2, 3), keepdim=True)
