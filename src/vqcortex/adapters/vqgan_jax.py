"""DALL-E mini's VQGAN: taming's network in Flax, with pixels in [0, 1] where taming has [-1, 1].

The weights are those of a taming model, but the tokens that DALL-E mini was trained on come of the other range, so that
is the one used; `?pixels=signed` reads the same file the taming way.

Source:
    github.com/patil-suraj/vqgan-jax (modeling_flax_vqgan.py) and github.com/borisdayma/dalle-mini; the network is of
    Esser et al. 2021, arXiv:2012.09841. Until its pull request 10, of July 2022, vqgan-jax applied all attention blocks
    of a level after each residual block; here as there now, one after each, as they were trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.family import Family, Files, Spec
from vqcortex.adapters.hub import locate
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.official import recorded
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.adapters.taming import Decoder, Encoder, ModelSizes, is_vqgan, sizes_of
from vqcortex.checkpoints import fill, read_checkpoint
from vqcortex.errors import ConfigError, ModelError

SIDE = 256  # pixels of the images it was released for, where no config says it
WEIGHTS = "flax_model.msgpack"
# A segment of a Flax name that is an item of a list; in the middle the same names are attributes.
_ITEM = re.compile(r"(down|up|block|attn)_(\d+)")
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}


@final
class FlaxNetwork(nn.Module):
    """A whole VQGAN, behind the network protocol.

    Args:
        sizes: Those of a VQGAN of taming's layout.
        signed: Whether images are in [-1, 1] inside, instead of [0, 1].
    """

    def __init__(self, sizes: ModelSizes, signed: bool) -> None:
        super().__init__()
        self.sizes, self.signed = sizes, signed
        self.encoder, self.decoder = Encoder(sizes.encoder), Decoder(sizes.decoder)
        self.quant_conv = nn.Conv2d(sizes.encoder.z_channels, sizes.d, 1)
        self.post_quant_conv = nn.Conv2d(sizes.d, sizes.decoder.z_channels, 1)
        self.quantize = nn.ModuleDict({"embedding": TableCodes(sizes.k, sizes.d)})

    @property
    def codes(self) -> TableCodes:
        return self.quantize["embedding"]  # type: ignore[return-value]

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return 2 * pixels - 1 if self.signed else pixels

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents right before a code is chosen."""
        return self.quant_conv(self.encoder(images))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.decoder(self.post_quant_conv(embedded))

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return ((decoded + 1) / 2 if self.signed else decoded).clamp(0, 1)


def torch_names(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """A Flax tree as a torch state dict of taming's names; other things than tensors are left out.

    Lists are written out ("down_0" becomes "down.0", but "mid.block_1" stays), kernels turned from (rows, columns, in,
    out) to (out, in, rows, columns).
    """
    return {name: _turned(leaf, value) for name, leaf, value in _leaves(tree, ())}


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            is_item = _ITEM.fullmatch(str(key)) and above[-1:] != ("mid",)
            yield from _leaves(value, (*above, _ITEM.sub(r"\1.\2", key) if is_item else str(key)))
        elif isinstance(value, Tensor):
            yield ".".join((*above, _LEAVES.get(key, key))), key, value


def _turned(leaf: str, value: Tensor) -> Tensor:
    return value.permute(3, 2, 0, 1) if leaf == "kernel" and value.ndim == 4 else value


def build_network(
    tree: Mapping[str, Any], path: Path, *, signed: bool = False, dtype: torch.dtype = torch.float32
) -> FlaxNetwork:
    """A network with the weights of a Flax tree.

    Args:
        tree: Nested dicts of tensors.
        path: Where they came from, for messages.
        signed: As in `FlaxNetwork`.
        dtype: Of all weights.
    Raises:
        ModelError: Keys, shapes or numbers are not those of this family.
    """
    tensors = torch_names(tree.get("params", tree))
    with torch.device("meta"):
        network = FlaxNetwork(sizes_of(tensors, path), signed)
    fill(network, tensors, path=path, dtype=dtype)
    # As a buffer it is part of the identity: the same weights give other tokens.
    network.register_buffer("settings", recorded({"signed": signed}))
    return network


def read_config(path: Path) -> dict[str, Any]:
    """The config.json beside the weights; empty if there is none.

    Raises:
        ModelError: It is not JSON.
    """
    try:
        value = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"config {str(path)!r} is not JSON ({error}); restore it from where the model came from"
        ) from error
    return value if isinstance(value, dict) else {}


