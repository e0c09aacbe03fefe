"""Attention rollout: how much of each position reaches the class token of a transformer, by its attention alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.logits import check_concepts, check_finite, check_lengths, evaluated
from vqcortex.errors import ConfigError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRollout:
    """Share of each position in the class token, attention and residual paths followed through all blocks.

    Shares of an image, with the class token's own, add up to 1. They are the same for every concept: attention says
    where the network looks, not what for. Needs an extractor of `torch.nn.MultiheadAttention` modules that read the
    class token and then the positions in reading order, as ours do.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = "Abnar and Zuidema 2020, arXiv:2005.00928, section 3; heads averaged"

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        return 1, 0

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        check_lengths(embedded, concept, image_ids)
        h, w = embedded.shape[2:]
        with evaluated(extractor), attention_kept(extractor) as kept:
            logits = extractor(embedded)
            check_concepts(logits, concept.cpu())
        check_finite(logits, image_ids, "logits")
        reach = None  # what the class token at the top draws from each token below, (b, 1, n)
        for weights in reversed(kept):
            _check_weights(weights, (len(embedded), h, w))
            if reach is None:
                reach = torch.zeros_like(weights[:, :1])
                reach[..., 0] = 1
            reach = (reach + reach @ weights) / 2
        assert reach is not None
        return reach[:, 0, 1:].unflatten(1, (h, w)).to(torch.promote_types(reach.dtype, torch.float32))


@contextmanager
def attention_kept(extractor: nn.Module) -> Iterator[list[Float[Tensor, "b n n"]]]:
    """Attention weights of every block, averaged over heads, in the order in which the forward inside met them.

    The forward itself is left alone, fused kernel and all: the weights are computed a second time beside it.

    Raises:
        ConfigError: The extractor has no attention, or attends over images instead of positions.
    """
    blocks = [module for module in extractor.modules() if isinstance(module, nn.MultiheadAttention)]
    if not blocks:
        raise ConfigError(
            f"attention rollout needs an extractor with attention, and {type(extractor).__name__} has none; "
            "take a transformer extractor, or another method"
        )
    if not all(block.batch_first for block in blocks):
        raise ConfigError(
            "this extractor attends over the images of a batch instead of an image's positions (batch_first=False), "
            "so its attention says nothing about positions; take another method"
        )
    kept: list[Tensor] = []

    def keep(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: object) -> None:
        again = {**kwargs, "need_weights": True, "average_attn_weights": True}
        kept.append(block.forward(*args[:3], **again)[1])

    hooks = [block.register_forward_hook(keep, with_kwargs=True) for block in blocks]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _check_weights(weights: Tensor, images: tuple[int, int, int]) -> None:
    b, h, w = images
    if tuple(weights.shape) != (b, h * w + 1, h * w + 1):
        raise ConfigError(
            f"attention has shape {tuple(weights.shape)} but rollout reads (b, {h * w + 1}, {h * w + 1}): a class "
            f"token, then the {h}x{w} positions; take another method for this extractor"
        )
