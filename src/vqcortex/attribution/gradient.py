"""The one engine behind every gradient method: the mean gradient over noisy copies, and its reductions.

It must never: take a backward pass per image, keep a graph from one draw to the next, or let an image's
result depend on the images beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.errors import ConfigError, ModelError, ShapeError
from vqcortex.extractors.still import still
from vqcortex.seeds import generator_for

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
) -> Float[Tensor, "b d h w"]:
    """Return the gradient of each image's concept logit, averaged over noisy copies of its embedding.

    Images do not meet inside an extractor, so the gradient of the summed logits holds every image's own
    gradient: one backward per draw serves the whole batch. Memory does not grow with the draws.

    Args:
        extractor: From embeddings (b, d, h, w) to logits (b, c); held still, and given back as it was.
        concept: The concept explained, per image.
        image_ids: One name per image; with the seed, it decides the image's noise.
        draws: Noisy copies per image, at least 1; without noise all copies are the same and one is taken.
        noise: Standard deviation of the noise as a fraction of each image's own value range, 0 or more.
        seed: Any whole number.

    Raises:
        ShapeError: There are not as many ids or concepts as images.
        ConfigError: A concept has no logit.
        ModelError: The logits do not depend on the embedding, or a gradient is not finite.

    Source:
        Smilkov et al. 2017, arXiv:1706.03825, section 2.1. The noise scale is that of each image, not of the
        batch.
    """
    _check_lengths(embedded, concept, image_ids)
    concept = concept.cpu()  # its range is checked at every draw, which must not make a GPU wait
    with still(extractor), torch.inference_mode(False), torch.enable_grad():
        total = torch.zeros_like(embedded, dtype=torch.promote_types(embedded.dtype, torch.float32))
        copies = _noisy_copies(embedded, image_ids, draws, noise, seed) if noise else iter([embedded.clone()])
        for copy in copies:
            total += gradient_of_logits(extractor, copy, concept)
    _check_finite(total, image_ids)
    return total / (draws if noise else 1)


def gradient_of_logits(
    extractor: nn.Module, embedded: Float[Tensor, "b d h w"], concept: Int[Tensor, " b"]
) -> Float[Tensor, "b d h w"]:
    """Return the gradient of each image's concept logit with one backward; gradients must be enabled."""
    leaf = embedded.detach().requires_grad_()
    logits = extractor(leaf)
    _check_logits(logits, concept)
    picked = logits.gather(1, concept.to(logits.device)[:, None])
    return torch.autograd.grad(picked.sum(), leaf)[0]


def value_range(embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Return the largest minus the smallest value of each image's embedding."""
    return embedded.amax((1, 2, 3), keepdim=True) - embedded.amin((1, 2, 3), keepdim=True)


def _noisy_copies(embedded: Tensor, image_ids: Sequence[str], draws: int, noise: float, seed: int) -> Iterator[Tensor]:
    spread = noise * value_range(embedded)
    generators = [generator_for(seed, name, "noise") for name in image_ids]
    for _ in range(draws):
        yield embedded + spread * _unit_noise(embedded, generators)


def _unit_noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One standard normal draw per image, the same numbers for every dtype and device."""
    on_gpu = like.device.type == "cuda"
    # Pinned memory lets the copy wait in the GPU's queue, so the next draw is made while the GPU computes.
    drawn = torch.empty(like.shape, dtype=torch.float32, pin_memory=on_gpu)
    for row, generator in zip(drawn, generators, strict=True):
        row.normal_(generator=generator)
    return drawn.to(like.device, like.dtype, non_blocking=on_gpu)


def _check_lengths(embedded: Tensor, concept: Tensor, image_ids: Sequence[str]) -> None:
    if not len(embedded) == len(concept) == len(image_ids):
        raise ShapeError(
            f"{len(embedded)} images came with {len(concept)} concepts and {len(image_ids)} ids; "
            "one concept and one id per image are needed"
        )


def _check_logits(logits: Tensor, concept: Tensor) -> None:
    if not logits.requires_grad:
        raise ModelError(
            "the extractor's logits have no gradient with respect to the embedding; a forward without "
            "no_grad, detach or argmax on the way is needed; check the extractor's forward"
        )
    low, high = int(concept.min()), int(concept.max())
    if low < 0 or high >= logits.shape[1]:
        raise ConfigError(
            f"concepts span [{low}, {high}] but this extractor has logits [0, {logits.shape[1] - 1}]; "
            "was it trained on another list of concepts?"
        )


def _check_finite(gradient: Tensor, image_ids: Sequence[str]) -> None:
    fine = gradient.flatten(1).isfinite().all(1)
    if not bool(fine.all()):
        first = image_ids[int((~fine).nonzero()[0])]
        raise ModelError(
            f"the extractor gives NaN or infinite gradients for {int((~fine).sum())} of {len(fine)} images, "
            f"{first!r} first; finite numbers are needed; do its weights or the embeddings hold NaN?"
        )
