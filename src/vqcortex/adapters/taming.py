"""VQGANs of CompVis: taming-transformers' VQModel, GumbelVQ and EMAVQ, and the VQ first stages of latent-diffusion.

Source:
    Esser et al. 2021, arXiv:2012.09841; github.com/CompVis/taming-transformers (taming/models/vqgan.py,
    taming/modules/diffusionmodules/model.py). Rombach et al. 2022, arXiv:2112.10752;
    github.com/CompVis/latent-diffusion (ldm/models/autoencoder.py). Where we differ: GumbelVQ's encoder adds Gumbel
    noise even in eval mode; here a token is the code of the largest logit, without noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.codes import Choice, TableCodes, best_logit
from vqcortex.adapters.family import Family, Files, Spec, expanded
from vqcortex.adapters.hub import locate
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, LOGITS, Adapter
from vqcortex.checkpoints import fill, read_checkpoint, shape_of, state_dict_of, under, without
from vqcortex.errors import MissingExtra, ModelError

GROUPS = 32  # of every group normalisation in these projects
RESOLUTION = 256  # side of the images the released models were trained on, where no config says it


# ---------------------------------------------------------------------------------------------------------------------
# The network. Parameters have the names of taming's state dicts, so that other families of this shape can use it.


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of an encoder or of a decoder.

    Args:
        widths: Channels of each level, full resolution first; multiples of 32. taming's ch * ch_mult.
        blocks: Residual blocks per level of the encoder, 0 or more; the decoder has one more. taming's num_res_blocks.
        attention: Whether a level has attention after each block, full resolution first.
        z_channels: Channels of the latent on the network's side of the 1x1 convolutions.
        ch: Channels of the encoder's first convolution; the decoder has no use for it. None: those of the first level.
        channels: Image channels, in of the encoder, out of the decoder.
        double_z: Whether the encoder ends in 2 * z_channels.
        middle_attention: Whether the middle has attention.
        resampling: Whether there is a convolution where the resolution changes; otherwise means of 2x2 and repetition.
        epsilon: Added to the variance in group normalisation.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    z_channels: int
    ch: int | None = None
    channels: int = 3
    double_z: bool = False
    middle_attention: bool = True
    resampling: bool = True
    epsilon: float = 1e-6

    @property
    def levels(self) -> int:
        return len(self.widths)

    @property
    def stride(self) -> int:
        """Pixels per token side."""
        return 2 ** (len(self.widths) - 1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a group normalisation and a swish; 1x1 shortcut where the width changes."""

    def __init__(self, before: int, after: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, before, eps=epsilon)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, after, eps=epsilon)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Every position attends to every position, one head as wide as the level."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=epsilon)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.norm(x)
        query, key, value = (part(y).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))  # (b, h*w, c)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Half the resolution: a convolution of stride 2 padded right and below only, or the mean of 2x2."""

    def __init__(self, width: int, convolves: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2) if convolves else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c p q"]:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution: every value four times, then a convolution, if there is one."""

    def __init__(self, width: int, convolves: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1) if convolves else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c p q"]:
        y = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return y if self.conv is None else self.conv(y)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, attends: bool, epsilon: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, epsilon)
        self.attn_1 = AttentionBlock(width, epsilon) if attends else nn.Identity()
        self.block_2 = ResidualBlock(width, width, epsilon)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, before: int, after: int, blocks: int, attends: bool, epsilon: float) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(before if i == 0 else after, after, epsilon) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(after, epsilon) for _ in range(blocks if attends else 0))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e h w"]:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        return x


class _Down(_Level):
    def __init__(self, before: int, after: int, sizes: Sizes, attends: bool, last: bool) -> None:
        super().__init__(before, after, sizes.blocks, attends, sizes.epsilon)
        self.downsample = None if last else Downsample(after, sizes.resampling)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e p q"]:
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(x)


class _Up(_Level):
    def __init__(self, before: int, after: int, sizes: Sizes, attends: bool, last: bool) -> None:
        super().__init__(before, after, sizes.blocks + 1, attends, sizes.epsilon)
        self.upsample = None if last else Upsample(after, sizes.resampling)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e p q"]:
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)


