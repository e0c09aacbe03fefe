"""The one adapter class that every ordinary family uses, and what a family's file has to provide for it.

A family's file holds a `Network`: the official forward path, in the official pixel range, and nothing else. The
adapter adds what all models owe their callers: pixels in [0, 1], tokens that do not depend on the batch, checked
shapes, an identity, empty batches, devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, Codes
from vqcortex.adapters.protocol import DECODE, ENCODE, LOGITS, Level, check_ability, one_level
from vqcortex.errors import ConfigError, ShapeError
from vqcortex.tokens.grid import check_tokens


@runtime_checkable
class Network(Protocol):
    """A family's forward path: an `nn.Module` with these members. Tensors of several levels are laid out as one row.

    Attributes:
        codes: The codebook as used for look-up when decoding.
        abilities: Which of "encode", "decode", "logits" its files allow.
    """

    @property
    def codes(self) -> Codes: ...
    @property
    def abilities(self) -> frozenset[str]: ...

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n H W"]:
        """Images in [0, 1] to what the encoder is fed."""
        ...

    def choose(self, images: Float[Tensor, "b n H W"]) -> Choice:
        """Tokens of prepared images, by the family's own rule."""
        ...

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n H W"]:
        """The decoder's raw output for codes, not clamped; differentiable."""
        ...

    def finish(self, decoded: Float[Tensor, "b n H W"]) -> Float[Tensor, "b 3 H W"]:
        """The decoder's raw output to pixels in [0, 1]."""
        ...


