"""A class-conditional prior over token grids: a small causal transformer that makes a codebook generate.

Source:
    Esser et al. 2021, arXiv:2012.09841, section 3.2 (transformer over VQGAN tokens, class token first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.errors import ConfigError
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PriorSettings:
    """Sizes of a prior.

    Args:
        codes: k, entries of the codebook it draws from.
        positions: h*w, length of a grid read row by row.
        concepts: Classes it can be asked for.
        width: Channels of a position.
        layers: Transformer blocks.
        heads: Attention heads, a divisor of `width`.
    """

    codes: int = 256
    positions: int = 49
    concepts: int = 10
    width: int = 128
    layers: int = 4
    heads: int = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a prior draws.

    Args:
        temperature: Divides the logits, > 0; below 1 sharpens.
        top_k: Codes kept per draw, the likeliest first, 1..k; None keeps all.
        top_p: Probability that the codes kept have together at least, the likeliest first, in (0, 1], after `top_k`;
            None keeps all.
        guidance: How far logits go from those of no class (0) towards those of the class (1: none) and beyond: see
            `guided`. Before the others.

    Source:
        Holtzman et al. 2019, arXiv:1904.09751, section 3.1 (top_p).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    # Not in the repr, which is part of identities that are older than guidance.
    guidance: float = field(default=1.0, repr=False)


class Block(nn.Module):
    """Pre-norm causal self-attention and a GELU feed-forward, with an optional key-value cache."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b t m"], cache: Cache | None = None) -> Float[Tensor, "b t m"]:
        b, t, m = x.shape
        query, key, value = (
            part.view(b, t, self.heads, m // self.heads).transpose(1, 2)  # (b, heads, t, m / heads)
            for part in self.query_key_value(self.norm_attention(x)).chunk(3, dim=-1)
        )
        if cache is not None:
            key, value = cache.extended(self, key, value)
        # With a cache the one new position may see everything that came before it.
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        x = x + self.project(mixed.transpose(1, 2).reshape(b, t, m))
        fed: Tensor = x + self.feed(self.norm_feed(x))
        return fed


class Cache:
    """Keys and values of the positions seen so far, one pair per block."""

    def __init__(self) -> None:
        self._seen: dict[Block, tuple[Tensor, Tensor]] = {}

    def extended(self, block: Block, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append to what `block` has seen and return all of it."""
        if block in self._seen:
            old_key, old_value = self._seen[block]
            key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
        self._seen[block] = key, value
        return key, value


@final
class TokenPrior(nn.Module):
    """p(token | class, tokens before it), over a grid read row by row."""

    def __init__(self, settings: PriorSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.concept = nn.Embedding(s.concepts, s.width)
        self.token = nn.Embedding(s.codes, s.width)
        self.position = nn.Parameter(torch.randn(s.positions, s.width) * 0.02)
        self.blocks = nn.ModuleList(Block(s.width, s.heads) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width)
        self.head = nn.Linear(s.width, s.codes)

    def forward(self, concept: Int[Tensor, " b"], tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b t k"]:
        """Logits of positions 0..n: what follows the class, then what follows each token given."""
        x = torch.cat([self.concept(concept)[:, None], self.token(tokens)], 1)
        x = x[:, : self.settings.positions]
        x = x + self.position[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def sample(
        self,
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
        seed: int,
        sampling: Sampling,
        push: Callable[[Int[Tensor, "b p"]], Float[Tensor, "#b k"]] | None = None,
    ) -> Int[Tensor, "b n"]:
        """Draw one grid per image id, position by position, with the key-value cache.

        `push` is told the tokens drawn so far and says what is added to the logits of the next one before temperature
        and cuts, in nats; minus infinity: never drawn.

        Each image has its own uniform numbers, from (seed, image id), and turns them into tokens through the
        cumulative distribution. Call it on a float64 copy of the prior where the result must not depend on the
        batch: in float32 a different batch size moves a probability by 1e-7, and some draw lands in between.

        Raises:
            ConfigError: Guidance is asked for, and this prior knows its classes only.
        """
        s = self.settings
        if sampling.guidance != 1:
            raise ConfigError(
                f"guidance={sampling.guidance:g} needs a class that stands for none, and this prior knows the "
                f"{s.concepts} it was trained on only; leave guidance at 1"
            )
        if not image_ids:
            return concept.new_zeros(0, s.positions)
        uniform = torch.stack(
            [
                torch.rand(s.positions, generator=generator_for(seed, name, "prior"), dtype=torch.float64)
                for name in image_ids
            ]
        ).to(self.position.device)
        cache, x = Cache(), self.concept(concept)[:, None]
        drawn: list[Tensor] = []
        for step in range(s.positions):
            x = x + self.position[step]
            for block in self.blocks:
                x = block(x, cache)
            logits = self.head(self.norm(x))[:, 0]
            if push is not None:
                logits = logits + push(torch.stack(drawn, 1) if drawn else concept.new_zeros(len(concept), 0)).to(
                    logits
                )
            drawn.append(draw(logits, uniform[:, step], sampling))
            x = self.token(drawn[-1])[:, None]
        return torch.stack(drawn, 1)


def guided(
    conditional: Float[Tensor, "b k"], unconditional: Float[Tensor, "b k"], guidance: float
) -> Float[Tensor, "b k"]:
    """Logits moved away from those of no class: unconditional + guidance * (conditional - unconditional).

    Source:
        Ho and Salimans 2022, arXiv:2207.12598, equation 6, whose w is `guidance` - 1, on logits instead of scores.
    """
    return unconditional + guidance * (conditional - unconditional)


def draw(logits: Float[Tensor, "b k"], uniform: Float[Tensor, " b"], sampling: Sampling) -> Int[Tensor, " b"]:
    """Turn one uniform number in [0, 1) per row into a token, through the cumulative distribution.

    Guidance is applied by then: it takes two rows of logits.
    """
    logits = logits.double() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None:
        logits = _nucleus(logits, sampling.top_p)
    cumulative = logits.softmax(1).cumsum(1)
    # The last entry can be 1 - 1e-16: searching for a larger number would walk past the table.
    wanted = uniform[:, None].to(cumulative) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _nucleus(logits: Float[Tensor, "b k"], top_p: float) -> Float[Tensor, "b k"]:
    """Logits of the likeliest codes that reach `top_p` together; the rest can no longer be drawn."""
    sorted_logits, order = logits.sort(dim=1, descending=True, stable=True)
    likely = sorted_logits.softmax(1)
    # A code stays while those before it have not passed top_p, so the likeliest always stays.
    dropped = likely.cumsum(1) - likely > top_p
    return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)
