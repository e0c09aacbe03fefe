"""VQ-VAE-2 in the layout of rosinality/vq-vae-2-pytorch: a coarse grid, and a fine one that is chosen knowing it.

Two levels, laid out as one row, top first. Each has a codebook of its own; tokens of "bottom" count on from those of
"top", so token k_top + i is row i of the bottom codebook (`Level.codes` says where each begins). `decode` splits the
row again, so a model is open for images of one size: `?size=256` (the default) or `?size=HEIGHTxWIDTH`, multiples of
eight. Images are in [-1, 1] inside.

Source:
    github.com/rosinality/vq-vae-2-pytorch (vqvae.py); after Razavi et al. 2019, arXiv:1906.00446, sections 3.1 and 3.2.
    Where its code departs from the paper we follow the code: the bottom latent sees the decoded top codes, not the
    top latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, StackedCodes, TableCodes
from vqcortex.adapters.family import Family, Files, Spec, file_in, table_shape
from vqcortex.adapters.hub import locate
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter, Level, join_levels, split_levels
from vqcortex.adapters.taming import convolution
from vqcortex.checkpoints import fill, read_checkpoint, state_dict_of, without
from vqcortex.errors import ConfigError

STRIDE = 8  # pixels per side of a top token; a bottom token covers half of that
SIZE = (256, 256)  # of the published FFHQ model
TABLES = ("quantize_t.embed", "quantize_b.embed")  # (d, k) on disk
_AVERAGES = tuple(f"quantize_{level}.{name}" for level in "tb" for name in ("cluster_size", "embed_avg"))
_PATTERNS = ("*.pt", "*.pth", "*.safetensors")


class _Residual(nn.Module):
    """x plus two convolutions of relu(x); x itself goes around."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, narrow, 3, padding=1), nn.ReLU(), nn.Conv2d(narrow, width, 1)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv(x)


class _Blocks(nn.Module):
    """A sequence of layers under the name the project gives it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e p q"]:
        return self.blocks(x)


def _halve(before: int, after: int) -> nn.Module:
    return nn.Conv2d(before, after, 4, stride=2, padding=1)


def _double(before: int, after: int) -> nn.Module:
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)


@final
class RosinalityNetwork(nn.Module):
    """The whole VQ-VAE-2, of the sizes that a state dict has, for images of one size.

    Args:
        tensors: The state dict, as it is on disk.
        path: Where it came from, for messages.
        size: Height and width of its images in pixels.
    Raises:
        ModelError: A key is missing, or two of them contradict each other.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path, size: tuple[int, int]) -> None:
        super().__init__()
        half, channels = convolution(tensors, "enc_b.blocks.0.weight", path)
        width, _ = convolution(tensors, "enc_b.blocks.4.weight", path)
        d, _ = convolution(tensors, "quantize_conv_t.weight", path)
        shapes = [table_shape(tensors, key, path, d=d, is_transposed=True) for key in TABLES]

        def residuals(half: str, first: int) -> list[nn.Module]:
            narrow, _ = convolution(tensors, f"{half}.blocks.{first}.conv.1.weight", path)
            count = sum(key.startswith(f"{half}.blocks.") and key.endswith(".conv.1.weight") for key in tensors)
            return [*(_Residual(width, narrow) for _ in range(count)), nn.ReLU()]

        relu = nn.ReLU()
        self.enc_b = _Blocks(
            _halve(channels, half), relu, _halve(half, width), relu,
            nn.Conv2d(width, width, 3, padding=1), *residuals("enc_b", 5),
        )  # fmt: skip
        self.enc_t = _Blocks(_halve(width, half), relu, nn.Conv2d(half, width, 3, padding=1), *residuals("enc_t", 3))
        self.quantize_conv_t = nn.Conv2d(width, d, 1)
        self.dec_t = _Blocks(nn.Conv2d(d, width, 3, padding=1), *residuals("dec_t", 1), _double(width, d))
        self.quantize_conv_b = nn.Conv2d(d + width, d, 1)
        self.upsample_t = _double(d, d)
        self.dec = _Blocks(
            nn.Conv2d(2 * d, width, 3, padding=1), *residuals("dec", 1), _double(width, half), relu,
            _double(half, channels),
        )  # fmt: skip
        self.levels = _levels(size, shapes[0][0], shapes[1][0])
        self.codes = StackedCodes([TableCodes(*shape) for shape in shapes], self.levels)

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return (pixels - 0.5) / 0.5

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d p q"]]:
        """The latents that codes are compared with, top and bottom; the latter follows from the top's tokens."""
        (top, _), (bottom, _) = self._both(image)
        return top, bottom

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        (_, top), (_, bottom) = self._both(images)
        first = self.levels[1].codes[0]
        return Choice(join_levels([top.tokens, bottom.tokens + first]), join_levels([top.doubtful, bottom.doubtful]))

    def _both(self, images: Float[Tensor, "b 3 H W"]) -> tuple[tuple[Tensor, Choice], tuple[Tensor, Choice]]:
        """Latent and tokens of each level."""
        coarse, fine = cast(list[TableCodes], list(self.codes.parts))
        below = self.enc_b(images)
        top = self.quantize_conv_t(self.enc_t(below))
        chosen = coarse.nearest(top)
        # The decoded top codes stand in front of the bottom features.
        bottom = self.quantize_conv_b(torch.cat([self.dec_t(coarse.embed(chosen.tokens)), below], 1))
        return (top, chosen), (bottom, fine.nearest(bottom))

    def decode(self, embedded: Float[Tensor, "b d 1 n"]) -> Float[Tensor, "b 3 H W"]:
        top, bottom = split_levels(embedded, self.levels)
        return self.dec(torch.cat([self.upsample_t(top), bottom], 1))

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return (decoded * 0.5 + 0.5).clamp(0, 1)