@final
class Encoder(nn.Module):
    """Images to latents; `down[0]` is full resolution."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.ch or sizes.widths[0]
        self.conv_in = nn.Conv2d(sizes.channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, after in enumerate(sizes.widths):
            # Blocks change the width; a level without blocks keeps it.
            after = after if sizes.blocks else width
            self.down.append(_Down(width, after, sizes, sizes.attention[level], level == sizes.levels - 1))
            width = after
        self.mid = Middle(width, sizes.middle_attention, sizes.epsilon)
        self.norm_out = nn.GroupNorm(GROUPS, width, eps=sizes.epsilon)
        self.conv_out = nn.Conv2d(width, sizes.z_channels * (2 if sizes.double_z else 1), 3, padding=1)

    def forward(self, images: Float[Tensor, "b n H W"]) -> Float[Tensor, "b z h w"]:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


@final
class Decoder(nn.Module):
    """Latents to images; `up[0]` is full resolution and runs last."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.widths[-1]
        self.conv_in = nn.Conv2d(sizes.z_channels, width, 3, padding=1)
        self.mid = Middle(width, sizes.middle_attention, sizes.epsilon)
        ups = []
        for level in reversed(range(sizes.levels)):
            ups.append(_Up(width, sizes.widths[level], sizes, sizes.attention[level], level == 0))
            width = sizes.widths[level]
        self.up = nn.ModuleList(reversed(ups))
        self.norm_out = nn.GroupNorm(GROUPS, width, eps=sizes.epsilon)
        self.conv_out = nn.Conv2d(width, sizes.channels, 3, padding=1)

    def forward(self, latent: Float[Tensor, "b z h w"]) -> Float[Tensor, "b n H W"]:
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Nearest(nn.Module):
    """VectorQuantizer: the code nearest to the latent."""

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        self.embedding = TableCodes(k, d)

    @property
    def codes(self) -> TableCodes:
        return self.embedding

    def forward(self, latent: Float[Tensor, "b d h w"]) -> Choice:
        return self.embedding.nearest(latent)


class _Gumbel(nn.Module):
    """GumbelQuantize: the code that a 1x1 convolution of the latent scores highest."""

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(d, k, 1)
        self.embed = TableCodes(k, d)

    @property
    def codes(self) -> TableCodes:
        return self.embed

    def forward(self, latent: Float[Tensor, "b d h w"]) -> Choice:
        return best_logit(self.proj(latent))


