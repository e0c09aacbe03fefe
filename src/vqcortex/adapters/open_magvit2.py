"""Open-MAGVIT2's look-up free tokenizer, and the IBQ tokenizers of the same project.

Open-MAGVIT2: a token is the signs of a latent's channels, so there is no table; its decoder is normalised by the mean
and the spread of the whole code map, so that one token changes the whole image a little.

IBQ: a VQGAN of taming's layout whose token is the code with the largest dot product, not the nearest one. Its forward
path is checked against a slow twin, not against a released model.

Checkpoints of both hold the weights twice: as trained, and averaged over training under `model_ema.`, with the dots of
their names removed. The project evaluates with the averaged ones, so these are used; `?weights=raw` takes the others.

Source:
    Luo et al. 2024, arXiv:2409.04410; Shi et al. 2024, arXiv:2412.02692; github.com/TencentARC/SEED-Voken
    (src/Open_MAGVIT2/modules/diffusionmodules/improved_model.py, src/IBQ/modules/vqvae/quantize.py).
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

from vqcortex.adapters import taming
from vqcortex.adapters.codes import ROUNDING, Choice, LatticeCodes, TableCodes
from vqcortex.adapters.family import Family, Files, Spec, expanded
from vqcortex.adapters.hub import locate
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.adapters.taming import GROUPS, Config, convolution, dtype_of, live_spec, numbers_under
from vqcortex.checkpoints import fill, read_checkpoint, state_dict_of, under, without
from vqcortex.errors import ConfigError, ModelError, ShapeError

EPSILON = 1e-6
TOKENS = 16  # a side, for the images that the models were released for: 256 pixels at f16, 128 at f8
EMA = "model_ema."
# What the averaging keeps beside the weights.
_BOOKKEEPING = ("decay", "num_updates")
# Ends of the classes' full names, which begin with "src.", "taming.models." or "OpenImageTokenizer.".
CLASSES = (".lfqgan.VQModel", ".lfqgan_pretrain.VQModel", ".ibqgan.IBQ", ".ibqgan_pretrain.IBQ")
_KEYS = ("encoder.mid_block.0.conv1.weight", "decoder.adaptive.0.gamma.weight")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the look-up free network, as the tensors have them.

    Args:
        first: Channels after the encoder's first convolution.
        widths: Channels of each level, full resolution first.
        blocks: Residual blocks per level, and in the middle.
        bits: Channels of the latent: a token has so many binary digits.
    """

    first: int
    widths: tuple[int, ...]
    blocks: int
    bits: int

    @property
    def stride(self) -> int:
        """Pixels per token side."""
        return int(2 ** (len(self.widths) - 1))


class Block(nn.Module):
    """Two convolutions without bias, each after a normalisation and a swish; 1x1 shortcut where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, before, eps=EPSILON)
        self.norm2 = nn.GroupNorm(GROUPS, after, eps=EPSILON)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else None

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n p q"]:
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        return branch + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class DepthToSpace(nn.Module):
    """Twice the resolution by a convolution to four times the channels, which become 2x2 pixels.

    The row and column of the pixel are the slow part of the channel number, not the fast one as in a pixel shuffle.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b m r s"]:
        b, m, p, q = x.shape
        spread = self.conv1(x).view(b, 2, 2, m, p, q).permute(0, 3, 4, 1, 5, 2)
        return spread.reshape(b, m, 2 * p, 2 * q)


