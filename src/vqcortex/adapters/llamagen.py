"""LlamaGen's image tokenizer: a VQGAN whose codes are brought to unit length.

Source:
    Sun et al. 2024, arXiv:2406.06525, section 2.1; github.com/FoundationVision/LlamaGen
    (tokenizer/tokenizer_image/vq_model.py). The blocks are taming's under other names.
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

from vqcortex.adapters.codes import Choice, TableCodes, UnitCodes
from vqcortex.adapters.family import Family, Files, Spec
from vqcortex.adapters.hub import locate_first
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.adapters.taming import (
    GROUPS,
    RESOLUTION,
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    convolution,
    dtype_of,
    live_spec,
    numbers_under,
)
from vqcortex.checkpoints import fill, read_checkpoint, shape_of, state_dict_of, without
from vqcortex.errors import ModelError

# Codes are extracted, and generators trained on them, with "model"; "ema" and "state_dict" are read where it is absent.
STATE_KEYS = ("model", "ema", "state_dict")
_USAGE = "quantize.codebook_used"  # a log of recent codes, of no use here; it is never touched


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HalfSizes:
    """Sizes of the encoder or the decoder.

    Args:
        widths: Channels of each level in the order in which they run; multiples of 32.
        blocks: Residual blocks of each level.
        attention: Whether each level has attention after each block.
        first: Channels of the first convolution's output.
        inputs: Channels of its input.
        outputs: Channels of the last convolution's output.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    first: int
    inputs: int
    outputs: int


class _Level(nn.Module):
    """Blocks of one resolution, each followed by attention where the level has it; then the next resolution."""

    def __init__(self, before: int, after: int, blocks: int, attends: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(before if i == 0 else after, after) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(after) for _ in range(blocks if attends else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e p q"]:
        for number, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


def _levels(sizes: HalfSizes, resample: type[Downsample] | type[Upsample]) -> nn.ModuleList:
    levels, width = nn.ModuleList(), sizes.first
    for after, attends in zip(sizes.widths, sizes.attention, strict=True):
        level = _Level(width, after, sizes.blocks, attends)
        if len(levels) < len(sizes.widths) - 1:
            setattr(level, resample.__name__.lower(), resample(after))
        levels.append(level)
        width = after
    return levels


def _middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width)])