@final
class TamingNetwork(nn.Module):
    """A whole VQGAN; images are in [-1, 1] inside.

    Args:
        sizes: What the files say.
    """

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder, self.decoder = Encoder(sizes.encoder), Decoder(sizes.decoder)
        self.quant_conv = nn.Conv2d(sizes.encoder.z_channels, sizes.d, 1)
        self.post_quant_conv = nn.Conv2d(sizes.d, sizes.decoder.z_channels, 1)
        self.quantize: _Gumbel | _Nearest = (_Gumbel if sizes.gumbel else _Nearest)(sizes.k, sizes.d)

    @property
    def codes(self) -> TableCodes:
        return self.quantize.codes

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE, LOGITS} if self.sizes.gumbel else {ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return 2 * pixels - 1

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents right before a code is chosen."""
        return self.quant_conv(self.encoder(images))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.quantize(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.decoder(self.post_quant_conv(embedded))

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return ((decoded + 1) / 2).clamp(0, 1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of a whole model.

    Args:
        encoder: Its encoder.
        decoder: Its decoder.
        k: Codes.
        d: Numbers per code.
        gumbel: Whether a network scores the codes, instead of a distance.
    """

    encoder: Sizes
    decoder: Sizes
    k: int
    d: int
    gumbel: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Sizes from tensor shapes.


def convolution(tensors: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, int]:
    """Channels out and in of a convolution's weight.

    Raises:
        ModelError: There is no such key, or it is no convolution's.
    """
    shape = shape_of(tensors, key, path)
    if len(shape) != 4 or 0 in shape:
        raise ModelError(
            f"{str(path)!r}: {key!r} has shape {shape} but a convolution's (out, in, rows, columns) was expected; "
            "the file is of another family, or was altered"
        )
    return shape[0], shape[1]


def numbers_under(tensors: Iterable[str], prefix: str) -> int:
    """How many numbered children a prefix has: 3 for "down.0.", "down.1." and "down.2." under "down."."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in tensors)
    return max((int(one[1]) + 1 for one in found if one), default=0)


def encoder_sizes(
    tensors: Mapping[str, Tensor], path: Path, *, prefix: str = "encoder.", levels: int | None = None
) -> Sizes:
    """Sizes of the encoder in a state dict of taming's key names.

    Args:
        tensors: The state dict.
        path: Where it came from, for messages.
        prefix: What its keys begin with.
        levels: Number of levels, where something else says it; None: count them. The last level of an encoder
            without blocks leaves no key.
    Raises:
        ModelError: A key is missing or a shape makes no sense.
    """
    down = f"{prefix}down."
    ch, channels = convolution(tensors, f"{prefix}conv_in.weight", path)
    blocks = numbers_under(tensors, f"{down}0.block.")
    resampling = any(key.startswith(down) and key.endswith(".downsample.conv.weight") for key in tensors)
    counted = numbers_under(tensors, down)
    # Without blocks the last level has no key of its own.
    levels = levels or (counted if blocks else counted + 1)
    widths = [
        convolution(tensors, f"{down}{level}.block.0.conv1.weight", path)[0] if blocks else ch
        for level in range(levels)
    ]
    return _checked(
        Sizes(
            widths=tuple(widths),
            blocks=blocks,
            attention=tuple(f"{down}{level}.attn.0.q.weight" in tensors for level in range(levels)),
            z_channels=convolution(tensors, f"{prefix}conv_out.weight", path)[0],
            ch=ch,
            channels=channels,
            middle_attention=f"{prefix}mid.attn_1.q.weight" in tensors,
            resampling=resampling or levels == 1,
        ),
        path,
    )


def decoder_sizes(tensors: Mapping[str, Tensor], path: Path, *, prefix: str = "decoder.") -> Sizes:
    """Sizes of the decoder in a state dict of taming's key names; arguments as in `encoder_sizes`."""
    up = f"{prefix}up."
    levels, blocks = numbers_under(tensors, up), numbers_under(tensors, f"{up}0.block.")
    widths = [convolution(tensors, f"{up}{level}.block.0.conv1.weight", path)[0] for level in range(max(1, levels))]
    return _checked(
        Sizes(
            widths=tuple(widths),
            blocks=blocks - 1,
            attention=tuple(f"{up}{level}.attn.0.q.weight" in tensors for level in range(levels)),
            z_channels=convolution(tensors, f"{prefix}conv_in.weight", path)[1],
            channels=convolution(tensors, f"{prefix}conv_out.weight", path)[0],
            middle_attention=f"{prefix}mid.attn_1.q.weight" in tensors,
            resampling=levels == 1 or f"{up}1.upsample.conv.weight" in tensors,
        ),
        path,
    )


def sizes_of(tensors: Mapping[str, Tensor], path: Path) -> ModelSizes:
    """Sizes of a whole model from the shapes of its state dict.

    Raises:
        ModelError: A key is missing, or encoder and decoder contradict each other.
    """
    gumbel = "quantize.embed.weight" in tensors
    table = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    shape = shape_of(tensors, table, path)
    if len(shape) != 2 or 0 in shape:
        raise ModelError(f"{str(path)!r}: {table!r} has shape {shape} but codes by channels (k, d) were expected")
    decoder = decoder_sizes(tensors, path)
    encoder = encoder_sizes(tensors, path, levels=decoder.levels)
    last = f"encoder.down.{decoder.levels}."
    if beyond := next((key for key in tensors if key.startswith(last)), None):
        raise ModelError(
            f"{str(path)!r}: the decoder has {decoder.levels} levels but the encoder has {beyond!r}; "
            "the file mixes two models: restore it"
        )
    return ModelSizes(encoder=encoder, decoder=decoder, k=shape[0], d=shape[1], gumbel=gumbel)


def _checked(sizes: Sizes, path: Path) -> Sizes:
    if odd := [width for width in (*sizes.widths, *([sizes.ch] if sizes.ch else [])) if width % GROUPS or not width]:
        raise ModelError(
            f"{str(path)!r}: a level of {odd[0]} channels cannot be normalised in {GROUPS} groups; "
            "these models have multiples of 32: the file or its config is of another family"
        )
    return sizes


# ---------------------------------------------------------------------------------------------------------------------
# Sizes from a config.

# Classes of the official projects that have these parameters; GumbelVQ is told by its keys as well.
CLASSES = ("VQModel", "VQNoDiscModel", "VQModelInterface", "GumbelVQ", "EMAVQ")
# Settings of ddconfig that change what is computed, with the value that means "as above".
_PLAIN = {"attn_type": "vanilla", "use_linear_attn": False, "use_timestep": False, "tanh_out": False}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """An official YAML config, read and not yet understood.

    Args:
        path: Its file.
        model: What stands under `model`: a `target` and its `params`.
    """

    path: Path
    model: Mapping[str, Any]

    @property
    def target(self) -> str:
        """The class it is for: "taming.models.vqgan.VQModel"; empty if it says none."""
        return str(self.model.get("target") or self.model.get("class_path") or "")

    @property
    def kind(self) -> str:
        """The class without its module."""
        return self.target.rpartition(".")[2]

    @property
    def is_vqgan(self) -> bool:
        """Whether it is for one of this family's models; Open-MAGVIT2 names its own, in a package "src", alike."""
        return self.kind in CLASSES and not self.target.startswith("src.")

    @property
    def params(self) -> Mapping[str, Any]:
        """Arguments of that class."""
        params = self.model.get("params")
        return params if isinstance(params, Mapping) else {}

    def part(self, name: str) -> Config:
        """The config of a part of the model, that stands in its parameters.

        Raises:
            ModelError: There is none.
        """
        part = self.params.get(name)
        if not isinstance(part, Mapping):
            raise ModelError(
                f"config {str(self.path)!r} has no model.params.{name} with target and params; "
                "take the config that came with the checkpoint"
            )
        return Config(path=self.path, model=part)

    @property
    def first_stage(self) -> Config:
        """The VQGAN's own part: all of it, or that of a model which has one as its first stage."""
        return self.part("first_stage_config") if "first_stage_config" in self.params else self

    def settings(self, name: str) -> Mapping[str, Any]:
        """A group of settings, such as `ddconfig`.

        Raises:
            ModelError: There is none.
        """
        found = self.params.get(name)
        if not isinstance(found, Mapping):
            raise ModelError(
                f"config {str(self.path)!r} of {self.target or 'no target'!r} has no params.{name}; "
                "take the config that came with the checkpoint"
            )
        return found

    def number(self, settings: Mapping[str, Any], name: str, least: int = 1) -> int:
        """A whole number of the config.

        Raises:
            ModelError: It is absent, no whole number, or less than `least`.
        """
        value = settings.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ModelError(
                f"config {str(self.path)!r} says {name}={value!r} where a whole number from {least} up is needed; "
                "take the config that came with the checkpoint"
            )
        return value

    def numbers(self, settings: Mapping[str, Any], name: str) -> tuple[int, ...]:
        """A list of whole numbers of the config.

        Raises:
            ModelError: It is none.
        """
        values = settings.get(name)
        if not isinstance(values, list) or not all(isinstance(one, int) and one > 0 for one in values):
            raise ModelError(
                f"config {str(self.path)!r} says {name}={values!r} where a list of whole numbers is needed; "
                "take the config that came with the checkpoint"
            )
        return tuple(values)


def read_config(path: Path) -> Config | None:
    """The model's config in a YAML file; None if the file says nothing of a model.

    Raises:
        ModelError: It is not YAML, or holds more than plain values.
        MissingExtra: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtra("model configs need PyYAML; install it with: pip install pyyaml") from error
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"config {str(path)!r} is not plain YAML ({reason}); restore it") from error
    model = content.get("model") if isinstance(content, Mapping) else None
    return Config(path=path, model=model) if isinstance(model, Mapping) else None


def sizes_in(config: Config) -> ModelSizes:
    """Sizes that a VQGAN's config gives.

    Raises:
        ModelError: It is for something else, or lacks a size.
    """
    if not config.is_vqgan:
        raise ModelError(
            f"config {str(config.path)!r} is for {config.target or 'no target'!r}, which this family cannot open; "
            f"it opens {', '.join(CLASSES)} of taming-transformers and latent-diffusion"
        )
    said = config.settings("ddconfig")
    for name, plain in _PLAIN.items():
        if said.get(name, plain) != plain and not (name == "attn_type" and said[name] == "none"):
            raise ModelError(
                f"config {str(config.path)!r} says {name}={said[name]!r}, which no released VQGAN has and this family "
                f"does not compute; it computes {name}={plain!r}"
            )
    if said.get("double_z"):
        raise ModelError(
            f"config {str(config.path)!r} says double_z=True: that is an autoencoder with a normal distribution for a "
            "latent, which has no codes; take a VQ model"
        )
    ch, ch_mult = config.number(said, "ch"), config.numbers(said, "ch_mult")
    resolution, hits = config.number(said, "resolution"), config.numbers(said, "attn_resolutions")
    levels, attends = len(ch_mult), said.get("attn_type") != "none"
    if not levels:
        raise ModelError(f"config {str(config.path)!r} says ch_mult=[], no levels at all; take the checkpoint's own")
    # The encoder halves the resolution and rounds down at each level; the decoder doubles what that comes to.
    down = [resolution // 2**level for level in range(levels)]
    up = [resolution // 2 ** (levels - 1) * 2 ** (levels - 1 - level) for level in range(levels)]
    shared: dict[str, Any] = {
        "widths": tuple(ch * factor for factor in ch_mult),
        "blocks": config.number(said, "num_res_blocks", least=0),
        "z_channels": config.number(said, "z_channels"),
        "ch": ch,
        "middle_attention": attends,
        "resampling": bool(said.get("resamp_with_conv", True)),
    }
    return ModelSizes(
        encoder=_checked(
            Sizes(
                attention=tuple(attends and side in hits for side in down),
                channels=config.number(said, "in_channels"),
                **shared,
            ),
            config.path,
        ),
        decoder=Sizes(
            attention=tuple(attends and side in hits for side in up), channels=config.number(said, "out_ch"), **shared
        ),
        k=config.number(config.params, "n_embed"),
        d=config.number(config.params, "embed_dim"),
        gumbel=config.kind == "GumbelVQ",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Files.

FIRST_STAGE = "first_stage_model."  # where models with a VQGAN inside keep it
# What training leaves in the state dict: losses (a perceptual network and a discriminator), running averages of the
# codebook's use, averaged weights that the official models do not decode with, colours for segmentation maps, and the
# list of codes in use, by which official ids are numbered anew: ids here are always rows of the whole codebook.
_TRAINING = (
    "loss.",
    "model_ema.",
    "colorize",
    "quantize.used",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
)
_FOLDERS = ("checkpoints", "ckpts", ".")
_CONFIGS = ("*-project.yaml", "model.yaml", "project.yaml", "config.yaml", "*.yaml")


def weights_in(folder: Path) -> Path | None:
    """The checkpoint of a model's folder: last, else model, else the newest by name; safetensors where both exist."""
    for name in _FOLDERS:
        inside = folder / name
        files = [*inside.glob("*.ckpt"), *inside.glob("*.safetensors")] if inside.is_dir() else []
        if name == "." and not _configs_in(folder):
            continue  # weights beside no config are some other project's
        if files:
            return max(files, key=_preference)
    return None


def _preference(path: Path) -> tuple[Any, ...]:
    # Numbers in a name compare as numbers: epoch=10 is newer than epoch=9.
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
    return path.stem == "last", path.stem == "model", parts, path.suffix == ".safetensors"


def config_in(folder: Path) -> Config | None:
    """The config of a model's folder that says something of a model; None if there is none."""
    return next((found for path in _configs_in(folder) if (found := read_config(path)) is not None), None)


def _configs_in(folder: Path) -> list[Path]:
    """Configs of a folder, likeliest first, the newest first of those that are alike."""
    found: dict[Path, None] = {}
    for inside in (folder / "configs", folder):
        for pattern in _CONFIGS:
            found.update(dict.fromkeys(sorted(inside.glob(pattern), reverse=True)))
    return list(found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A checkpoint of these projects.

    Args:
        path: Its file.
        tensors: Its state dict, still on disk.
        config: Its config, if there is one.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    config: Config | None


def open_files(spec: Spec) -> Opened:
    """The checkpoint and config that a name means.

    Raises:
        ModelError: There is no checkpoint, or a file cannot be read.
    """
    place = locate(spec, "*.ckpt", "*.safetensors", "*.yaml")
    path = weights_in(place) if place.is_dir() else place
    if path is None:
        seen = ", ".join(sorted(one.name for one in place.iterdir())[:5]) or "nothing"
        raise ModelError(
            f"{str(place)!r} has no checkpoint in checkpoints/ or ckpts/, nor one beside a .yaml config, but {seen}; "
            "name the folder above them, or the checkpoint file"
        )
    config = config_in(place) if place.is_dir() else None
    if "config" in spec.options:
        named = expanded(spec.options["config"])
        config = read_config(named)
        if config is None:
            raise ModelError(f"config {str(named)!r} has no 'model' with target and params; name the project's own")
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    return Opened(path=path, tensors=tensors, config=config)


def network_from(
    tensors: Mapping[str, Tensor], config: Config | None, path: Path, dtype: torch.dtype = torch.float32
) -> TamingNetwork:
    """A VQGAN from its state dict.

    Args:
        tensors: The state dict; what only training needs may be in it, and is not touched.
        config: Its config; None reads all sizes off the shapes.
        path: Of the checkpoint, for messages.
        dtype: Number type the weights are brought to.
    Raises:
        ModelError: The config is of another model; or a tensor is absent, too many, of a wrong shape or not finite.
    """
    kept = without(tensors, *_TRAINING)
    sizes = sizes_of(kept, path) if config is None else sizes_in(config)
    if (sizes.encoder.channels, sizes.decoder.channels) != (3, 3):
        raise ModelError(
            f"{str(path)!r} takes images of {sizes.encoder.channels} channels and gives {sizes.decoder.channels}; "
            "only colour images (3 and 3) can be explained: take the model of images, not of maps"
        )
    with torch.device("meta"):
        network = TamingNetwork(sizes)
    try:
        fill(network, kept, path=path, dtype=dtype)
    except ModelError as error:
        if config is not None:
            error.within(config=str(config.path))
        raise
    return network


def open_taming(spec: Spec) -> Adapter:
    """Open "taming:FOLDER" or "taming:FILE".

    Raises:
        ModelError: Its files are absent, altered, or of no VQGAN.
        ConfigError: An option is wrong.
    """
    spec.check("config")
    files = open_files(spec)
    tensors, config = files.tensors, files.config
    if "encoder.conv_in.weight" not in tensors and f"{FIRST_STAGE}encoder.conv_in.weight" in tensors:
        tensors = under(tensors, FIRST_STAGE)
    stage = None if config is None else config.first_stage
    return adapter_of(network_from(tensors, stage, files.path, spec.dtype()), resolution_of(stage), spec)


def resolution_of(config: Config | None) -> int:
    """Side of the images a VQGAN was trained on."""
    return RESOLUTION if config is None else config.number(config.settings("ddconfig"), "resolution")


def adapter_of(network: TamingNetwork, side: int, spec: Spec) -> NetworkAdapter:
    """A VQGAN behind the adapter protocol, for square images of `side` pixels unless the name says otherwise."""
    return NetworkAdapter(
        name=spec.text,
        family=spec.family,
        network=network,
        size=spec.size((side, side)),
        stride=network.sizes.decoder.stride,
        recognised=spec.recognised,
    )


def is_vqgan(tensors: Mapping[str, Tensor], prefix: str = "") -> bool:
    """Whether a state dict has the keys of these models: both halves, their 1x1 convolutions, and a table of codes."""
    needed = ("encoder.conv_in", "encoder.mid.block_1.conv1", "decoder.mid.block_1.conv1", "decoder.up.0.block.0.conv1")
    tables = ("quantize.embedding", "quantize.embed")
    bridges = [tensors.get(f"{prefix}{name}.weight") for name in ("quant_conv", "post_quant_conv")]
    return (
        all(f"{prefix}{name}.weight" in tensors for name in needed)
        and any(f"{prefix}{name}.weight" in tensors for name in tables)
        and all(one is not None and one.shape[2:] == (1, 1) for one in bridges)
        and not any(key.startswith(f"{prefix}quantize.quant_resi") for key in tensors)
        # Others number the decoder's levels the other way round.
        and f"{prefix}decoder.up.0.upsample.conv.weight" not in tensors
    )


def recognise_taming(files: Files) -> str | None:
    """Know a VQGAN by its config's target, else by its keys."""
    config, path, tensors = look_at(files)
    if config is not None and config.target:
        known = config.first_stage.is_vqgan and "transformer_config" not in config.params
        return f"config {config.path.name!r} is for {config.target}" if known and path is not None else None
    if "transformer.tok_emb.weight" in tensors:
        return None
    for prefix in ("", FIRST_STAGE):
        if is_vqgan(tensors, prefix):
            where = "" if path is None else f" of {path.name!r}"
            return f"the state dict{where} has taming's {prefix}encoder.down, {prefix}quant_conv and {prefix}quantize"
    return None


def look_at(files: Files) -> tuple[Config | None, Path | None, Mapping[str, Tensor]]:
    """What tells these projects' families apart: the config; or, where there is none, the state dict."""
    if not files.path.is_dir():
        return None, files.path, files.tensors
    path = weights_in(files.path)
    if path is None:
        return None, None, {}
    config = config_in(files.path)
    return config, path, {} if config is not None else Files(path, files.ignore).tensors


LIVE = {
    "taming.models.vqgan": ("VQModel", "VQNoDiscModel", "GumbelVQ", "EMAVQ"),
    "ldm.models.autoencoder": ("VQModel", "VQModelInterface"),
}


def wrap_taming(model: Any) -> Adapter | None:
    """A live model of taming-transformers or latent-diffusion; it shares its weights with the adapter."""
    kind = type(model)
    if kind.__qualname__ not in LIVE.get(kind.__module__, ()):
        return None
    tensors = model.state_dict()
    network = network_from(tensors, None, Path(f"live:{kind.__qualname__}"), dtype_of(tensors))
    return adapter_of(network, getattr(model.encoder, "resolution", RESOLUTION), live_spec(model, "taming"))


def live_spec(model: nn.Module, family: str) -> Spec:
    """What stands for the name of a live model."""
    kind = type(model)
    known = f"a live {kind.__module__}.{kind.__qualname__}"
    return Spec(text=f"live:{kind.__qualname__}", family=family, place="", recognised=known)


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The number type of a state dict's first floating-point tensor."""
    return next((one.dtype for one in tensors.values() if one.is_floating_point()), torch.float32)


FAMILY = Family(
    name="taming",
    title="VQGAN of taming-transformers (VQModel, GumbelVQ, EMAVQ) and latent-diffusion",
    formats="a folder with checkpoints/ and configs/, or a .ckpt or .safetensors file; ?config=FILE.yaml",
    abilities=(ENCODE, DECODE, LOGITS),
    open=open_taming,
    recognise=recognise_taming,
    wrap=wrap_taming,
)
