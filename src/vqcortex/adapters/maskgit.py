"""MaskGIT's VQGAN: no attention, means instead of strided convolutions, pixels in [0, 1] on both sides.

The tokenizer that TiTok, RAR and MaskGIT's own ports share, as its PyTorch ports save it.

Source:
    Chang et al. 2022, arXiv:2202.04200; github.com/bytedance/1d-tokenizer (modeling/modules/maskgit_vqgan.py) and
    github.com/huggingface/open-muse, which are ports of github.com/google-research/maskgit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.family import Family, Files, Spec, file_in, table_shape
from vqcortex.adapters.hub import locate_first
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.adapters.taming import GROUPS, convolution, dtype_of, live_spec, numbers_under
from vqcortex.checkpoints import fill, read_checkpoint, state_dict_of
from vqcortex.errors import ModelError

SIDE = 256  # pixels of the images it was released for
EPSILON = 1e-6
# The one file of it in a repository of many models; or a repository of its own.
NAMES = ("maskgit-vqgan*.bin", "maskgit-vqgan*.safetensors", "pytorch_model.bin", "model.safetensors")
KEYS = ("encoder.down.0.block.0.conv1.weight", "encoder.mid.0.conv1.weight", "decoder.mid.0.conv1.weight")
TABLE = "quantize.embedding.weight"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the network, as the tensors have them.

    Args:
        first: Channels after the encoder's first convolution.
        widths: Channels of each level, full resolution first.
        blocks: Residual blocks per level, and in the middle.
        k: Codes.
        d: Numbers per code.
    """

    first: int
    widths: tuple[int, ...]
    blocks: int
    k: int
    d: int

    @property
    def stride(self) -> int:
        """Pixels per token side."""
        return int(2 ** (len(self.widths) - 1))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPSILON)


def _conv(before: int, after: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=bias)