class _Half(nn.Module):
    def __init__(self, sizes: HalfSizes, last: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(sizes.inputs, sizes.first, 3, padding=1)
        self.norm_out = nn.GroupNorm(GROUPS, last, eps=1e-6)
        self.conv_out = nn.Conv2d(last, sizes.outputs, 3, padding=1)

    def ended(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e h w"]:
        return self.conv_out(F.silu(self.norm_out(x)))


@final
class Encoder(_Half):
    """Images to latents; `conv_blocks[0]` is full resolution."""

    def __init__(self, sizes: HalfSizes) -> None:
        super().__init__(sizes, sizes.widths[-1])
        self.conv_blocks = _levels(sizes, Downsample)
        self.mid = _middle(sizes.widths[-1])

    def forward(self, images: Float[Tensor, "b n H W"]) -> Float[Tensor, "b z h w"]:
        x = self.conv_in(images)
        for part in (*self.conv_blocks, *self.mid):
            x = part(x)
        return self.ended(x)


@final
class Decoder(_Half):
    """Latents to images; `conv_blocks[0]` is the lowest resolution."""

    def __init__(self, sizes: HalfSizes) -> None:
        super().__init__(sizes, sizes.widths[-1])
        self.mid = _middle(sizes.first)
        self.conv_blocks = _levels(sizes, Upsample)

    def forward(self, latent: Float[Tensor, "b z h w"]) -> Float[Tensor, "b n H W"]:
        x = self.conv_in(latent)
        for part in (*self.mid, *self.conv_blocks):
            x = part(x)
        return self.ended(x)


@final
class LlamaGenNetwork(nn.Module):
    """A whole tokenizer; images are in [-1, 1] inside.

    Args:
        encoder: Sizes of its encoder.
        decoder: Sizes of its decoder.
        k: Codes.
        d: Numbers per code.
        unit: Whether latents and codes are brought to unit length, as in all released models.
    """

    def __init__(self, encoder: HalfSizes, decoder: HalfSizes, k: int, d: int, unit: bool = True) -> None:
        super().__init__()
        self.stride = 2 ** (len(decoder.widths) - 1)
        self.encoder, self.decoder = Encoder(encoder), Decoder(decoder)
        self.quant_conv = nn.Conv2d(encoder.outputs, d, 1)
        self.post_quant_conv = nn.Conv2d(d, decoder.inputs, 1)
        self.quantize = nn.ModuleDict({"embedding": UnitCodes(k, d) if unit else TableCodes(k, d)})

    @property
    def codes(self) -> UnitCodes | TableCodes:
        return self.quantize["embedding"]  # type: ignore[return-value]

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return 2 * pixels - 1

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents right before a code is chosen, not yet of unit length."""
        return self.quant_conv(self.encoder(images))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.decoder(self.post_quant_conv(embedded))

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return ((decoded + 1) / 2).clamp(0, 1)


def half_sizes(tensors: Mapping[str, Tensor], half: str, path: Path) -> HalfSizes:
    """Sizes of the encoder or the decoder from the shapes of a state dict.

    Args:
        tensors: The state dict.
        half: "encoder" or "decoder".
        path: Where it came from, for messages.
    Raises:
        ModelError: A key is missing, or a shape makes no sense.
    """
    levels = max(1, numbers_under(tensors, f"{half}.conv_blocks."))
    where = [f"{half}.conv_blocks.{level}." for level in range(levels)]
    widths = tuple(convolution(tensors, f"{one}res.0.conv1.weight", path)[0] for one in where)
    first, inputs = convolution(tensors, f"{half}.conv_in.weight", path)
    if odd := [width for width in (first, *widths) if width % GROUPS]:
        raise ModelError(
            f"{str(path)!r}: a level of the {half} has {odd[0]} channels, which cannot be normalised in {GROUPS} "
            "groups; LlamaGen's have multiples of 32: the file is of another family"
        )
    return HalfSizes(
        widths=widths,
        blocks=numbers_under(tensors, f"{where[0]}res."),
        attention=tuple(f"{one}attn.0.q.weight" in tensors for one in where),
        first=first,
        inputs=inputs,
        outputs=convolution(tensors, f"{half}.conv_out.weight", path)[0],
    )


def network_from(
    tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32, *, unit: bool = True
) -> LlamaGenNetwork:
    """A tokenizer from its state dict; all sizes come from the shapes.

    Args:
        tensors: The state dict.
        path: Where it came from, for messages.
        dtype: Number type the weights are brought to.
        unit: Whether codes are brought to unit length.
    Raises:
        ModelError: A tensor is absent, too many, of a wrong shape or not finite.
    """
    kept = without(tensors, _USAGE)
    shape = shape_of(kept, "quantize.embedding.weight", path)
    if len(shape) != 2 or 0 in shape:
        raise ModelError(
            f"{str(path)!r}: 'quantize.embedding.weight' has shape {shape} but codes by channels (k, d) were expected"
        )
    encoder, decoder = half_sizes(kept, "encoder", path), half_sizes(kept, "decoder", path)
    if len(encoder.widths) != len(decoder.widths) or (encoder.inputs, decoder.outputs) != (3, 3):
        raise ModelError(
            f"{str(path)!r}: the encoder has {len(encoder.widths)} levels from {encoder.inputs} channels and the "
            f"decoder {len(decoder.widths)} to {decoder.outputs}; both must have as many levels, and 3 channels: "
            "the file mixes two models"
        )
    with torch.device("meta"):
        network = LlamaGenNetwork(encoder, decoder, shape[0], shape[1], unit)
    fill(network, kept, path=path, dtype=dtype)
    return network


def open_llamagen(spec: Spec) -> Adapter:
    """Open "llamagen:FILE", "llamagen:FOLDER" or a hub id.

    Raises:
        ModelError: Its files are absent, altered, or of no such model.
        ConfigError: An option is wrong.
    """
    spec.check()
    place = locate_first(spec, ["vq_ds*.pt", "vq_ds*.safetensors"], ["model.safetensors", "config.json"])
    path, unit = place, True
    if place.is_dir():
        path, unit = _only_one(place), _is_unit(Files(place).config)
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path, keys=STATE_KEYS)
    return _adapter(network_from(tensors, path, spec.dtype(), unit=unit), spec)


def _weights_in(folder: Path) -> list[Path]:
    """The tokenizers in a folder; of a file and its safetensors twin, the twin."""
    for patterns in (("vq_ds*.pt", "vq_ds*.safetensors"), ("model.safetensors",), ("*.pt",)):
        if found := {one.stem: one for pattern in patterns for one in sorted(folder.glob(pattern))}:
            return list(found.values())
    return []


def _is_unit(config: Mapping[str, Any]) -> bool:
    """Whether codes are of unit length by a config.json, which may hold the arguments in a group of their own."""
    inner = config.get("config")
    return (inner if isinstance(inner, Mapping) else config).get("codebook_l2_norm", True) is not False


def _only_one(folder: Path) -> Path:
    found = _weights_in(folder)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(one.name for one in found)
        raise ModelError(f"{str(folder)!r} holds {len(found)} models: {names}; write llamagen:PATH/TO/{found[0].name}")
    seen = ", ".join(sorted(one.name for one in folder.iterdir())[:5]) or "nothing"
    raise ModelError(f"{str(folder)!r} holds no vq_ds*.pt and no model.safetensors, but {seen}; name the file")


def _adapter(network: LlamaGenNetwork, spec: Spec) -> NetworkAdapter:
    return NetworkAdapter(
        name=spec.text,
        family="llamagen",
        network=network,
        size=spec.size((RESOLUTION, RESOLUTION)),
        stride=network.stride,
        recognised=spec.recognised,
    )


def recognise_llamagen(files: Files) -> str | None:
    """Know a tokenizer by its keys, which no other family has."""
    tensors: Mapping[str, Tensor] = files.tensors
    if files.path.is_dir():
        found = _weights_in(files.path)
        try:
            tensors = Files(found[0], files.ignore).tensors if found else {}
        except ModelError:
            return None  # some other project's
    needed = ("encoder.conv_blocks.0.res.0.conv1", "decoder.conv_blocks.0.res.0.conv1", "quantize.embedding")
    if all(f"{name}.weight" in tensors for name in needed):
        return "the state dict has encoder.conv_blocks.N.res and quantize.embedding: LlamaGen's tokenizer"
    return None


LIVE = {"tokenizer.tokenizer_image.vq_model": ("VQModel",), "tokenizer.tokenizer_image.vq_model_hf": ("VQModelHF",)}


def wrap_llamagen(model: Any) -> Adapter | None:
    """A live tokenizer; it shares its weights with the adapter."""
    kind = type(model)
    if kind.__qualname__ not in LIVE.get(kind.__module__, ()):
        return None
    tensors, spec = model.state_dict(), live_spec(model, "llamagen")
    unit = bool(getattr(model.quantize, "l2_norm", True))
    return _adapter(network_from(tensors, Path(spec.text), dtype_of(tensors), unit=unit), spec)


FAMILY = Family(
    name="llamagen",
    title="LlamaGen's image tokenizer (VQ-16, VQ-8)",
    formats="a vq_ds*.pt or .safetensors file, a folder that holds one, or a hub id",
    abilities=(ENCODE, DECODE),
    open=open_llamagen,
    recognise=recognise_llamagen,
    wrap=wrap_llamagen,
)
