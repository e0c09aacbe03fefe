"""OpenAI's discrete VAE, the image half of the first DALL-E: every token is an argmax of logits, every code a mixture.

The released files, `encoder.pkl` and `decoder.pkl`, are whole modules; they are read as inert records, so neither the
`dall_e` package nor any code in them is needed. State dicts of the two halves are read as well. Either half may be
absent. Everything runs in float32; on a GPU the official code runs all but two convolutions in half precision, so its
tokens there can differ.

Source:
    Ramesh et al. 2021, arXiv:2102.12092, appendix A; github.com/openai/DALL-E (Encoder, Decoder, map_pixels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.codes import Choice, Codes, best_logit, look_up, nearest_rows
from vqcortex.adapters.family import Family, Files, Spec
from vqcortex.adapters.hub import locate
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, LOGITS, Adapter
from vqcortex.adapters.taming import dtype_of, live_spec, numbers_under
from vqcortex.checkpoints import fill, read_pickled_module, shape_of
from vqcortex.errors import ModelError

SIDE = 256  # pixels of the images it was released for
EDGE = 0.1  # pixels are squeezed into [0.1, 0.9]: the logit of 0 or 1 is infinite
SUFFIXES = (".pkl", ".pt", ".pth", ".bin", ".safetensors")
# Keys that no other model has: convolutions call their numbers `w` and `b`.
INPUT, OUTPUT, LAST = "blocks.input.w", "blocks.output.conv.w", "block_1.res_path.conv_4.w"
FIRST = f"blocks.group_1.{LAST}"


class Convolution(nn.Module):
    """A convolution that keeps height and width, with its numbers under the official names."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(n_out, n_in, kernel, kernel))
        self.b = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n p q"]:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


@final
class InputCodes(Convolution):
    """The decoder's first layer as a codebook: on a one-hot map it does nothing but look a column up and add the bias.

    Row k of the table is column k of the weights plus the bias: what the decoder sees for token k.
    """

    @property
    def k(self) -> int:
        return self.w.shape[1]

    @property
    def d(self) -> int:
        return self.w.shape[0]

    def table(self) -> Float[Tensor, "k d"]:
        return self.w[:, :, 0, 0].T + self.b

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return look_up(tokens, self.table())

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Choice:
        return nearest_rows(embedded, self.table())


@final
class OutputCodes(Convolution):
    """The encoder's last layer as a codebook, for want of a decoder: row k are the weights that score token k."""

    @property
    def k(self) -> int:
        return self.w.shape[0]

    @property
    def d(self) -> int:
        return self.w.shape[1]

    def table(self) -> Float[Tensor, "k d"]:
        return self.w[:, :, 0, 0]

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return look_up(tokens, self.table())

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Choice:
        return nearest_rows(embedded, self.table())