def check_config(config: Mapping[str, Any], sizes: ModelSizes, path: Path) -> None:
    """Return quietly if a config and the weights are of one model; what it does not say is not checked.

    Raises:
        ModelError: They are not.
    """
    for name, found in (
        ("ch", sizes.encoder.ch),
        ("ch_mult", [width // (sizes.encoder.ch or 1) for width in sizes.decoder.widths]),
        ("num_res_blocks", sizes.decoder.blocks),
        ("z_channels", sizes.decoder.z_channels),
        ("embed_dim", sizes.d),
        ("n_embed", sizes.k),
    ):
        wanted = config.get(name, found)
        if wanted != found:
            raise ModelError(
                f"config {str(path)!r} says {name}={wanted} but the checkpoint's shapes make it {found}; "
                "it is of another model: take the config that came with the checkpoint"
            )


def open_vqgan_jax(spec: Spec) -> Adapter:
    """Open "vqgan-jax:FOLDER", "vqgan-jax:FILE.msgpack", or "vqgan-jax:dalle-mini/vqgan_imagenet_f16_16384".

    Raises:
        ModelError: There is no flax_model.msgpack, it is broken, or its config is of another model.
        ConfigError: An option is wrong.
        MissingExtra: msgpack is not installed.
    """
    spec.check("pixels")
    pixels = spec.options.get("pixels", "unit")
    if pixels not in ("unit", "signed"):
        raise ConfigError(
            f"pixels={pixels!r} of model {spec.text!r} is unknown; known: unit ([0, 1], as DALL-E mini has them), "
            "signed ([-1, 1], the taming way)"
        )
    place = locate(spec, WEIGHTS, "config.json")
    path = place / WEIGHTS if place.is_dir() else place
    if not path.is_file():
        raise ModelError(f"{str(place)!r} holds no {WEIGHTS}; name the folder or the file that has the weights")
    tree = read_checkpoint(path, ignore=spec.ignore)
    if not isinstance(tree, Mapping):
        raise ModelError(
            f"checkpoint {str(path)!r} holds {type(tree).__name__} and no tree of tensors; name another file"
        )
    network = build_network(tree, path, signed=pixels == "signed", dtype=spec.dtype())
    config = read_config(path.with_name("config.json"))
    check_config(config, network.sizes, path.with_name("config.json"))
    return _adapter(network, config.get("resolution"), spec)


def _adapter(network: FlaxNetwork, resolution: Any, spec: Spec) -> Adapter:
    stride = network.sizes.decoder.stride
    side = resolution if isinstance(resolution, int) and resolution > 0 else SIDE
    return NetworkAdapter(
        name=spec.text,
        family="vqgan-jax",
        network=network,
        size=spec.size((side, side)),
        stride=stride,
        recognised=spec.recognised,
    )


def recognise(files: Files) -> str | None:
    """By a Flax file whose config, or whose keys, are a VQGAN's. The config's own model_type says nothing."""
    if files.path.is_dir():
        is_there = (files.path / WEIGHTS).is_file() and {"ch_mult", "n_embed", "z_channels"} <= set(files.config)
        return f"{WEIGHTS} with ch_mult, n_embed and z_channels in config.json: a VQGAN in Flax" if is_there else None
    tree = files.checkpoint if files.path.suffix == ".msgpack" else None
    if isinstance(tree, Mapping) and is_vqgan(torch_names(tree.get("params", tree))):
        return "a Flax tree with taming's encoder, quant_conv and quantize: a VQGAN in Flax"
    return None


def wrap(model: Any) -> Adapter | None:
    """A live model of vqgan-jax; its weights are copied out of JAX."""
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if kind != "vqgan_jax.modeling_flax_vqgan.VQModel":
        return None
    network = build_network(_from_arrays(model.params), Path(kind))
    spec = Spec(text=f"live:{type(model).__qualname__}", family="vqgan-jax", place="")
    return _adapter(network, getattr(model.config, "resolution", None), spec)


def _from_arrays(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of arrays as a tree of tensors; numpy is what both sides speak."""
    import numpy as np

    return {
        key: _from_arrays(value) if isinstance(value, Mapping) else torch.from_numpy(np.array(value, dtype=np.float32))
        for key, value in tree.items()
    }


FAMILY = Family(
    name="vqgan-jax",
    title="VQGAN in Flax (DALL-E mini)",
    formats="folder with flax_model.msgpack and config.json; ?pixels=signed",
    abilities=(ENCODE, DECODE),
    open=open_vqgan_jax,
    recognise=recognise,
    wrap=wrap,
)
