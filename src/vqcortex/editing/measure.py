"""What an edit did: how far it leaks, how large it is, whether it succeeded, how real the result is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.errors import ShapeError

THRESHOLD = 8 / 255  # change of a pixel that can be seen beside the original
WINDOW = 7
STABLE = (0.01**2, 0.03**2)  # K1, K2 of Wang et al., for pixels in [0, 1]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Change outside the region and its footprint, (b,) each; NaN where nothing lies outside.

    Args:
        outside: Share of the picture that lies outside, 0 to 1.
        mean_absolute: Mean absolute change of a pixel there, 0 to 1.
        ssim: Mean structural similarity there, -1 to 1; 1 is unchanged.
        visible: Share of its pixels that change by more than the threshold, 0 to 1.
    """

    outside: Float[Tensor, " b"]
    mean_absolute: Float[Tensor, " b"]
    ssim: Float[Tensor, " b"]
    visible: Float[Tensor, " b"]


def measure_leak(
    before: Float[Tensor, "b 3 H W"],
    after: Float[Tensor, "b 3 H W"],
    inside: Bool[Tensor, "masks rows columns"],
    threshold: float = THRESHOLD,
) -> Leak:
    """How much of an edit is seen where it should not be.

    Args:
        before: Images in [0, 1].
        after: The edited ones.
        inside: True where they may differ.
        threshold: Mean change over the channels from which a pixel counts as changed, 0 to 1.

    Raises:
        ShapeError: The mask does not fit the images.
    """
    if inside.shape != (len(before), *before.shape[2:]):
        raise ShapeError(
            f"the mask of what may change has shape {tuple(inside.shape)} but the images {tuple(before.shape)}; "
            "give one (H, W) per image"
        )
    outside = (~inside).double()
    away = (after - before).abs().mean(1).double()
    count = outside.sum((1, 2))

    def mean(values: Tensor) -> Tensor:
        return ((values * outside).sum((1, 2)) / count).cpu()  # 0 / 0 is NaN

    return Leak(
        outside=outside.mean((1, 2)).cpu(), mean_absolute=mean(away), ssim=mean(similarity(before, after)),
        visible=mean((away > threshold).double()),
    )  # fmt: skip


def similarity(one: Float[Tensor, "b 3 H W"], other: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b H W"]:
    """Structural similarity around each pixel, mean over the channels, float64.

    Source:
        Wang et al. 2004, IEEE Transactions on Image Processing 13(4), equation 13. Where we differ: an even window of
        7x7 pixels (published: Gaussian, 11x11), because pictures may be small; at the border only what lies in it.
    """
    x, y = one.double(), other.double()

    def around(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, WINDOW, 1, WINDOW // 2, count_include_pad=False)

    mean_x, mean_y = around(x), around(y)
    spread_x, spread_y = around(x * x) - mean_x**2, around(y * y) - mean_y**2
    shared = around(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + STABLE[0]) / (mean_x**2 + mean_y**2 + STABLE[0])
    structure = (2 * shared + STABLE[1]) / (spread_x + spread_y + STABLE[1])
    return (light * structure).mean(1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """What one judge says of edits, (b,) each.

    Args:
        source_before: Probability of the concept shown, before the edit.
        source_after: After it.
        target_before: Probability of the concept wanted, before the edit.
        target_after: After it.
        accepted: The target is likelier than the source now.
        named: The target is likelier than every other concept now.
    """

    source_before: Float[Tensor, " b"]
    source_after: Float[Tensor, " b"]
    target_before: Float[Tensor, " b"]
    target_after: Float[Tensor, " b"]
    accepted: Bool[Tensor, " b"]
    named: Bool[Tensor, " b"]


def measure_success(
    before: Float[Tensor, "b c"], after: Float[Tensor, "b c"], source: Int[Tensor, " b"], target: Int[Tensor, " b"]
) -> Success:
    """Read a judge's answers to images before and after, log-probabilities of all concepts each."""
    was, now = before.cpu().double(), after.cpu().double()

    def of(answer: Tensor, concept: Tensor) -> Tensor:
        return answer.gather(1, concept.cpu()[:, None])[:, 0].exp()

    return Success(
        source_before=of(was, source), source_after=of(now, source),
        target_before=of(was, target), target_after=of(now, target),
        accepted=of(now, target) > of(now, source), named=now.argmax(1) == target.cpu(),
    )  # fmt: skip


def changed_tokens(before: Int[Tensor, "b h w"], after: Int[Tensor, "b h w"]) -> Int[Tensor, " b"]:
    """Tokens that differ, per image."""
    return (before != after).flatten(1).sum(1).cpu()


@torch.no_grad()
def features_of(network: nn.Module, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b f"]:
    """What a classifier's last linear layer reads, float64; its logits where it has no such layer."""
    seen: list[Tensor] = []
    linear = [one for one in network.modules() if isinstance(one, nn.Linear)]
    hooks = [one.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for one in linear[-1:]]
    try:
        logits = network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    # A judge that looks at an image and its mirror image asks the layer twice.
    return torch.stack(seen).mean(0).double().cpu() if seen else logits.double().cpu()


def nearness(edited: Float[Tensor, "b f"], real: Float[Tensor, "n f"]) -> Float[Tensor, " b"]:
    """Distance to the nearest real image of the target, as a multiple of what is usual among those themselves.

    1: as near as the median one of them is to its own nearest; NaN with fewer than two of them, or where all are alike.
    """
    if len(real) < 2:
        return torch.full((len(edited),), float("nan"), dtype=torch.float64)
    usual = torch.cdist(real, real).fill_diagonal_(torch.inf).amin(1).median()
    away = torch.cdist(edited, real).amin(1)
    return away / usual if usual > 0 else torch.full_like(away, float("nan"))
