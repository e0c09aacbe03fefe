"""The image half of min-dalle: the decoder of the VQGAN that DALL-E mini and mega draw with.

`detoker.pt` has no encoder, so images cannot be turned into tokens; the family "vqgan-jax" opens the whole model. With
?prompts=TABLE the other half joins in, see `vqcortex.adapters.dalle_mini`.

Source:
    github.com/kuprel/min-dalle (min_dalle/models/vqgan_detokenizer.py), a port of the decoder of Esser et al. 2021,
    arXiv:2012.09841. It normalises with an epsilon of 1e-5 where the original has 1e-6, and takes what comes
    out for pixels in [0, 1] where the original has [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.family import Family, Files, Spec, file_in, table_shape
from vqcortex.adapters.hub import locate_first
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, GENERATE, Adapter
from vqcortex.adapters.taming import Decoder, Sizes, convolution, decoder_sizes, dtype_of, live_spec
from vqcortex.checkpoints import fill, read_checkpoint, state_dict_of
from vqcortex.errors import ConfigError, ModelError

SIDE = 256  # pixels of the images it was released for
EPSILON = 1e-5
PLACES = ("vqgan/detoker.pt", "detoker.pt")
TABLE = "embedding.weight"


@final
class DetokerNetwork(nn.Module):
    """Table and decoder, behind the network protocol.

    Args:
        sizes: Those of the decoder.
        k: Codes.
        d: Numbers per code.
    """

    def __init__(self, sizes: Sizes, k: int, d: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = TableCodes(k, d)
        self.post_quant_conv = nn.Conv2d(d, sizes.z_channels, 1)
        self.decoder = Decoder(sizes)

    @property
    def codes(self) -> TableCodes:
        return self.embedding

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return pixels

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        raise ModelError("min-dalle's files hold no encoder; open the whole model with vqgan-jax: to encode images")

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.decoder(self.post_quant_conv(embedded))

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return decoded.clamp(0, 1)


def is_detoker(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the keys of a decoder and a table, and none of an encoder."""
    needed = (TABLE, "post_quant_conv.weight", "decoder.conv_in.weight", "decoder.mid.attn_1.q.weight")
    return all(key in tensors for key in needed) and not any(key.startswith("encoder.") for key in tensors)


def build_detoker(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> DetokerNetwork:
    """A network with the weights of a state dict.

    Raises:
        ModelError: Keys, shapes or numbers are not those of this family.
    """
    table = table_shape(tensors, TABLE, path, d=convolution(tensors, "post_quant_conv.weight", path)[1])
    sizes = replace(decoder_sizes(tensors, path), epsilon=EPSILON)
    with torch.device("meta"):
        network = DetokerNetwork(sizes, *table)
    fill(network, tensors, path=path, dtype=dtype)
    return network


def open_min_dalle(spec: Spec) -> Adapter:
    """Open "min-dalle:FILE", "min-dalle:FOLDER", "min-dalle:kuprel/min-dalle", or "min-dalle:FOLDER?prompts=TABLE".

    Raises:
        ModelError: There is no detoker.pt in the folder, or it is broken; with prompts, likewise for the transformer.
        MissingExtra: With prompts, and the min-dalle package is not installed.
        ConfigError: An option is wrong.
        DataError: The table of prompts cannot be read.
    """
    from vqcortex.adapters.dalle_mini import OPTIONS, drawing

    spec.check(*OPTIONS)
    place = locate_first(spec, *((one,) for one in PLACES))
    path = file_in(place, *PLACES)
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    first = _adapter(build_detoker(tensors, path, spec.dtype()), spec)
    if "prompts" in spec.options:
        return drawing(first, spec, place)
    if idle := sorted(set(OPTIONS) & set(spec.options)):
        raise ConfigError(f"{idle[0]}= of model {spec.text!r} says how to draw; say what with ?prompts=TABLE as well")
    return first


def _adapter(network: DetokerNetwork, spec: Spec) -> NetworkAdapter:
    return NetworkAdapter(
        name=spec.text,
        family="min-dalle",
        network=network,
        size=spec.size((SIDE, SIDE)),
        stride=network.sizes.stride,
        recognised=spec.recognised,
    )


def recognise(files: Files) -> str | None:
    """By a decoder with a table and no encoder."""
    tensors: Mapping[str, Tensor] = files.tensors
    if files.path.is_dir():
        path = files.find(*PLACES)
        tensors = {} if path is None else Files(path, files.ignore).tensors
    return f"the state dict has {TABLE}, a decoder and no encoder: min-dalle" if is_detoker(tensors) else None


LIVE = {"min_dalle.models.vqgan_detokenizer": ("VQGanDetokenizer",)}


def wrap(model: Any) -> Adapter | None:
    """A live detokenizer of min-dalle; its weights are shared, not copied."""
    kind = type(model)
    if kind.__qualname__ not in LIVE.get(kind.__module__, ()):
        return None
    tensors, spec = model.state_dict(), live_spec(model, "min-dalle")
    return _adapter(build_detoker(tensors, Path(spec.text), dtype_of(tensors)), spec)


FAMILY = Family(
    name="min-dalle",
    title="min-dalle's VQGAN decoder (DALL-E mini and mega)",
    formats="detoker.pt, or a folder with it or with vqgan/detoker.pt; with dalle_bart_mini/ or _mega/ beside it "
    "and the min-dalle package, ?prompts=TABLE",
    abilities=(DECODE, GENERATE),
    open=open_min_dalle,
    recognise=recognise,
    wrap=wrap,
)
