"""Chameleon's image tokenizer, as transformers has it: an encoder without a decoder.

Source:
    github.com/huggingface/transformers, models/chameleon: modeling_chameleon.py (ChameleonVQVAE) and the image
    processor, which multiplies 0..255 by 0.0078 and takes 1 off, so that white is 0.989 and not 1.
"""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.official import HfKind, PixelRange, codes_of
from vqcortex.adapters.protocol import DECODE, ENCODE, check_ability


@final
class ChameleonNetwork(nn.Module):
    """A ChameleonVQVAE behind the protocol of networks.

    Args:
        model: The library's module, used as it is.
        pixels: Its range of pixels.
    """

    def __init__(self, model: Any, pixels: PixelRange) -> None:
        super().__init__()
        self.model, self.pixels = model, pixels
        self.codes = codes_of(model.quantize.embedding.weight, TableCodes)
        self.abilities = frozenset({ENCODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.enter(pixels)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents before they are quantized."""
        return self.model.quant_conv(self.model.encoder(images))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def post_quant(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n h w"]:
        """What Chameleon's own decoder, which transformers leaves out, would be fed."""
        return self.model.post_quant_conv(embedded)

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        check_ability("Chameleon", self.abilities, DECODE, "use a model with a decoder to see pictures")
        raise AssertionError("check_ability raises")

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.leave(decoded)


KIND = HfKind(
    name="Chameleon",
    whole="chameleon",
    part="chameleon_vqgan",
    model="ChameleonVQVAE",
    config="ChameleonVQVAEConfig",
    whole_config="ChameleonConfig",
    network=ChameleonNetwork,
    pixels=lambda: PixelRange((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 255 * 0.0078),
    reads_range=True,
    side=lambda config: config.resolution,
    left_out=("decoder.", "loss."),
)
