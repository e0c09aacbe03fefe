"""Janus' image tokenizer, as transformers has it: it compares codes as stored and decodes them at unit length.

Where codes are stored at unit length, that is the rule of the angle which the models were trained by. The library
decodes only the grid that the config names (`num_patches`); the network itself takes any, and so does this file.

Source:
    github.com/huggingface/transformers, models/janus/modeling_janus.py (JanusVQVAE); the range [-1, 1] is that of
    deepseek-ai/Janus, generation_inference.py. A repository's image preprocessor is the one of the other tower, which
    understands images, so it is not read.
"""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, UnitCodes, nearest_rows
from vqcortex.adapters.official import SIGNED, HfKind, PixelRange, codes_of
from vqcortex.adapters.protocol import DECODE, ENCODE


@final
class JanusNetwork(nn.Module):
    """A JanusVQVAE behind the protocol of networks.

    Args:
        model: The library's module, used as it is.
        pixels: Its range of pixels.
    """

    def __init__(self, model: Any, pixels: PixelRange) -> None:
        super().__init__()
        self.model, self.pixels = model, pixels
        self.codes = codes_of(model.quantize.embedding.weight, UnitCodes)
        self.abilities = frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.enter(pixels)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents before they are quantized."""
        return self.model.quant_conv(self.model.encoder(images))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return nearest_rows(self.encode(images), self.codes.weight)

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.model.decoder(self.model.post_quant_conv(embedded))

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.leave(decoded)


KIND = HfKind(
    name="Janus",
    whole="janus",
    part="janus_vqgan",
    model="JanusVQVAE",
    config="JanusVQVAEConfig",
    whole_config="JanusConfig",
    network=JanusNetwork,
    pixels=lambda: PixelRange(SIGNED, SIGNED),
    reads_range=False,
    side=lambda config: config.num_patches * 2 ** (len(config.channel_multiplier) - 1),
)