def _levels(size: tuple[int, int], top: int, bottom: int) -> tuple[Level, Level]:
    """Both grids for images of a size, with the codes that may stand in each."""
    h, w = size[0] // STRIDE, size[1] // STRIDE
    return (
        Level(name="top", grid=(h, w), codes=(0, top)),
        Level(name="bottom", grid=(2 * h, 2 * w), codes=(top, top + bottom)),
    )


def _network(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype, size: tuple[int, int]) -> RosinalityNetwork:
    with torch.device("meta"):
        network = RosinalityNetwork(tensors, path, size)
    named = without(tensors, *_AVERAGES, *TABLES)
    named |= {f"codes.parts.{part}.weight": tensors[key].T for part, key in enumerate(TABLES)}
    fill(network, named, path=path, dtype=dtype)
    return network


def open_rosinality(spec: Spec) -> Adapter:
    """Open `rosinality:FILE`, for images of `?size=`.

    Raises:
        ModelError: The file is absent, cut short, or of another family.
        ConfigError: An option is unknown, or the size is no multiple of eight.
    """
    spec.check()
    size = spec.size(SIZE)
    if size[0] % STRIDE or size[1] % STRIDE:
        raise ConfigError(
            f"size={size[0]}x{size[1]} of model {spec.text!r} is not a multiple of the {STRIDE} pixels that one top "
            f"token covers; write ?size={max(1, size[0] // STRIDE) * STRIDE}x{max(1, size[1] // STRIDE) * STRIDE}"
        )
    path = file_in(locate(spec, *_PATTERNS), *_PATTERNS)
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    return _adapter(spec.text, _network(tensors, path, spec.dtype(), size), size, spec.recognised)


def _adapter(name: str, network: RosinalityNetwork, size: tuple[int, int], recognised: str) -> NetworkAdapter:
    return NetworkAdapter(
        name=name, family="rosinality", network=network, size=size, stride=None, levels=network.levels,
        recognised=recognised,
    )  # fmt: skip


def recognise(files: Files) -> str | None:
    """Known by the keys of its two codebooks."""
    if files.has(*TABLES, "enc_b.blocks.0.weight"):
        return f"a state dict with {' and '.join(TABLES)}: rosinality's VQ-VAE-2"
    return None


def wrap(model: Any) -> Adapter | None:
    """A live VQVAE of the project, for 256-pixel images: its own tensors, not copied."""
    if type(model).__qualname__ != "VQVAE" or not isinstance(model, nn.Module):
        return None
    tensors = model.state_dict()
    if not all(key in tensors for key in TABLES):
        return None
    name = f"live:{type(model).__qualname__}"
    return _adapter(name, _network(tensors, Path(name), torch.float32, SIZE), SIZE, "")


FAMILY = Family(
    name="rosinality",
    title="VQ-VAE-2 of rosinality/vq-vae-2-pytorch",
    formats="a state dict (.pt, .safetensors), with ?size= for other images than 256x256",
    abilities=(ENCODE, DECODE),
    open=open_rosinality,
    recognise=recognise,
    wrap=wrap,
    levels="two",
)
