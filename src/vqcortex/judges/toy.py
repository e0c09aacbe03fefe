"""Judges for the toy model: how much of an image has a colour, seen by two different rulers."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.colours import COLOURS, colour_table
from vqcortex.judges import CalibratedJudge

SHARPNESS = 12.0  # logits per unit of image share: 40 % of a colour against 8 % of the others is near-certain


@final
class ColourShare(nn.Module):
    """Logit of a colour: the share of pixels near it, by a soft ruler or by nearest colour."""

    colours: Tensor

    def __init__(self, *, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.register_buffer("colours", colour_table())

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        away = (pixels[:, None] - self.colours[None, :, :, None, None]).square().sum(2)  # (b, c, H, W)
        near = torch.exp(-8 * away) if self.soft else (away == away.amin(1, keepdim=True)).to(away)
        return SHARPNESS * near.mean((2, 3))


def build(settings: dict[str, bool]) -> ColourShare:
    """Make one from the settings in judges.json."""
    return ColourShare(soft=settings["soft"])


def toy_judges() -> tuple[CalibratedJudge, ...]:
    """The soft and the hard ruler."""
    return tuple(
        CalibratedJudge(name=name, concepts=COLOURS, temperature=1.0, network=ColourShare(soft=soft))
        for name, soft in (("soft", True), ("hard", False))
    )
