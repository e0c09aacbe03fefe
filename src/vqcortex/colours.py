"""The eight colours of the toy world, shared by its model and its judges."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

COLOURS = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white")


def colour_table() -> Float[Tensor, "8 3"]:
    """RGB of colour i: the binary digits of i."""
    return torch.tensor([[float(i >> bit & 1) for bit in (2, 1, 0)] for i in range(8)])