class Block(nn.Module):
    """Two convolutions without bias, each after a normalisation and a swish.

    Where the width changes, the shortcut is taken from the block's own output and what came in is dropped. That is how
    the released weights were trained, so it has to stay.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), _conv(before, after, 3, bias=False)
        self.norm2, self.conv2 = _norm(after), _conv(after, after, 3, bias=False)
        self.nin_shortcut = _conv(after, after, 1, bias=False) if before != after else None

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n p q"]:
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        return branch + (x if self.nin_shortcut is None else self.nin_shortcut(branch))


class Level(nn.Module):
    """The blocks of one resolution; on the way up, the convolution after a doubling."""

    def __init__(self, before: int, after: int, blocks: int, *, doubles: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(before if place == 0 else after, after) for place in range(blocks))
        self.upsample_conv = _conv(after, after, 3) if doubles else None

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n r s"]:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@final
class Encoder(nn.Module):
    """Images to latents; `down[0]` is full resolution."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.conv_in = _conv(3, sizes.first, 3, bias=False)
        before = (sizes.first, *sizes.widths[:-1])
        self.down = nn.ModuleList(Level(a, b, sizes.blocks) for a, b in zip(before, sizes.widths, strict=True))
        last = sizes.widths[-1]
        self.mid = nn.ModuleList(Block(last, last) for _ in range(sizes.blocks))
        self.norm_out, self.conv_out = _norm(last), _conv(last, sizes.d, 1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        x = self.conv_in(images)
        for number, level in enumerate(self.down):
            x = level(x if number == 0 else F.avg_pool2d(x, 2))
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


@final
class Decoder(nn.Module):
    """Latents to images; `up[0]` is full resolution and runs last."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        last = sizes.widths[-1]
        self.conv_in = _conv(sizes.d, last, 3)
        self.mid = nn.ModuleList(Block(last, last) for _ in range(sizes.blocks))
        before = (*sizes.widths[1:], last)
        self.up = nn.ModuleList(
            Level(a, b, sizes.blocks, doubles=number > 0)
            for number, (a, b) in enumerate(zip(before, sizes.widths, strict=True))
        )
        self.norm_out, self.conv_out = _norm(sizes.widths[0]), _conv(sizes.widths[0], 3, 3)

    def forward(self, latent: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        x = self.conv_in(latent)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


@final
class MaskGitNetwork(nn.Module):
    """Encoder, table and decoder, behind the network protocol."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.quantize = nn.ModuleDict({"embedding": TableCodes(sizes.k, sizes.d)})

    @property
    def codes(self) -> TableCodes:
        return self.quantize["embedding"]  # type: ignore[return-value]

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return pixels

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents right before a code is chosen."""
        return self.encoder(images)

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.decoder(embedded)

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return decoded.clamp(0, 1)


def sizes_of(tensors: Mapping[str, Tensor], path: Path) -> Sizes:
    """Sizes from the shapes of a state dict.

    Raises:
        ModelError: A key is missing, or a shape makes no sense.
    """
    levels = max(1, numbers_under(tensors, "encoder.down."))
    widths = tuple(
        convolution(tensors, f"encoder.down.{level}.block.0.conv1.weight", path)[0] for level in range(levels)
    )
    if odd := [width for width in widths if width % GROUPS]:
        raise ModelError(
            f"checkpoint {str(path)!r}: a level of {odd[0]} channels cannot be normalised in {GROUPS} groups; "
            "it is of another family"
        )
    latent = convolution(tensors, "encoder.conv_out.weight", path)[0]
    return Sizes(
        first=convolution(tensors, "encoder.conv_in.weight", path)[0],
        widths=widths,
        blocks=numbers_under(tensors, "encoder.down.0.block."),
        k=table_shape(tensors, TABLE, path, d=latent)[0],
        d=latent,
    )


def build_maskgit(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> MaskGitNetwork:
    """A network with the weights of a state dict.

    Raises:
        ModelError: Keys, shapes or numbers are not those of this family.
    """
    with torch.device("meta"):
        network = MaskGitNetwork(sizes_of(tensors, path))
    fill(network, tensors, path=path, dtype=dtype)
    return network


def open_maskgit(spec: Spec) -> Adapter:
    """Open "maskgit:FILE", "maskgit:FOLDER", or "maskgit:fun-research/TiTok".

    Raises:
        ModelError: There is no such file in the folder, or it is broken.
    """
    spec.check()
    path = locate_first(spec, *((name,) for name in NAMES))
    found = file_in(path, *NAMES)
    tensors = state_dict_of(read_checkpoint(found, ignore=spec.ignore), found)
    return _adapter(build_maskgit(tensors, found, spec.dtype()), spec)


def _adapter(network: MaskGitNetwork, spec: Spec) -> Adapter:
    return NetworkAdapter(
        name=spec.text,
        family="maskgit",
        network=network,
        size=spec.size((SIDE, SIDE)),
        stride=network.sizes.stride,
        recognised=spec.recognised,
    )


def recognise(files: Files) -> str | None:
    """By a middle that is a plain list of blocks, a table, and convolutions without bias."""
    tensors: Mapping[str, Tensor] = files.tensors
    if files.path.is_dir():
        found = files.find(*NAMES)
        tensors = {} if found is None else Files(found, files.ignore).tensors
    if all(key in tensors for key in (*KEYS, TABLE)) and KEYS[0].replace("weight", "bias") not in tensors:
        return f"the state dict has {KEYS[1]}, and no biases in {KEYS[0]}: MaskGIT-VQGAN"
    return None


LIVE = {"muse.modeling_maskgit_vqgan": ("MaskGitVQGAN",), "modeling.titok": ("PretrainedTokenizer",)}


def wrap(model: Any) -> Adapter | None:
    """A live tokenizer of 1d-tokenizer or open-muse with encoder, quantize and decoder; its weights are shared."""
    kind = type(model)
    if kind.__qualname__ not in LIVE.get(kind.__module__, ()):
        return None
    tensors, spec = model.state_dict(), live_spec(model, "maskgit")
    return _adapter(build_maskgit(tensors, Path(spec.text), dtype_of(tensors)), spec)


FAMILY = Family(
    name="maskgit",
    title="MaskGIT-VQGAN (TiTok, RAR, open-muse)",
    formats="state dict file, or a folder with it",
    abilities=(ENCODE, DECODE),
    open=open_maskgit,
    recognise=recognise,
    wrap=wrap,
)