class Block(nn.Module):
    """A residual block of four convolutions, each after a ReLU, whose branch is scaled down.

    Args:
        n_in: Channels that come in.
        n_out: Channels that go out.
        kernels: Sides of the four kernels.
        gain: Factor of the branch.
    """

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        if n_in != n_out:
            self.id_path = Convolution(n_in, n_out, 1)
        hidden = n_out // 4
        widths = (n_in, hidden, hidden, hidden, n_out)
        self.res_path = nn.ModuleDict(
            {
                f"conv_{number}": Convolution(widths[number - 1], widths[number], kernel)
                for number, kernel in enumerate(kernels, 1)
            }
        )

    def forward(self, x: Float[Tensor, "b m p q"]) -> Float[Tensor, "b n p q"]:
        branch = x
        for convolution in self.res_path.values():
            branch = convolution(F.relu(branch))
        kept: Tensor = self.id_path(x) if hasattr(self, "id_path") else x
        return kept + self.gain * branch


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of one half, as its tensors have them.

    Args:
        first: Channels after the first layer.
        widths: Channels of each group.
        blocks: Residual blocks per group.
        k: Codes.
    """

    first: int
    widths: tuple[int, ...]
    blocks: int
    k: int

    @property
    def gain(self) -> float:
        """Factor of every residual branch: one over the square of the number of blocks."""
        return 1 / (len(self.widths) * self.blocks) ** 2

    @property
    def stride(self) -> int:
        """Pixels per token side: every group but the last changes the size by two."""
        return int(2 ** (len(self.widths) - 1))


def groups_of(sizes: Sizes, kernels: tuple[int, ...]) -> dict[str, nn.Module]:
    """The residual groups of a half, under their official names."""
    groups: dict[str, nn.Module] = {}
    width = sizes.first
    for number, wide in enumerate(sizes.widths, 1):
        blocks: dict[str, nn.Module] = {}
        for place in range(1, sizes.blocks + 1):
            blocks[f"block_{place}"] = Block(width, wide, kernels, sizes.gain)
            width = wide
        groups[f"group_{number}"] = nn.ModuleDict(blocks)
    return groups


@final
class Encoder(nn.Module):
    """Images of three channels to logits over all codes."""

    kernels: ClassVar[tuple[int, ...]] = (3, 3, 3, 1)

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        last = nn.ModuleDict({"conv": OutputCodes(sizes.widths[-1], sizes.k, 1)})
        self.blocks = nn.ModuleDict(
            {"input": Convolution(3, sizes.first, 7), **groups_of(sizes, self.kernels), "output": last}
        )

    @property
    def codes(self) -> Codes:
        """Its last layer, see `OutputCodes`."""
        return self.blocks["output"]["conv"]  # type: ignore[index]

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k h w"]:
        x = self.blocks["input"](images)
        for number in range(1, len(self.sizes.widths) + 1):
            x = x if number == 1 else F.max_pool2d(x, 2)
            for block in self.blocks[f"group_{number}"].values():  # type: ignore[operator]
                x = block(x)
        return self.blocks["output"]["conv"](F.relu(x))  # type: ignore[index]


@final
class Decoder(nn.Module):
    """Codes to six channels: three means of a logit-Laplace distribution, three logarithms of its scales."""

    kernels: ClassVar[tuple[int, ...]] = (1, 3, 3, 3)

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        last = nn.ModuleDict({"conv": Convolution(sizes.widths[-1], 6, 1)})
        self.blocks = nn.ModuleDict(
            {"input": InputCodes(sizes.k, sizes.first, 1), **groups_of(sizes, self.kernels), "output": last}
        )

    @property
    def codes(self) -> Codes:
        """Its first layer, see `InputCodes`."""
        return self.blocks["input"]  # type: ignore[return-value]

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 6 H W"]:
        x: Tensor = embedded
        for number in range(1, len(self.sizes.widths) + 1):
            x = x if number == 1 else F.interpolate(x, scale_factor=2, mode="nearest")
            for block in self.blocks[f"group_{number}"].values():  # type: ignore[operator]
                x = block(x)
        return self.blocks["output"]["conv"](F.relu(x))  # type: ignore[index]


@final
class DVAE(nn.Module):
    """One or both halves, behind the network protocol.

    Args:
        encoder: Images to logits; None: no tokens of images.
        decoder: Codes to images; None: no images of tokens.
    """

    def __init__(self, encoder: Encoder | None, decoder: Decoder | None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @property
    def sizes(self) -> Sizes:
        """Those of either half."""
        half = self.decoder or self.encoder
        assert half is not None
        return half.sizes

    @property
    def codes(self) -> Codes:
        """The decoder's input layer; without a decoder the rows of the encoder's output layer."""
        half = self.decoder or self.encoder
        assert half is not None
        return half.codes

    @property
    def abilities(self) -> frozenset[str]:
        encodes = {ENCODE, LOGITS} if self.encoder is not None else set()
        return frozenset(encodes | ({DECODE} if self.decoder is not None else set()))

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return (1 - 2 * EDGE) * pixels + EDGE

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        assert self.encoder is not None
        return best_logit(self.encoder(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 6 H W"]:
        assert self.decoder is not None
        return self.decoder(embedded)

    def finish(self, decoded: Float[Tensor, "b 6 H W"]) -> Float[Tensor, "b 3 H W"]:
        return ((torch.sigmoid(decoded[:, :3]) - EDGE) / (1 - 2 * EDGE)).clamp(0, 1)


def is_half(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the keys of one of the two halves."""
    return INPUT in tensors and OUTPUT in tensors and FIRST in tensors


def is_encoder(tensors: Mapping[str, Tensor], path: Path) -> bool:
    """Which half it is: an encoder looks at 7x7 pixels first, a decoder at one token."""
    return _of_four_axes(tensors, INPUT, path)[-1] > 1


def sizes_of(tensors: Mapping[str, Tensor], path: Path) -> Sizes:
    """Sizes of either half from the shapes of its state dict.

    Raises:
        ModelError: A key is missing, or is no convolution's.
    """
    first, last = (_of_four_axes(tensors, key, path) for key in (INPUT, OUTPUT))
    groups = numbers_under(tensors, "blocks.group_")  # one more than there are: they count from 1
    return Sizes(
        first=first[0],
        widths=tuple(_of_four_axes(tensors, f"blocks.group_{n}.{LAST}", path)[0] for n in range(1, max(2, groups))),
        blocks=max(2, numbers_under(tensors, "blocks.group_1.block_")) - 1,
        k=last[0] if is_encoder(tensors, path) else first[1],
    )