@final
class NetworkAdapter:
    """A network behind the adapter protocol.

    Args:
        name: What `load_model` was given.
        family: Name of the family.
        network: The forward path; held still (eval mode, no weight gradients).
        size: Height and width of its images, in pixels.
        stride: Pixels per token side, if it takes images of any size that is a multiple; None if only of `size`.
        levels: Its grids, if it has several; None for one grid of size / stride.
        recognised: How its family was known, one sentence; empty if the caller said it.
    Raises:
        ConfigError: `size` is not a multiple of `stride`.
    """

    def __init__(
        self,
        *,
        name: str,
        family: str,
        network: Network,
        size: tuple[int, int],
        stride: int | None,
        levels: Sequence[Level] | None = None,
        recognised: str = "",
    ) -> None:
        if stride is None and levels is None:
            raise ConfigError(f"model {name!r} needs a stride or levels; give the pixels per token side")
        if stride is not None and (min(size) < stride or size[0] % stride or size[1] % stride):
            raise ConfigError(
                f"size={size[0]}x{size[1]} is not a multiple of the {stride} pixels that one token of {name!r} covers; "
                f"write ?size={max(stride, size[0] // stride * stride)} after the model's name"
            )
        module = cast(nn.Module, network)
        module.eval().requires_grad_(False)
        self.name, self.family, self.network, self.recognised = name, family, network, recognised
        self.stride, self._size = stride, size
        grid = (0, 0) if stride is None else (size[0] // stride, size[1] // stride)
        self._levels = one_level(grid, network.codes.k) if levels is None else tuple(levels)
        self._identity: str | None = None

    @property
    def module(self) -> nn.Module:
        """The network as a module."""
        return cast(nn.Module, self.network)

    @property
    def identity(self) -> str:
        if self._identity is None:
            self._identity = identity_of(self.module, f"{self.family} {self._size} {self._levels}")
        return self._identity

    @property
    def grid(self) -> tuple[int, int]:
        return self._levels[0].grid if len(self._levels) == 1 else (1, sum(one.length for one in self._levels))

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._levels

    @property
    def concepts(self) -> tuple[str, ...]:
        return ()

    @property
    def abilities(self) -> frozenset[str]:
        return self.network.abilities

    @property
    def k(self) -> int:
        return self.network.codes.k

    @property
    def d(self) -> int:
        return self.network.codes.d

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return self.network.codes.table().float()

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number type its network computes in; what goes in and comes out is float32."""
        return next(one.dtype for one in self.module.parameters() if one.is_floating_point())

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        check_ability(self.name, self.abilities, ENCODE, "import tokens made elsewhere, or generate")
        self._check_pixels(pixels)
        if not len(pixels):
            return torch.zeros(0, *self._grid_of(pixels), dtype=torch.long, device=pixels.device)
        with torch.no_grad(), exact_kernels():
            return self._sure_tokens(pixels)

    def _sure_tokens(self, pixels: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        """Tokens that the company in the batch cannot change: images with a doubtful token are encoded alone."""
        images = self.network.prepare(pixels).to(self.dtype)
        if encodes_alone(images.device):
            return torch.cat([self.network.choose(image).tokens for image in images.split(1)])
        choice = self.network.choose(images)
        if len(images) == 1:
            return choice.tokens
        tokens = choice.tokens.clone()
        for row in choice.doubtful.flatten(1).any(1).nonzero()[:, 0].tolist():
            tokens[row] = self.network.choose(images[row : row + 1]).tokens[0]
        return tokens

    def logits(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k h w"]:
        """The family's own score of every code at every position, higher is likelier.

        Raises:
            ModelError: The family chooses by distance and has no such scores.
        """
        check_ability(self.name, self.abilities, LOGITS, "this family chooses codes by distance: use encode")
        self._check_pixels(pixels)
        with torch.no_grad(), exact_kernels():
            found = self.network.choose(self.network.prepare(pixels).to(self.dtype)).logits
        assert found is not None
        return found.float()

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        check_tokens(tokens, self.k)
        return self.network.codes.embed(tokens).float()

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        with torch.no_grad(), exact_kernels():
            return self.network.codes.nearest(embedded).tokens

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        check_ability(self.name, self.abilities, DECODE, "use a model with a decoder to see pictures")
        if self.stride is None and embedded.shape[-2:] != self.grid:
            raise ShapeError(
                f"codes have grid {tuple(embedded.shape[-2:])} but {self.name!r} decodes {self.grid} only; "
                "open it with another ?size= for other images"
            )
        if not len(embedded):
            return embedded.new_zeros(0, 3, *self._size_of(embedded))
        return self.network.finish(self.network.decode(embedded.to(self.dtype)).float())

    def to(self, device: str) -> NetworkAdapter:
        self.module.to(device)
        return self

    def _grid_of(self, pixels: Tensor) -> tuple[int, int]:
        if self.stride is None:
            return self.grid
        return pixels.shape[2] // self.stride, pixels.shape[3] // self.stride

    def _size_of(self, embedded: Tensor) -> tuple[int, int]:
        if self.stride is None:
            return self.size
        return embedded.shape[2] * self.stride, embedded.shape[3] * self.stride

    def _check_pixels(self, pixels: Tensor) -> None:
        shape = tuple(pixels.shape[2:])
        if self.stride is None and shape != self.size:
            raise ShapeError(
                f"images are {shape} but {self.name!r} takes {self.size} only; resize them, or open it with ?size="
            )
        if self.stride is not None and (min(shape) < self.stride or shape[0] % self.stride or shape[1] % self.stride):
            raise ShapeError(
                f"images are {shape} but sides must be multiples of {self.stride} for {self.name!r}; resize or crop"
            )


def encodes_alone(device: torch.device) -> bool:
    """Whether images are encoded one by one from the start.

    On a CPU a batch gains a few percent, and a second look at a doubtful image costs as much as the first.
    """
    return device.type == "cpu"


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Full float32 convolutions and products inside the block: TF32 would let the batch decide a token."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.backends.cudnn.allow_tf32 = convolutions


def identity_of(module: nn.Module, facts: str) -> str:
    """SHA-256 over a module's tensors (names, types, shapes, bytes) and the facts beside them.

    Equal weights have one identity whatever file they came in, as long as the family reads them alike.
    """
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole = tensor.detach().cpu().contiguous()
        digest.update(whole.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
