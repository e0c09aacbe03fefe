"""Hold a model still while its gradients with respect to the input are taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def still(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no weight gradients inside the block; every flag restored after it, module by module."""
    modes = {module: module.training for module in model.modules()}
    wants = {weight: weight.requires_grad for weight in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training
        for weight, wanted in wants.items():
            weight.requires_grad_(wanted)