def build_half(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> Encoder | Decoder:
    """An encoder or a decoder, whichever the tensors are.

    Raises:
        ModelError: They are neither, or of shapes that do not go together.
    """
    sizes = sizes_of(tensors, path)
    with torch.device("meta"):
        half = Encoder(sizes) if is_encoder(tensors, path) else Decoder(sizes)
    fill(half, tensors, path=path, dtype=dtype)
    return half


def _of_four_axes(tensors: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, ...]:
    shape = shape_of(tensors, key, path)
    if len(shape) != 4:
        raise ModelError(
            f"checkpoint {str(path)!r}: {key!r} has shape {shape} where a convolution has four axes; "
            "it is of another family"
        )
    return shape


def build_dvae(halves: Mapping[Path, Mapping[str, Tensor]], dtype: torch.dtype = torch.float32) -> DVAE:
    """A model from one state dict or two, in any order.

    Args:
        halves: State dicts by the path they came from.
        dtype: Of all weights.
    Raises:
        ModelError: One is neither half, two are the same half, or two have different numbers of codes or groups.
    """
    encoder: Encoder | None = None
    decoder: Decoder | None = None
    for path, tensors in halves.items():
        half = build_half(tensors, path, dtype)
        if isinstance(half, Encoder):
            _check_alone(encoder, path, "encoder")
            encoder = half
        else:
            _check_alone(decoder, path, "decoder")
            decoder = half
    if encoder is not None and decoder is not None:
        _check_together(encoder.sizes, decoder.sizes, tuple(halves))
    return DVAE(encoder, decoder)


def _check_alone(found: nn.Module | None, path: Path, half: str) -> None:
    if found is not None:
        raise ModelError(f"{str(path)!r} is a second {half}; name one encoder and one decoder, or a folder with these")


def _check_together(encoder: Sizes, decoder: Sizes, paths: tuple[Path, ...]) -> None:
    for what, one, other in (
        ("codes", encoder.k, decoder.k),
        ("pixels per token side", encoder.stride, decoder.stride),
    ):
        if one != other:
            raise ModelError(
                f"the encoder has {one} {what}, the decoder {other}: {' and '.join(repr(str(path)) for path in paths)} "
                "are of different models; put two halves of one model together"
            )


def halves_in(folder: Path) -> list[Path]:
    """The files of a folder that may be halves: one whose name begins with "encoder", one with "decoder"."""
    found = []
    for name in ("encoder", "decoder"):
        named = [one for one in folder.iterdir() if one.name.startswith(name) and one.suffix in SUFFIXES]
        if named:
            # The official names first, then the shortest: "encoder.pkl" before "encoder_old.pkl".
            found.append(min(named, key=lambda one: (SUFFIXES.index(one.suffix), len(one.name), one.name)))
    return found


def open_dvae(spec: Spec) -> Adapter:
    """Open "openai-dvae:FOLDER" or "openai-dvae:FILE".

    Raises:
        ModelError: There is neither half in the folder, or one of them is broken.
    """
    spec.check()
    path = locate(spec, "encoder*", "decoder*")
    paths = halves_in(path) if path.is_dir() else [path]
    if not paths:
        raise ModelError(
            f"{str(path)!r} has neither encoder nor decoder of a dVAE; name a folder with encoder.pkl and decoder.pkl "
            "(or their state dicts, encoder_state_dict.pt and decoder_state_dict.pt), or one of these files"
        )
    network = build_dvae({one: read_pickled_module(one, ignore=spec.ignore) for one in paths}, spec.dtype())
    return _adapter(network, spec)


def _adapter(network: DVAE, spec: Spec) -> Adapter:
    return NetworkAdapter(
        name=spec.text,
        family="openai-dvae",
        network=network,
        size=spec.size((SIDE, SIDE)),
        stride=network.sizes.stride,
        recognised=spec.recognised,
    )


def recognise(files: Files) -> str | None:
    """By the names `w` and `b` of its convolutions."""
    paths = halves_in(files.path) if files.path.is_dir() else [files.path]
    for path in paths:
        try:
            tensors = read_pickled_module(path, ignore=files.ignore)
        except ModelError:
            continue
        if is_half(tensors):
            return f"{path.name} with {INPUT} and {FIRST}: OpenAI dVAE"
    return None


LIVE = {"dall_e.encoder": ("Encoder",), "dall_e.decoder": ("Decoder",)}


def wrap(model: Any) -> Adapter | None:
    """A live `dall_e` Encoder or Decoder; its weights are shared, not copied."""
    kind = type(model)
    if kind.__qualname__ not in LIVE.get(kind.__module__, ()):
        return None
    tensors, spec = model.state_dict(), live_spec(model, "openai-dvae")
    return _adapter(build_dvae({Path(spec.text): tensors}, dtype_of(tensors)), spec)


FAMILY = Family(
    name="openai-dvae",
    title="OpenAI dVAE (DALL-E 1)",
    formats="folder with encoder.pkl and decoder.pkl, or their state dicts; one of the two files",
    abilities=(ENCODE, DECODE, LOGITS),
    open=open_dvae,
    recognise=recognise,
    wrap=wrap,
)
