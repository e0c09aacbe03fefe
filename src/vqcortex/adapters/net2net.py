"""Net2NetTransformer of taming-transformers: a VQGAN with a transformer that draws its tokens, of a class or none.

The class's number goes in front of the image's tokens, through the same table of embeddings: class 3 and code 3 share a
row. What follows position i is the logits of image token i, so the last image token is never an input.

Source:
    Esser et al. 2021, arXiv:2012.09841, section 3.2; github.com/CompVis/taming-transformers
    (taming/models/cond_transformer.py, taming/modules/transformer/mingpt.py). Where we differ: every image draws from
    random numbers of its own; top_p works without top_k too; a code beyond the codebook is never drawn.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.family import Family, Files, Spec, expanded
from vqcortex.adapters.first_stage import OverFirstStage
from vqcortex.adapters.network import NetworkAdapter, identity_of
from vqcortex.adapters.prior import Sampling, draw, guided
from vqcortex.adapters.protocol import DECODE, ENCODE, GENERATE, LOGITS, Adapter
from vqcortex.adapters.steering import FixedBias, Steering, Steerings
from vqcortex.adapters.taming import (
    FIRST_STAGE,
    RESOLUTION,
    Config,
    adapter_of,
    dtype_of,
    is_vqgan,
    live_spec,
    look_at,
    network_from,
    numbers_under,
    open_files,
    resolution_of,
)
from vqcortex.checkpoints import fill, shape_of, under, without
from vqcortex.errors import ConfigError, ModelError
from vqcortex.files import hash_of_bytes
from vqcortex.seeds import generator_for

TRANSFORMER = "transformer."
_PARTS = (FIRST_STAGE, "cond_stage_model.", "permuter.", TRANSFORMER, "loss.")
# Keys and values kept for the images drawn together, in bytes: 2 GB. More images are drawn in turns.
MOST_CACHED = 2**31
PLAIN = Sampling()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSizes:
    """Sizes of a transformer.

    Args:
        vocabulary: Tokens it knows, classes and codes together.
        positions: Most tokens it can be fed, the class included.
        width: Channels of a position.
        layers: Blocks.
        heads: Attention heads, a divisor of `width`.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What stands in front of the image's tokens.

    Args:
        concepts: Names of what can be asked for.
        tokens: The token in front for each of them.
        empty: The token in front where no class is asked for; None: it was not trained for that, or nobody says so.
        refusal: Why nothing can be drawn; empty if it can.
    """

    concepts: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    empty: int | None = None
    refusal: str = ""


class Cache:
    """Keys and values of the positions seen so far, (b, heads, positions, width / heads), a pair per block."""

    def __init__(self, sizes: TransformerSizes, batch: int, like: Tensor) -> None:
        shape = (sizes.layers, 2, batch, sizes.heads, sizes.positions, sizes.width // sizes.heads)
        self._held = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.seen = 0

    def extended(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one position to what a block has seen, and return all of it."""
        keys, values = self._held[block]
        keys[:, :, self.seen], values[:, :, self.seen] = key[:, :, 0], value[:, :, 0]
        return keys[:, :, : self.seen + 1], values[:, :, : self.seen + 1]


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, number: int, width: int, heads: int) -> None:
        super().__init__()
        self.number, self.heads = number, heads
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t m"], cache: Cache | None = None) -> Float[Tensor, "b t m"]:
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (b, heads, t, m / heads)
            for part in (self.query, self.key, self.value)
        )
        if cache is not None:
            key, value = cache.extended(self.number, key, value)
        # With a cache the one new position may see everything that came before it.
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and a feed-forward part four times as wide, with the exact GELU."""

    def __init__(self, number: int, sizes: TransformerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = Attention(number, width, sizes.heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b t m"], cache: Cache | None = None) -> Float[Tensor, "b t m"]:
        x = x + self.attn(self.ln1(x), cache)
        return x + self.mlp(self.ln2(x))


@final
class Transformer(nn.Module):
    """p(next token | tokens before it); parameters have minGPT's names."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tok_emb = nn.Embedding(sizes.vocabulary, sizes.width)
        self.pos_emb = nn.Parameter(torch.empty(1, sizes.positions, sizes.width))
        self.blocks = nn.ModuleList(Block(number, sizes) for number in range(sizes.layers))
        self.ln_f = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Logits of what follows each token; the first token is the condition."""
        x = self.tok_emb(tokens) + self.pos_emb[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))

    def step(self, tokens: Int[Tensor, " b"], cache: Cache) -> Float[Tensor, "b v"]:
        """Logits of what follows one more token; the cache knows what came before it."""
        x = self.tok_emb(tokens)[:, None] + self.pos_emb[:, cache.seen, None]
        for block in self.blocks:
            x = block(x, cache)
        cache.seen += 1
        return self.head(self.ln_f(x))[:, 0]

    def continued(
        self,
        first: Int[Tensor, " b"],
        prefix: Int[Tensor, "b p"],
        length: int,
        pick: Callable[[Float[Tensor, "b v"], Int[Tensor, "b p"]], Int[Tensor, " b"]],
    ) -> Int[Tensor, "b n"]:
        """A sequence of `length` tokens that begins with `prefix`; `pick(logits, before)` says how it goes on."""
        cache = Cache(self.sizes, len(first), self.pos_emb)
        token, found = first, prefix.new_empty(len(first), length)
        for position in range(length):
            logits = self.step(token, cache)
            token = prefix[:, position] if position < prefix.shape[1] else pick(logits, found[:, :position])
            found[:, position] = token
        return found


@final
class Net2NetModel(OverFirstStage):
    """A VQGAN and its transformer behind the adapter protocol.

    Args:
        first: The VQGAN.
        transformer: What draws its tokens.
        condition: What can be asked for.
        sampling: How tokens are drawn.
        order: Position in the sequence of each position of the grid read row by row; None: the same.
        used: Codes that the transformer's tokens stand for; None: themselves.
    Raises:
        ConfigError: Guidance is asked for, and no token stands for "no class".
    """

    family = "net2net"

    def __init__(
        self,
        *,
        first: NetworkAdapter,
        transformer: Transformer,
        condition: Condition,
        sampling: Sampling,
        order: Int[Tensor, " n"] | None = None,
        used: Int[Tensor, " u"] | None = None,
    ) -> None:
        super().__init__(first)
        self.name, self.transformer, self.sampling = first.name, transformer.eval().requires_grad_(False), sampling
        self._order, self._used = order, used
        self._refusal = condition.refusal or self._misfit()
        self._condition = torch.tensor(condition.tokens, dtype=torch.long)
        self._empty = self._checked_empty(condition.empty)
        self.concepts: tuple[str, ...] = () if self._refusal else condition.concepts
        self._exact: Transformer | None = None
        self._identity: str | None = None
        self._steerings = Steerings()

    def _checked_empty(self, empty: int | None) -> int | None:
        """The token for no class where draws need it; None where they do not."""
        if self.sampling.guidance == 1:
            return None
        if empty is None:
            raise ConfigError(
                f"guidance={self.sampling.guidance:g} of model {self.name!r} needs a class that stands for none, as "
                "training with dropped labels leaves one; write its number, &empty=10, say, or leave guidance out"
            )
        return empty

    def _misfit(self) -> str:
        """Why grids of this size cannot be drawn; empty if they can."""
        (h, w), sizes = self.grid, self.transformer.sizes
        if h * w > sizes.positions:
            side = math.isqrt(sizes.positions) * (self.first.stride or 1)
            return (
                f"images of {self.size} have {h}x{w} tokens and its transformer goes no further than "
                f"{sizes.positions}; open it with ?size={side}"
            )
        if self._order is not None and len(self._order) != h * w:
            return f"its transformer reads grids of {len(self._order)} tokens and images of {self.size} have {h * w}"
        return ""

    @property
    def identity(self) -> str:
        if self._identity is None:
            order = None if self._order is None else self._order.tolist()
            used = None if self._used is None else self._used.tolist()
            facts = (
                f"{self.transformer.sizes} {self.sampling} {self.concepts} {self._condition.tolist()} {order} {used}"
            )
            if self._empty is not None:
                facts += f" {self.sampling.guidance} {self._empty}"
            if self._steerings:
                facts += f" {self._steerings.identity}"
            self._identity = hash_of_bytes(f"{self.first.identity} {identity_of(self.transformer, facts)}".encode())
        return self._identity

    @property
    def abilities(self) -> frozenset[str]:
        return self.first.abilities if self._refusal else self.first.abilities | {GENERATE}

    @property
    def module(self) -> nn.Module:
        """Both networks."""
        return nn.ModuleDict({"first_stage": self.first.module, "transformer": self.transformer}).eval()

    def to(self, device: str) -> Net2NetModel:
        self.first.to(device)
        self.transformer.to(device)
        self._exact = None
        return self

    def generate(self, concept: Int[Tensor, " b"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "b h w"]:
        """One grid per image id, a function of (concept, image id, seed) alone.

        Raises:
            ModelError: Nothing can be drawn: what stands in front of the tokens is an image, or the size is too large.
            ConfigError: A concept that there is not, or not one per image.
        """
        first = self._in_front(concept)
        if len(first) != len(image_ids):
            raise ConfigError(f"{len(first)} concept(s) for {len(image_ids)} image id(s); give one for each")
        h, w = self.grid
        if not image_ids:
            return torch.zeros(0, h, w, dtype=torch.long, device=self.device)
        if self._exact is None:
            # float64: in float32 another batch size moves a probability by 1e-7, and some draw lands in between.
            self._exact = copy.deepcopy(self.transformer).double()
        sizes = self.transformer.sizes
        rows = 1 if self._empty is None else 2  # of the cache, per image
        at_once = max(1, MOST_CACHED // (rows * 2 * 8 * sizes.layers * sizes.positions * sizes.width))
        with torch.no_grad():
            drawn = [
                self._drawn(self._exact, first[i : i + at_once], image_ids[i : i + at_once], seed)
                for i in range(0, len(image_ids), at_once)
            ]
        return self._as_grid(torch.cat(drawn))

    def _drawn(
        self, transformer: Transformer, first: Int[Tensor, " b"], image_ids: Sequence[str], seed: int
    ) -> Int[Tensor, "b n"]:
        n = self.grid[0] * self.grid[1]
        rows = [torch.rand(n, generator=generator_for(seed, one, "prior"), dtype=torch.float64) for one in image_ids]
        uniform = torch.stack(rows).to(self.device)

        def drawn(logits: Float[Tensor, "b u"], before: Int[Tensor, "b p"]) -> Int[Tensor, " b"]:
            # After guidance, which would make NaN of a forbidden code.
            return draw(self._steered(logits, before), uniform[:, before.shape[1]], self.sampling)

        if self._empty is None:
            none = first.new_zeros(len(first), 0)
            return transformer.continued(first, none, n, lambda logits, before: drawn(self._allowed(logits), before))

        def pick(logits: Float[Tensor, "b2 v"], before: Int[Tensor, "b2 p"]) -> Int[Tensor, " b2"]:
            asked, plain = self._allowed(logits).chunk(2)
            return drawn(guided(asked, plain, self.sampling.guidance), before.chunk(2)[0]).repeat(2)

        # Every image once more below, with no class in front and the same tokens after it.
        both = torch.cat([first, torch.full_like(first, self._empty)])
        return transformer.continued(both, both.new_zeros(len(both), 0), n, pick)[: len(first)]

    def next_logits(
        self, concept: Int[Tensor, " b"], tokens: Int[Tensor, "b p"], *, cached: bool = False
    ) -> Float[Tensor, "b t v"]:
        """Logits of what follows the concept and of what follows each token given.

        Args:
            concept: Numbers of concepts.
            tokens: The image's first tokens, in the transformer's own order and numbers.
            cached: Feed them one by one, as `generate` does.
        """
        first = self._in_front(concept)
        with torch.no_grad():
            if not cached:
                return self.transformer(torch.cat([first[:, None], tokens], 1)).float()
            cache = Cache(self.transformer.sizes, len(first), self.transformer.pos_emb)
            return torch.stack([self.transformer.step(one, cache).float() for one in (first, *tokens.unbind(1))], 1)

    def log_probabilities(self, tokens: Int[Tensor, "b h w"], concept: Int[Tensor, " b"]) -> Float[Tensor, "b k h w"]:
        """Log-probability of every code at every position, given the concept and the tokens drawn before it, in nats.

        They are those of the model itself, not of its draws: temperature, top_k, top_p and guidance have no say.

        Raises:
            ModelError, ConfigError: As `generate`.
        """
        sequence = self._as_sequence(tokens.to(self.device))
        logits = self._allowed(self.next_logits(concept, sequence[:, :-1]))  # (b, n, u)
        if self._steerings:
            codes, places = self._codes_of(sequence), self._places()
            logits = logits + self._by_token(self._steerings.along(codes, places)).to(logits)
        logits = logits.log_softmax(2)
        if self._used is not None:
            used = self._used.to(self.device)
            every = logits.new_full((*logits.shape[:2], self.k), -torch.inf)
            every[:, :, used] = logits[:, :, : len(used)]
            # What lies beyond the list is shown as its first, see `_as_grid`.
            first = torch.cat([logits[:, :, :1], logits[:, :, len(used) :]], 2)
            every[:, :, used[0]] = first.logsumexp(2)
            logits = every
        if self._order is not None:
            logits = logits[:, self._order.to(self.device)]
        return logits.transpose(1, 2).unflatten(2, self.grid)

    def with_steering(self, steering: Steering) -> Net2NetModel:
        steered = copy.copy(self)
        steered._steerings = self._steerings.plus(steering, self.k, self.grid, self._used)
        steered._identity = None
        return steered

    def with_code_bias(self, bias: Float[Tensor, "k h w"]) -> Net2NetModel:
        return self.with_steering(FixedBias(bias))

    def _steered(self, logits: Float[Tensor, "b u"], before: Int[Tensor, "b p"]) -> Float[Tensor, "b u"]:
        """Logits of the next token, pushed, after the tokens before it, both in the transformer's own numbers."""
        if not self._steerings:
            return logits
        places, p = self._places(), before.shape[1]
        bias = self._steerings.bias(self._codes_of(before), places[:p], int(places[p]))
        return logits + self._by_token(bias).to(logits)

    def _places(self) -> Int[Tensor, " n"]:
        """Where on the grid, row by row, each token of the sequence stands."""
        n = self.grid[0] * self.grid[1]
        return torch.arange(n) if self._order is None else self._order.cpu().argsort()

    def _codes_of(self, tokens: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        return tokens if self._used is None else codes_of(tokens, self._used.to(tokens.device))

    def _by_token(self, bias: Float[Tensor, "*any k"]) -> Float[Tensor, "*any u"]:
        """A bias on codes as one on the transformer's tokens."""
        if self._used is None:
            return bias
        return bias[..., codes_of(torch.arange(self.transformer.sizes.vocabulary), self._used.cpu()).to(bias.device)]

    def likeliest(self, concept: Int[Tensor, " b"], tokens: Int[Tensor, "b p"]) -> Int[Tensor, "b n"]:
        """The tokens given, continued to a whole image with the likeliest token at each position.

        Args:
            concept: Numbers of concepts.
            tokens: The image's first tokens, none or more, in the transformer's own order and numbers.
        """
        first, n = self._in_front(concept), self.grid[0] * self.grid[1]

        def pick(logits: Float[Tensor, "b v"], before: Int[Tensor, "b p"]) -> Int[Tensor, " b"]:
            return self._steered(self._allowed(logits), before).argmax(1)

        with torch.no_grad():
            return self.transformer.continued(first, tokens, n, pick)

    def _in_front(self, concept: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The token that stands for a concept."""
        if self._refusal:
            raise ModelError(f"model {self.name!r} cannot generate: {self._refusal}")
        if len(concept) and (int(concept.min()) < 0 or int(concept.max()) >= len(self.concepts)):
            raise ConfigError(
                f"concepts span [{int(concept.min())}, {int(concept.max())}] but {self.name!r} has "
                f"[0, {len(self.concepts) - 1}], {self.concepts[0]!r} to {self.concepts[-1]!r}"
            )
        return self._condition.to(self.device)[concept.to(self.device)]

    def _allowed(self, logits: Float[Tensor, "*any v"]) -> Float[Tensor, "*any u"]:
        """Logits of what is a code; the vocabulary may hold more, for the sake of classes."""
        return logits if self._used is not None else logits[..., : self.k]

    def _as_sequence(self, tokens: Int[Tensor, "b h w"]) -> Int[Tensor, "b n"]:
        """What `_as_grid` makes a grid of; a code that the transformer lacks becomes its token beyond the list."""
        flat = tokens.flatten(1)
        if self._order is not None:
            flat = flat[:, self._order.to(flat.device).argsort()]
        if self._used is None:
            return flat
        used = self._used.to(flat.device)
        place = flat.new_full((self.k,), len(used)).scatter_(0, used, torch.arange(len(used), device=flat.device))
        return place[flat]

    def _as_grid(self, drawn: Int[Tensor, "b n"]) -> Int[Tensor, "b h w"]:
        tokens = self._codes_of(drawn)
        if self._order is not None:
            tokens = tokens[:, self._order.to(drawn.device)]
        return tokens.unflatten(1, self.grid)


def codes_of(tokens: Int[Tensor, "*any"], used: Int[Tensor, " u"]) -> Int[Tensor, "*any"]:
    """Codes of a transformer's tokens that were numbered anew: token i stands for code used[i].

    One token beyond the list stands for "none of these" and is shown as the first of them.
    """
    return used[torch.where(tokens < len(used), tokens, 0)]


def transformer_sizes(
    tensors: Mapping[str, Tensor], config: Config | None, heads: int | None, path: Path
) -> TransformerSizes:
    """Sizes of a transformer from its config, else from its shapes.

    Args:
        tensors: Its part of the state dict, without the prefix.
        config: The whole model's config, if there is one.
        heads: Attention heads, where the caller knows them: no tensor tells.
        path: Of the checkpoint, for messages.
    Raises:
        ModelError: Nobody says how many heads there are, or they do not divide the width.
    """
    if config is not None:
        part = config.part("transformer_config")
        said = part.params
        vocabulary, positions = part.number(said, "vocab_size"), part.number(said, "block_size")
        width, layers = part.number(said, "n_embd"), part.number(said, "n_layer")
        heads = heads or part.number(said, "n_head")
    else:
        vocabulary, width = _shape(tensors, "tok_emb.weight", 2, path)
        positions, layers = _shape(tensors, "pos_emb", 3, path)[1], numbers_under(tensors, "blocks.")
    if heads is None:
        raise ModelError(
            f"{str(path)!r} has a transformer of width {width} whose number of attention heads no tensor tells; "
            "name the folder with its configs/, or add ?config=FILE.yaml, or ?heads=16"
        )
    if width % heads:
        raise ModelError(
            f"{heads} attention heads do not divide the width {width} of the transformer of {str(path)!r}; "
            "correct ?heads=, or take the config that came with the checkpoint"
        )
    return TransformerSizes(vocabulary=vocabulary, positions=positions, width=width, layers=layers, heads=heads)


def _shape(tensors: Mapping[str, Tensor], key: str, axes: int, path: Path) -> tuple[int, ...]:
    shape = shape_of(tensors, key, path)
    if len(shape) != axes or 0 in shape:
        raise ModelError(f"{str(path)!r}: {TRANSFORMER + key!r} has shape {shape} where {axes} axes were expected")
    return shape


def _transformer_from(
    tensors: Mapping[str, Tensor], config: Config | None, heads: int | None, path: Path, dtype: torch.dtype
) -> Transformer:
    own = under(tensors, TRANSFORMER)
    kept = {key: value for key, value in own.items() if not key.endswith(".attn.mask")}
    with torch.device("meta"):
        transformer = Transformer(transformer_sizes(kept, config, heads, path))
    try:
        fill(transformer, kept, path=path, dtype=dtype)
    except ModelError as error:
        error.within(part="the transformer", **({} if config is None else {"config": str(config.path)}))
        raise
    return transformer


def condition_in(
    config: Config | None, vocabulary: int, names: Sequence[str] | None, path: Path, empty: int | None = None
) -> Condition:
    """What a model can be asked for.

    Args:
        config: Its config; None: a model of classes.
        vocabulary: Tokens its transformer knows.
        names: Names of the classes, if the caller has them, without the empty one.
        empty: Number of the class that stands for none; None: there is none.
        path: Of the checkpoint, for messages.
    Raises:
        ConfigError: There is another number of names than of classes, or no such empty class.
        ModelError: The config is of another model.
    """
    params: Mapping[str, Any] = {} if config is None else config.params
    stage = params.get("cond_stage_config")
    if params.get("unconditional") or stage == "__is_unconditional__":
        if empty is not None:
            raise ConfigError(f"?empty= numbers a class, but the model {str(path)!r} is unconditional: leave it out")
        return unconditional(params.get("sos_token", 0), vocabulary, names, path)
    target = str(stage.get("target", "")) if isinstance(stage, Mapping) else str(stage or "")
    if config is not None and target.rpartition(".")[2] != "Labelator":
        key = params.get("cond_stage_key", "another image")
        return Condition(
            refusal=f"its transformer wants the tokens of {key!r} ({target or 'no cond_stage_config'}) in front, "
            "and only classes, or nothing, can stand there"
        )
    if config is not None and config.part("transformer_config").params.get("n_unmasked", 0) > 1:
        return Condition(refusal="its transformer's first positions see each other (n_unmasked), which is not computed")
    said = config.part("cond_stage_config").params.get("n_classes") if config is not None else None
    return classes(said, vocabulary, names, path, empty)


def unconditional(sos_token: Any, vocabulary: int, names: Sequence[str] | None, path: Path) -> Condition:
    """The one concept of a model that is asked for nothing."""
    if names is not None:
        raise ConfigError(f"?classes= names classes, but the model {str(path)!r} is unconditional: leave it out")
    if not isinstance(sos_token, int) or not 0 <= sos_token < vocabulary:
        raise ModelError(
            f"the config of {str(path)!r} says sos_token={sos_token!r} where one of [0, {vocabulary - 1}] is needed; "
            "it is of another model"
        )
    return Condition(concepts=("unconditional",), tokens=(sos_token,))


def classes(said: Any, vocabulary: int, names: Sequence[str] | None, path: Path, empty: int | None = None) -> Condition:
    """The classes of a model, by name or by number; the empty one, if there is one, is none of them."""
    spare = 0 if empty is None else 1
    n = said if said is not None else len(names) + spare if names is not None else vocabulary
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= vocabulary:
        raise ModelError(
            f"{n!r} classes do not fit the transformer of {str(path)!r}, whose table of embeddings has {vocabulary} "
            "rows for classes and codes alike; take the config that came with the checkpoint"
        )
    if empty is not None and (empty >= n or n == 1):
        raise ConfigError(
            f"empty={empty} is no class beside others of {str(path)!r}, which has {n}, counted from 0; "
            "write the number of the class that labels were dropped to"
        )
    tokens = tuple(i for i in range(n) if i != empty)
    if names is not None and len(names) != len(tokens):
        beside = "" if empty is None else f" beside the empty class {empty}"
        raise ConfigError(
            f"the list of classes gives {len(names)} names but {str(path)!r} has {len(tokens)} classes{beside}; "
            "write one per line of the file that ?classes= names"
        )
    concepts = names if names is not None else [f"class {i:0{len(str(n - 1))}}" for i in tokens]
    return Condition(concepts=tuple(concepts), tokens=tokens, empty=empty)


def open_net2net(spec: Spec) -> Adapter:
    """Open "net2net:FOLDER" or "net2net:FILE".

    Raises:
        ModelError: Its files are absent, altered, or of no such model.
        ConfigError: An option is wrong.
    """
    spec.check("config", "heads", "classes", "empty", "temperature", "top_k", "top_p", "guidance")
    return opened(spec, sampling_of(spec), _names(spec), whole_option(spec, "empty", least=0))


def opened(spec: Spec, sampling: Sampling, names: Sequence[str] | None, empty: int | None) -> Net2NetModel:
    """Open what a name means, with what else its user knows.

    Args:
        spec: Of the options, those that say how files are read.
        sampling: How tokens are drawn.
        names: Names of its classes, without the empty one; None: their numbers.
        empty: Number of the class that stands for none; None: there is none.
    Raises:
        ModelError, ConfigError: As `open_net2net`.
    """
    heads, files = whole_option(spec, "heads"), open_files(spec)
    path, config, tensors = files.path, files.config, files.tensors
    if config is not None and "transformer_config" not in config.params:
        raise ModelError(
            f"config {str(config.path)!r} is for {config.target or 'no target'!r} and has no transformer_config; "
            f"open a VQGAN alone as taming:{spec.place}"
        )
    if strange := sorted(without(tensors, *_PARTS)):
        raise ModelError(
            f"{str(path)!r} has {len(strange)} key(s) that belong to no part of a Net2NetTransformer, {strange[0]!r} "
            f"first; its parts are {', '.join(_PARTS)}"
        )
    transformer = _transformer_from(tensors, config, heads, path, spec.dtype())
    stage = None if config is None else config.first_stage
    network = network_from(under(tensors, FIRST_STAGE), stage, path, spec.dtype())
    side = resolution_of(stage)
    if stage is None:
        # A class and all image tokens but the last are fed, so there are as many positions as image tokens.
        rows = math.isqrt(transformer.sizes.positions)
        side = rows * network.sizes.decoder.stride if rows**2 == transformer.sizes.positions else RESOLUTION
    first = adapter_of(network, side, spec)
    condition = condition_in(config, transformer.sizes.vocabulary, names, path, empty)
    return _model(first, transformer, condition, sampling, tensors, path)


def _model(
    first: NetworkAdapter,
    transformer: Transformer,
    condition: Condition,
    sampling: Sampling,
    tensors: Mapping[str, Tensor],
    path: Path,
) -> Net2NetModel:
    used = tensors.get(f"{FIRST_STAGE}quantize.used")
    least, what = (first.k, "codes") if used is None else (len(used), "codes in use")
    if transformer.sizes.vocabulary < least:
        raise ModelError(
            f"{str(path)!r}: the transformer knows {transformer.sizes.vocabulary} tokens but the first stage has "
            f"{least} {what}; the checkpoint mixes two models"
        )
    return Net2NetModel(
        first=first,
        transformer=transformer,
        condition=condition,
        sampling=sampling,
        order=tensors.get("permuter.backward_shuffle_idx"),
        used=None if used is None else used.long(),
    )


def sampling_of(spec: Spec, plain: Sampling = PLAIN) -> Sampling:
    """How tokens are drawn: as the options say, and where they say nothing as `plain`.

    Raises:
        ConfigError: An option is wrong.
    """
    top_p = real_option(spec, "top_p")
    if top_p is not None and top_p > 1:
        raise ConfigError(f"top_p={top_p:g} of model {spec.text!r} is a probability: at most 1")
    given: dict[str, Any] = {
        "temperature": real_option(spec, "temperature"),
        "top_k": whole_option(spec, "top_k"),
        "top_p": top_p,
        "guidance": real_option(spec, "guidance"),
    }
    return replace(plain, **{name: value for name, value in given.items() if value is not None})


def whole_option(spec: Spec, name: str, least: int = 1) -> int | None:
    """An option that is a whole number from `least` up; None: it is not given.

    Raises:
        ConfigError: It is something else.
    """
    text = spec.options.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(
            f"{name}={text!r} of model {spec.text!r} is not a whole number from {least} up; write ?{name}=16, say"
        )
    return int(text)


def real_option(spec: Spec, name: str) -> float | None:
    """An option that is a number above 0; None: it is not given.

    Raises:
        ConfigError: It is something else.
    """
    text = spec.options.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={text!r} of model {spec.text!r} is not a number above 0; write ?{name}=0.9, say")
    return value


def _names(spec: Spec) -> tuple[str, ...] | None:
    """Names of classes from a file, one a line."""
    if "classes" not in spec.options:
        return None
    path = expanded(spec.options["classes"])
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"classes={str(path)!r} cannot be read ({error}); name a text file, one name a line"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if twice := next((one for i, one in enumerate(names) if one in names[:i]), None):
        raise ConfigError(f"classes={str(path)!r} names {twice!r} twice; every class needs a name of its own")
    return names


def recognise_net2net(files: Files) -> str | None:
    """Know the model by its config's target, else by its keys."""
    config, path, tensors = look_at(files)
    if config is not None and config.target:
        known = config.kind == "Net2NetTransformer" and not config.target.startswith("src.")
        return f"config {config.path.name!r} is for {config.target}" if known and path is not None else None
    if "transformer.tok_emb.weight" in tensors and is_vqgan(tensors, FIRST_STAGE):
        return f"the state dict has {FIRST_STAGE}quantize and transformer.tok_emb: a VQGAN with its transformer"
    return None


def wrap_net2net(model: Any) -> Adapter | None:
    """A live Net2NetTransformer; it shares its weights with the adapter."""
    kind = type(model)
    if (kind.__module__, kind.__qualname__) != ("taming.models.cond_transformer", "Net2NetTransformer"):
        return None
    tensors, spec = model.state_dict(), live_spec(model, "net2net")
    path, dtype = Path(spec.text), dtype_of(tensors)
    transformer = _transformer_from(tensors, None, model.transformer.config.n_head, path, dtype)
    network = network_from(under(tensors, FIRST_STAGE), None, path, dtype)
    first = adapter_of(network, getattr(model.first_stage_model.encoder, "resolution", RESOLUTION), spec)
    vocabulary, stage = transformer.sizes.vocabulary, model.cond_stage_model
    if model.be_unconditional:
        condition = unconditional(model.sos_token, vocabulary, None, path)
    elif type(stage).__qualname__ == "Labelator":
        condition = classes(stage.n_classes, vocabulary, None, path)
    else:
        wanted = f"the tokens of {model.cond_stage_key!r} ({type(stage).__qualname__})"
        condition = Condition(refusal=f"its transformer wants {wanted} in front, and only classes can stand there")
    return _model(first, transformer, condition, Sampling(), tensors, path)


FAMILY = Family(
    name="net2net",
    title="Net2NetTransformer of taming-transformers: a VQGAN that draws images of a class",
    formats="a folder with checkpoints/ and configs/, or a .ckpt or .safetensors file with ?heads=N; "
    "?temperature=1&top_k=100&top_p=0.95, ?guidance=2&empty=10, ?classes=FILE",
    abilities=(ENCODE, DECODE, GENERATE, LOGITS),
    open=open_net2net,
    recognise=recognise_net2net,
    wrap=wrap_net2net,
)
