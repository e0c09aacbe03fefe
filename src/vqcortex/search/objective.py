"""What a search makes large, and several extractors asked as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.errors import ConfigError

# The target's logit (published), its log-probability, or how far its logit stands above the highest other one.
Objective = Literal["logit", "log_probability", "margin"]


def value_of(
    logits: Float[Tensor, "b c"], concept: Int[Tensor, " b"], objective: Objective = "logit"
) -> Float[Tensor, " b"]:
    """What is to become large, per image: logits or nats, higher is more of the concept.

    Example:
        >>> value_of(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), "margin")
        tensor([1.])
    """
    at = concept[:, None]
    if objective == "log_probability":
        return logits.log_softmax(1).gather(1, at)[:, 0]
    mine = logits.gather(1, at)[:, 0]
    return mine - logits.scatter(1, at, -torch.inf).amax(1) if objective == "margin" else mine


@final
class Together(nn.Module):
    """Several extractors as one: its logits are the mean of their log-probabilities.

    A pattern that only one of them takes for the concept gains little. One pass asks every member once.

    Args:
        members: Extractors of the same concepts, at least 1.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        if not members:
            raise ConfigError("0 extractors were given to be asked together; at least 1 is needed")
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        return torch.stack([member(embedded).log_softmax(1) for member in self.members]).mean(0)
