"""Adapters around a library's own class beside the library's own calls: what the adapter adds to encode and decode.

Weights are random. The codebook holds latents of other images, so that codes are as far apart as training leaves them:
with the library's first codebook, a thousandth as wide as the latents, every choice of a code would be in doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from common import Comparison, in_turns
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters import load_model
from vqcortex.adapters.network import NetworkAdapter

WITHIN = 1 / 1.05  # a twentieth slower at most


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the problem.

    Args:
        images: In a batch.
        side: Height and width of an image, in pixels.
        widths: Channels of every level.
        k: Codes.
    """

    images: int = 4
    side: int = 64
    widths: tuple[int, ...] = (128, 256)
    k: int = 8_192


FULL = Sizes()
SMALL = Sizes(images=2, side=16, widths=(32, 64), k=64)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model, ours and the library's calls on the same module.

    Args:
        name: Of the model.
        ours: The adapter.
        encode: The library's way from images in [0, 1] to tokens.
        decode: The library's way from tokens to images in [0, 1].
    """

    name: str
    ours: NetworkAdapter
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def images_of(sizes: Sizes, seed: int) -> Tensor:
    """Smooth random images with a little noise, (b, 3, side, side)."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(sizes.images, 3, 4, 4, generator=rng)
    smooth = F.interpolate(coarse, size=(sizes.side, sizes.side), mode="bilinear")
    return (smooth + 0.1 * torch.rand(smooth.shape, generator=rng)).clamp(0, 1)


def diffusers_case(sizes: Sizes) -> Case:
    """diffusers VQModel: latents, quantized; and codes, decoded without being quantized again."""
    from diffusers import VQModel

    torch.manual_seed(0)
    levels = len(sizes.widths)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    model = VQModel(
        **blocks, block_out_channels=sizes.widths, layers_per_block=2, num_vq_embeddings=sizes.k, sample_size=sizes.side
    ).eval()

    def encode(pixels: Tensor) -> Tensor:
        latents = model.encode(2 * pixels - 1).latents
        return model.quantize(latents)[2][2].view(len(latents), *latents.shape[2:])

    def decode(tokens: Tensor) -> Tensor:
        codes = model.quantize.get_codebook_entry(tokens.flatten(), (*tokens.shape, 3))
        return (model.decode(codes, force_not_quantize=True).sample / 2 + 0.5).clamp(0, 1)

    return Case(name="diffusers VQModel", ours=_spread_out(model, sizes), encode=encode, decode=decode)


def janus_case(sizes: Sizes) -> Case:
    """transformers JanusVQVAE."""
    from transformers import JanusVQVAE, JanusVQVAEConfig

    torch.manual_seed(0)
    levels = [width // sizes.widths[0] for width in sizes.widths]
    patches = sizes.side // 2 ** (len(levels) - 1)
    config = JanusVQVAEConfig(
        base_channels=sizes.widths[0], channel_multiplier=levels, num_embeddings=sizes.k, num_patches=patches
    )
    model = JanusVQVAE(config).eval()

    def encode(pixels: Tensor) -> Tensor:
        return model.encode(2 * pixels - 1).image_tokens.view(len(pixels), patches, patches)

    def decode(tokens: Tensor) -> Tensor:
        return (model.decode(tokens.flatten(1)) / 2 + 0.5).clamp(0, 1)

    return Case(name="transformers JanusVQVAE", ours=_spread_out(model, sizes), encode=encode, decode=decode)


CASES: tuple[Callable[[Sizes], Case], ...] = (diffusers_case, janus_case)


@torch.no_grad()
def _spread_out(model: Any, sizes: Sizes) -> NetworkAdapter:
    """The adapter, after latents of other images became the codes."""
    ours = load_model(model)
    assert isinstance(ours, NetworkAdapter)
    network: Any = ours.network
    table, seed = model.quantize.embedding.weight, 1
    found: list[Tensor] = []
    while sum(map(len, found)) < len(table):
        latents = network.encode(network.prepare(images_of(sizes, seed)))
        found.append(latents.movedim(1, -1).flatten(0, -2))
        seed += 1
    every = torch.cat(found)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    table.copy_(every[order[: len(table)]])
    return ours


@torch.no_grad()
def doubtful(ours: NetworkAdapter, pixels: Tensor) -> Tensor:
    """Which positions of a batch have a token that rounding could have turned, (b, h, w)."""
    return ours.network.choose(ours.network.prepare(pixels)).doubtful


@torch.no_grad()
def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file."""
    return [one for case in CASES for one in compared(case(sizes), sizes, repeats)]


def compared(case: Case, sizes: Sizes, repeats: int) -> list[Comparison]:
    """Encode and decode of one model."""
    pixels, ours = images_of(sizes, 0), case.ours
    tokens = case.encode(pixels)
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: ours.encode(pixels),
        "once": lambda: ours.network.choose(ours.network.prepare(pixels)),
        "their encode": lambda: case.encode(pixels),
        "decode": lambda: ours.decode(ours.embed(tokens)),
        "their decode": lambda: case.decode(tokens),
    }
    for work in works.values():
        work()
    found = {name: one.times(1000 / sizes.images) for name, one in in_turns(works, repeats).items()}
    unsure = doubtful(ours, pixels)
    note = (
        f"images are encoded one by one on a CPU, since a batch could turn the {int(unsure.sum())} of {unsure.numel()} "
        "tokens here that rounding leaves in doubt"
    )
    shape = f"{case.name}, {sizes.images} images of {sizes.side} px, widths {'-'.join(map(str, sizes.widths))}"
    rows = (
        ("tokens to pixels", "decode", "their decode", WITHIN, ""),
        ("pixels to tokens", "encode", "their encode", WITHIN, note),
        ("pixels to tokens, all images at once", "once", "their encode", None, ""),
    )
    return [
        Comparison(
            work=f"{work}, {shape}, per image",
            rival=f"the library's own calls, {case.name}" if more else "the library's own calls",
            unit="ms",
            ours=found[mine],
            theirs=found[theirs],
            at_least=at_least,
            note=more,
        )
        for work, mine, theirs, at_least, more in rows
    ]
