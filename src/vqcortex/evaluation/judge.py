"""What the evidence asks of a judge, and how its answer is read."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.errors import ConfigError, ModelError

# Below the logarithm of the smallest float32 (-103): keeps log-odds finite when a judge is quite certain,
# and changes no probability that a float32 can hold.
LOWEST = -104.0
SUM_MAY_MISS = 1e-3  # how far the probabilities of an image may be from summing to one


@runtime_checkable
class Judge(Protocol):
    """An image classifier that took no part in making or choosing the explanation it judges.

    Attributes:
        name: How its figures are labelled.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Calibrated log-probabilities of the concepts, for images in [0, 1]."""
        ...


def ask(judge: Judge, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
    """Log-probabilities in float64 on the CPU.

    Raises:
        ModelError: The judge answers NaN or no log-probabilities, or knows one concept only.
    """
    answer = judge(pixels).cpu().double()
    if answer.shape[1] < 2:
        raise ModelError(f"judge {judge.name!r} knows {answer.shape[1]} concept(s) but at least 2 are needed")
    if answer.isnan().any():
        raise ModelError(f"judge {judge.name!r} answers NaN; check its weights and the range of the images")
    total = answer.exp().sum(1)
    if (total - 1).abs().max() > SUM_MAY_MISS:
        raise ModelError(
            f"judge {judge.name!r} gives probabilities that sum to {total.max():.4g}, not 1; "
            "end it with log_softmax, so that it returns log-probabilities"
        )
    return answer


def probability_of(answer: Float[Tensor, "b c"], concept: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Probability of each image's concept, 0 to 1."""
    return answer.gather(1, checked_concept(answer, concept)[:, None])[:, 0].exp()


def log_odds_of(answer: Float[Tensor, "b c"], concept: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """log p - log(1 - p) of each image's concept, in nats; 1 - p is summed over the others."""
    mine = checked_concept(answer, concept)[:, None]
    bounded = answer.clamp(min=LOWEST)
    return bounded.gather(1, mine)[:, 0] - bounded.scatter(1, mine, -torch.inf).logsumexp(1)


def checked_concept(answer: Float[Tensor, "b c"], concept: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The concepts on the CPU, all of them known to the judge."""
    known, concept = answer.shape[1], concept.cpu().long()
    low, high = int(concept.min()), int(concept.max())
    if low < 0 or high >= known:
        raise ConfigError(
            f"concepts span [{low}, {high}] but this judge knows 0 to {known - 1}; use judges of the same concepts"
        )
    return concept
