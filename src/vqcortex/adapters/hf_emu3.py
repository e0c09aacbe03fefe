"""Emu3's image and video tokenizer, as transformers has it, used for single images.

An image is a clip of as many equal frames as one latent frame covers; of the decoded clip, frame 0 is the image.

Source:
    github.com/huggingface/transformers, models/emu3/modeling_emu3.py (Emu3VQVAE).
"""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.official import HfKind, PixelRange, codes_of, recorded
from vqcortex.adapters.protocol import DECODE, ENCODE

CLIP_MEAN, CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENS_A_SIDE = 64  # of the smallest images that Emu3's own processor makes, 512 pixels


@final
class Emu3Network(nn.Module):
    """An Emu3VQVAE behind the protocol of networks.

    Args:
        model: The library's module, used as it is.
        pixels: Its range of pixels.
    """

    def __init__(self, model: Any, pixels: PixelRange) -> None:
        super().__init__()
        self.model, self.pixels = model, pixels
        self.codes = codes_of(model.quantize.embedding.weight, TableCodes)
        self.abilities = frozenset({ENCODE, DECODE})
        self._frames: int = model.config.temporal_downsample_factor
        # The number of heads does not change the shape of any weight.
        self.register_buffer("settings", recorded({"heads": model.config.num_attention_heads}))

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.enter(pixels)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents of the one latent frame before they are quantized."""
        clip = images[:, None].expand(-1, self._frames, -1, -1, -1)
        latents = self.model.encoder(clip)  # b t n h w
        return self.model.quant_conv(latents.transpose(1, 2))[:, :, 0]

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        codes = embedded[:, :, None]  # b d t h w
        # The codes themselves modulate the decoder's norms, in every frame.
        frames = self.model.decoder(self.model.post_quant_conv(codes).transpose(1, 2), codes.transpose(1, 2))
        return frames.unflatten(0, (len(embedded), self._frames))[:, 0]

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.leave(decoded)


KIND = HfKind(
    name="Emu3",
    whole="emu3",
    part="emu3_vqgan",
    model="Emu3VQVAE",
    config="Emu3VQVAEConfig",
    whole_config="Emu3Config",
    network=Emu3Network,
    pixels=lambda: PixelRange(CLIP_MEAN, CLIP_SPREAD),
    reads_range=True,
    side=lambda config: TOKENS_A_SIDE * 2 ** (len(config.channel_multiplier) - 1),
)