class AdaptiveNorm(nn.Module):
    """A normalisation whose scale comes from the spread of the code map, and whose shift from its mean."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Linear(bits, width), nn.Linear(bits, width)

    def forward(self, x: Float[Tensor, "b m p q"], codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b m p q"]:
        flat = codes.flatten(2)
        scale = self.gamma((flat.var(-1) + EPSILON).sqrt())[:, :, None, None]
        shift = self.beta(flat.mean(-1))[:, :, None, None]
        return scale * F.group_norm(x, GROUPS, eps=EPSILON) + shift


def _level(before: int, after: int, blocks: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"block": nn.ModuleList(Block(before if place == 0 else after, after) for place in range(blocks))}
    )


def _through(level: nn.Module, x: Tensor) -> Tensor:
    for block in level["block"]:  # type: ignore[index]
        x = block(x)
    return x


@final
class Encoder(nn.Module):
    """Images to latents; `down[0]` is full resolution."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, sizes.first, 3, padding=1, bias=False)
        before = (sizes.first, *sizes.widths[:-1])
        self.down = nn.ModuleList(_level(a, b, sizes.blocks) for a, b in zip(before, sizes.widths, strict=True))
        for level, width in zip(self.down[:-1], sizes.widths[:-1], strict=True):
            level["downsample"] = nn.Conv2d(width, width, 3, stride=2, padding=1)  # type: ignore[operator]
        last = sizes.widths[-1]
        self.mid_block = nn.ModuleList(Block(last, last) for _ in range(sizes.blocks))
        self.norm_out = nn.GroupNorm(GROUPS, last, eps=EPSILON)
        self.conv_out = nn.Conv2d(last, sizes.bits, 1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        x = self.conv_in(images)
        for number, level in enumerate(self.down, 1):
            x = _through(level, x)
            x = level["downsample"](x) if number < len(self.down) else x  # type: ignore[index]
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


@final
class Decoder(nn.Module):
    """Codes to images; `up[0]` is full resolution and runs last."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        last = sizes.widths[-1]
        self.conv_in = nn.Conv2d(sizes.bits, last, 3, padding=1)
        self.mid_block = nn.ModuleList(Block(last, last) for _ in range(sizes.blocks))
        before = (*sizes.widths[1:], last)
        self.up = nn.ModuleList(_level(a, b, sizes.blocks) for a, b in zip(before, sizes.widths, strict=True))
        for level, width in zip(self.up[1:], sizes.widths[1:], strict=True):
            level["upsample"] = DepthToSpace(width)  # type: ignore[operator]
        self.adaptive = nn.ModuleList(AdaptiveNorm(sizes.bits, width) for width in before)
        self.norm_out = nn.GroupNorm(GROUPS, sizes.widths[0], eps=EPSILON)
        self.conv_out = nn.Conv2d(sizes.widths[0], 3, 3, padding=1)

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        x = self.conv_in(codes)
        for block in self.mid_block:
            x = block(x)
        for number in reversed(range(len(self.up))):
            x = _through(self.up[number], self.adaptive[number](x, codes))
            x = self.up[number]["upsample"](x) if number else x  # type: ignore[index]
        return self.conv_out(F.silu(self.norm_out(x)))


@final
class LookupFreeNetwork(nn.Module):
    """Open-MAGVIT2, behind the network protocol; images are in [-1, 1] inside.

    Channel 0 is the least significant digit of a token; a channel of exactly zero counts as -1.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.codes = LatticeCodes([(-1.0, 1.0)] * sizes.bits)

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return 2 * pixels - 1

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents right before a code is chosen."""
        return self.encoder(images)

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        if embedded.shape[2] * embedded.shape[3] < 2:
            raise ShapeError(
                "a code map of 1x1 has no spread, by which Open-MAGVIT2's decoder is normalised; "
                "decode at least 2 tokens an image"
            )
        return self.decoder(embedded)

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return ((decoded + 1) / 2).clamp(0, 1)


@final
class IndexNetwork(nn.Module):
    """IBQ, behind the network protocol; images are in [-1, 1] inside.

    Args:
        sizes: Those of a VQGAN of taming's layout.
    """

    def __init__(self, sizes: taming.ModelSizes) -> None:
        super().__init__()
        self.sizes = sizes.decoder
        self.encoder, self.decoder = taming.Encoder(sizes.encoder), taming.Decoder(sizes.decoder)
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
        return 2 * pixels - 1

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents right before a code is chosen."""
        return self.quant_conv(self.encoder(images))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return largest_products(self.encode(images), self.codes.weight)

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.decoder(self.post_quant_conv(embedded))

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return ((decoded + 1) / 2).clamp(0, 1)


def largest_products(latents: Float[Tensor, "b d h w"], table: Float[Tensor, "k d"]) -> Choice:
    """The row of a table with the largest dot product with each vector, the lower index in a tie.

    The scores of all codes are never held at once: a released table has 262,144 rows.
    """
    b, d, h, w = latents.shape
    flat = latents.permute(0, 2, 3, 1).reshape(-1, d)
    tokens, doubtful = [], []
    for piece in flat.split(max(1, 2**24 // len(table))):
        products = piece @ table.T
        best, chosen = products.max(1)
        rest = products.scatter(1, chosen[:, None], -torch.inf)
        second, other = rest.max(1)
        # Moving x by e turns the gap by at most e·|c1 - c2|; the products themselves are rounded as well.
        turn = 2 * piece.norm(dim=1) * (table[chosen].norm(dim=1) + table[other].norm(dim=1))
        tokens.append(chosen)
        doubtful.append(best - second <= ROUNDING * turn)
    return Choice(torch.cat(tokens).view(b, h, w), torch.cat(doubtful).view(b, h, w))


def chosen_weights(tensors: Mapping[str, Tensor], which: str, path: Path) -> dict[str, Tensor]:
    """The weights to decode with, under their full names.

    Args:
        tensors: A checkpoint's whole state dict.
        which: "ema" for the averaged ones, "raw" for those as trained; "" for the averaged ones if there are any.
        path: Where it came from, for messages.
    Raises:
        ModelError: The averaged ones were asked for and there are none.
    """
    raw, averaged = without(tensors, "loss.", EMA), under(tensors, EMA)
    if which == "raw" or not (which or averaged):
        return raw
    if not averaged:
        raise ModelError(
            f"checkpoint {str(path)!r} has no averaged weights, whose keys would begin with {EMA!r}; "
            "open it with ?weights=raw"
        )
    names = {name.replace(".", ""): name for name in raw}
    return {
        names.get(name, f"{EMA}{name}"): tensor
        for name, tensor in averaged.items()
        if name not in _BOOKKEEPING and not name.startswith("loss")
    }


def sizes_of(tensors: Mapping[str, Tensor], path: Path) -> Sizes:
    """Sizes of the look-up free network from the shapes of its state dict.

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
    return Sizes(
        first=convolution(tensors, "encoder.conv_in.weight", path)[0],
        widths=widths,
        blocks=numbers_under(tensors, "encoder.down.0.block."),
        bits=convolution(tensors, "encoder.conv_out.weight", path)[0],
    )


def build_network(
    tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32
) -> LookupFreeNetwork | IndexNetwork:
    """A network with the weights of a state dict, IBQ's if it has a table of codes.

    Args:
        tensors: As `chosen_weights` gives them.
        path: Where they came from, for messages.
        dtype: Of all weights.
    Raises:
        ModelError: Keys, shapes or numbers are of neither.
    """
    network: LookupFreeNetwork | IndexNetwork
    with torch.device("meta"):
        if "quantize.embedding.weight" in tensors:
            network = IndexNetwork(taming.sizes_of(tensors, path))
        else:
            network = LookupFreeNetwork(sizes_of(tensors, path))
    # The lattice has nothing on disk, but something in the module that says where it lives.
    absent = {f"codes.{name}": torch.empty(one.shape) for name, one in network.codes.state_dict().items()}
    held = absent if isinstance(network, LookupFreeNetwork) else {}
    fill(network, {**tensors, **held}, path=path, dtype=dtype)
    return network


def read_config(path: Path) -> Config | None:
    """The config of a tokenizer of this project; None if the file is of something else."""
    found = taming.read_config(path)
    if found is None or "class_path" not in found.model:
        return None
    said = found.model
    config = Config(path=path, model={"target": said["class_path"], "params": said.get("init_args")})
    return config if is_ours(config) else None


def is_ours(config: Config) -> bool:
    """Whether a config names one of the two tokenizers' classes."""
    return config.target.endswith(CLASSES)


def configs_in(folder: Path) -> list[Config]:
    """All configs of this project in a folder and its configs/."""
    paths = sorted([*folder.glob("*.yaml"), *folder.glob("configs/*.yaml")])
    return [found for path in paths if (found := read_config(path)) is not None]


def check_config(config: Config, network: LookupFreeNetwork | IndexNetwork) -> None:
    """Return quietly if a config and the weights are of one model.

    Raises:
        ModelError: They are not.
    """
    said = config.settings("ddconfig")
    is_table = isinstance(network, IndexNetwork)
    if config.target.endswith("IBQ") != is_table:
        held = "a table of codes, as IBQ" if is_table else "no table of codes, as Open-MAGVIT2"
        raise ModelError(
            f"config {str(config.path)!r} is for {config.target} but the checkpoint has {held}; "
            "take the config that came with it"
        )
    blocks, ch = network.sizes.blocks, config.number(said, "ch")
    for name, wanted, found in (
        ("ch * ch_mult", tuple(ch * one for one in config.numbers(said, "ch_mult")), network.sizes.widths),
        ("num_res_blocks", config.number(said, "num_res_blocks"), blocks),
        ("embed_dim", config.number(config.params, "embed_dim"), network.codes.d),
        ("n_embed", config.number(config.params, "n_embed"), network.codes.k),
    ):
        if wanted != found:
            raise ModelError(
                f"config {str(config.path)!r} says {name}={wanted} but the checkpoint's shapes make it {found}; "
                "it is of another model: take the config that came with the checkpoint"
            )


def weights_in(folder: Path) -> Path | None:
    """The checkpoint of a folder: last.ckpt, else the last by name; None if there is none."""
    found = [one for name in ("checkpoints", "ckpts", ".") for one in (folder / name).glob("*.ckpt")]
    found += list(folder.glob("*.safetensors"))
    return max(found, key=lambda one: (one.stem == "last", one.name), default=None)


def open_magvit2(spec: Spec) -> Adapter:
    """Open "open-magvit2:FILE", "open-magvit2:FOLDER" or a hub id.

    Raises:
        ModelError: There is no checkpoint, it is broken, or its config is of another model.
        ConfigError: An option is wrong.
    """
    spec.check("weights", "config")
    which = spec.options.get("weights", "")
    if which not in ("", "ema", "raw"):
        raise ConfigError(f"weights={which!r} of model {spec.text!r} is unknown; known: ema, raw")
    place = locate(spec, "*.ckpt", "*.safetensors", "*.yaml")
    path = weights_in(place) if place.is_dir() else place
    if path is None:
        raise ModelError(f"{str(place)!r} holds no .ckpt or .safetensors file; name the checkpoint")
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    network = build_network(chosen_weights(tensors, which, path), path, spec.dtype())
    config = _config_for(spec, place, path)
    if config is not None:
        check_config(config, network)
    return _adapter(network, config, spec)


def _config_for(spec: Spec, place: Path, path: Path) -> Config | None:
    """The config that was named, else that of the folder, else the one beside the checkpoint if it is the only one."""
    if "config" in spec.options:
        named = expanded(spec.options["config"])
        config = read_config(named)
        if config is None:
            raise ModelError(
                f"config {str(named)!r} has no model.class_path of an Open-MAGVIT2 or IBQ tokenizer; "
                "name the project's own"
            )
        return config
    found = configs_in(place if place.is_dir() else path.parent)
    return found[0] if len(found) == 1 or (found and place.is_dir()) else None


def _adapter(network: LookupFreeNetwork | IndexNetwork, config: Config | None, spec: Spec) -> Adapter:
    stride = network.sizes.stride
    side = TOKENS * stride if config is None else config.number(config.settings("ddconfig"), "resolution")
    return NetworkAdapter(
        name=spec.text,
        family="open-magvit2",
        network=network,
        size=spec.size((side, side)),
        stride=stride,
        recognised=spec.recognised,
    )


def recognise(files: Files) -> str | None:
    """By the adaptive norms of the look-up free decoder; or by a config of this project.

    IBQ has the keys of taming's VQGAN. What tells them apart without a config is that its weights are there twice,
    which other projects can do as well: such a file is claimed here and there, so that its owner has to say.
    """
    path = weights_in(files.path) if files.path.is_dir() else files.path
    if path is None:
        return None
    if files.path.is_dir() and (configs := configs_in(files.path)):
        return f"config {configs[0].path.name!r} is for {configs[0].target}"
    tensors = files.tensors if path == files.path else Files(path, files.ignore).tensors
    if all(key in tensors for key in _KEYS):
        return f"the state dict has {_KEYS[1]}: Open-MAGVIT2"
    if f"{EMA}quantizeembeddingweight" in tensors and taming.is_vqgan(tensors):
        return f"the state dict has taming's keys and {EMA}quantizeembeddingweight: IBQ"
    return None


def wrap(model: Any) -> Adapter | None:
    """A live tokenizer of the project, with the weights it has now; they are shared, not copied."""
    if not f"{type(model).__module__}.{type(model).__qualname__}".endswith(CLASSES):
        return None
    tensors, spec = model.state_dict(), live_spec(model, "open-magvit2")
    path = Path(spec.text)
    return _adapter(build_network(chosen_weights(tensors, "raw", path), path, dtype_of(tensors)), None, spec)


FAMILY = Family(
    name="open-magvit2",
    title="Open-MAGVIT2 (look-up free) and IBQ tokenizers",
    formats="folder with .ckpt and .yaml, or a .ckpt file; ?weights=raw, ?config=FILE.yaml",
    abilities=(ENCODE, DECODE),
    open=open_magvit2,
    recognise=recognise,
    wrap=wrap,
)
