"""An extractor's faster twin for explaining at scale: folded batch-norms, channels-last weights, any precision.

In eval mode a batch-norm is a product and a sum per channel, which the layer before it can do along the way; what is
left is nearly all matrix products, which tensor cores do in half precision. Codes and logits stay float32 outside, so
every method works with the twin as it does with the extractor. bfloat16 rounds eight times more coarsely than float16,
which moves activations across the kink of a ReLU, and so the order of positions whose importance differs little.
float16 has no small numbers, so gradients are lifted on their way through.

Source:
    Micikevicius et al. 2018, arXiv:1710.03740, section 3.2 (loss scaling). Where we differ: a constant, inside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from vqcortex.errors import ConfigError
from vqcortex.extractors.protocol import LooksThroughDecoder

LIFT = {torch.float16: 2.0**12}
"""What gradients are multiplied by inside, by precision; everywhere else by nothing."""

# A layer and the norm after it, as they are called inside the parts of our extractors; a "." leads into a part of it.
FOLDED = (
    ("conv", "norm"),
    ("linear", "norm"),
    ("hidden", "norm"),
    ("first", "first_norm"),
    ("second", "second_norm"),
    ("shortcut.0", "shortcut.1"),
    ("attention.out_proj", "attention_scale.norm"),
    ("mlp.3", "mlp_scale.norm"),
)


class Lifted(torch.autograd.Function):
    """The same values on the way there, a multiple of the gradient on the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


@final
class Fast(nn.Module):
    """The twin: codes in float32 to logits in float32, the arithmetic between in another precision.

    Args:
        network: The extractor's copy, brought to that precision.
        dtype: The precision.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    @property
    def settings(self) -> Any:
        """Sizes of the extractor."""
        return self.network.settings

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        lift = LIFT.get(self.dtype, 1.0)
        held = Lifted.apply(embedded, 1 / lift).to(self.dtype, memory_format=torch.channels_last)
        logits: Tensor = Lifted.apply(self.network(held).float(), lift)
        return logits


def fast_twin(extractor: nn.Module, dtype: torch.dtype) -> Fast:
    """A copy of an extractor that computes the same logits in less time; it cannot be trained.

    Args:
        extractor: Of this package, on any device; left as it is.
        dtype: Of weights and activations: float16 on a graphics card, bfloat16 or float32 on a CPU. Batch-norms are
            folded in float32 before.
    Raises:
        ConfigError: It looks through the model's decoder, whose precision is the model's (`?dtype=bfloat16`).
    """
    if isinstance(extractor, LooksThroughDecoder):
        raise ConfigError(
            "an extractor that looks through the model's decoder has no faster twin; "
            "open the model itself with ?dtype=bfloat16"
        )
    network = copy.deepcopy(extractor).eval().requires_grad_(False)
    for part in list(network.modules()):
        for layer, norm in _pairs_of(part):
            _fold(part, layer, norm)
    network.to(dtype=dtype).to(memory_format=torch.channels_last)
    return Fast(network, dtype).eval().requires_grad_(False)


def _pairs_of(part: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the layers of one part that have a batch-norm behind them, with that norm's."""
    names = {name for name, _ in part.named_modules()}
    for layer, norm in FOLDED:
        if layer in names and norm in names and isinstance(part.get_submodule(norm), nn.BatchNorm1d | nn.BatchNorm2d):
            yield layer, norm


def _fold(part: nn.Module, layer: str, norm: str) -> None:
    """Let a layer do its norm's work, and the norm nothing."""
    before, after = part.get_submodule(layer), part.get_submodule(norm)
    fuse = fuse_conv_bn_eval if isinstance(before, nn.Conv2d) else fuse_linear_bn_eval
    part.set_submodule(layer, fuse(before, after).requires_grad_(False))  # type: ignore[type-var, arg-type]
    part.set_submodule(norm, nn.Identity())
