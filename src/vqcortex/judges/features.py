"""What a judge sees before it decides: the numbers that go into its last linear layer, or else its answers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.judges import CalibratedJudge


@torch.no_grad()
def features_of(judge: CalibratedJudge, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b f"]:
    """Features of images in [0, 1], whatever the judge's architecture; log-probabilities if it has no linear layer."""
    layers = [one for one in judge.network.modules() if isinstance(one, nn.Linear)]
    if not layers:
        return judge(pixels)
    seen: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        judge(pixels)
    finally:
        hook.remove()
    # A judge that also looks at the mirrored image passes its layer twice.
    return torch.stack([one.flatten(1) for one in seen]).mean(0)
