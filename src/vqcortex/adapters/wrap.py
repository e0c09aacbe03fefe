"""Bring your own model: an encoder, a quantizer and a decoder become an adapter.

The three may be modules or plain functions. One dry run at the size you name finds the grid and checks what each part
returns. Modules are put in eval mode and held still, also those that a function you pass uses; they are not copied.

A wrapped model has no name that `load_model` could open: pass the adapter itself. Its identity covers the tensors of
the modules, not the source of plain functions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, Codes, StackedCodes, TableCodes
from vqcortex.adapters.network import NetworkAdapter, exact_kernels
from vqcortex.adapters.protocol import DECODE, ENCODE, Level, join_levels, split_levels
from vqcortex.adapters.quantizers import (
    BESIDE,
    LibraryQuantizer,
    OwnQuantizer,
    Quantizer,
    library_quantizer,
    table_codes,
    what,
)
from vqcortex.errors import ConfigError, ModelError

RANGES = {"signed": (-1.0, 1.0), "unit": (0.0, 1.0)}


@final
class WrappedNetwork(nn.Module):
    """Three parts as one network; see `wrap_model`.

    Args:
        encoder: Images to latents (b, c, h, w).
        quantizer: Between the two.
        decoder: What the quantizer makes of codes to images.
        pixels: What the encoder takes and the decoder gives for black and for white.
    """

    def __init__(
        self,
        encoder: Callable[..., Any],
        quantizer: Quantizer,
        decoder: Callable[..., Any],
        pixels: tuple[float, float],
    ) -> None:
        super().__init__()
        self.halves, self._pixels = (encoder, decoder), pixels
        rule = quantizer.rule if isinstance(quantizer, OwnQuantizer) else None
        used = [module for part in (encoder, decoder, rule) for module in _modules_of(part)]
        self.used = nn.ModuleList({id(module): module for module in used}.values())
        self.quantizer = cast(nn.Module, quantizer)
        self.levels: tuple[Level, ...] | None = None
        self.codes = quantizer.parts[0]

    def settle(self, levels: Sequence[Level] | None) -> None:
        """Take the grids of several levels; with None there is one grid, of any size."""
        if levels is None:
            return
        self.levels, self.codes = tuple(levels), _codes_of(self.stages, levels)
        if isinstance(self.quantizer, OwnQuantizer):
            self.quantizer.codes = self.codes

    @property
    def stages(self) -> Sequence[Codes]:
        """The codebook of each residual stage or head."""
        return cast(Quantizer, self.quantizer).parts

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        low, high = self._pixels
        return low + pixels * (high - low)

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The latent that the quantizer is given."""
        return self.halves[0](image)

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        found = cast(Quantizer, self.quantizer).choose(self.encode(images))
        if len(found) == 1 or self.levels is None:
            return found[0]
        tokens = [one.tokens + level.codes[0] for one, level in zip(found, self.levels, strict=True)]
        return Choice(join_levels(tokens), join_levels([one.doubtful for one in found]))

    def joined(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b e p q"]:
        """What the decoder is given for codes."""
        several = self.levels is not None and len(self.stages) > 1
        grids = split_levels(embedded, self.levels or ()) if several else [embedded]
        return cast(Quantizer, self.quantizer).joined(grids)

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n H W"]:
        return self.halves[1](self.joined(embedded))

    def finish(self, decoded: Float[Tensor, "b n H W"]) -> Float[Tensor, "b 3 H W"]:
        low, high = self._pixels
        return ((decoded - low) / (high - low)).clamp(0, 1).expand(-1, 3, -1, -1)


def wrap_model(
    encoder: Any,
    quantizer: Any,
    decoder: Any,
    *,
    size: tuple[int, int],
    name: str = "wrapped",
    pixels: str | tuple[float, float] = "signed",
    codebook: Tensor | int | None = None,
    levels: Sequence[Level] | None = None,
) -> NetworkAdapter:
    """Make an adapter of an encoder, a quantizer and a decoder.

    Args:
        encoder: Images (b, 3, H, W) to latents (b, c, h, w), before quantization.
        quantizer: A codebook (k, d), as a tensor, a parameter or an `nn.Embedding`, for codes chosen by Euclidean
            distance; or a quantizer of vector-quantize-pytorch (VectorQuantize, ResidualVQ, FSQ, LFQ, SimVQ, and
            the residual kinds of these), each residual stage or head becoming a level; or a function from latents to
            tokens (b, h, w) for the codes of `codebook`; or a pair of functions (choose, embed), the second from
            tokens to codes (b, d, h, w).
        decoder: Codes (b, d, h, w) to images (b, 3, H, W), or (b, 1, H, W) if grey; the codes are as the quantizer
            returns them, stages added up and projected back.
        size: Height and width of its images in pixels.
        name: What messages and pages call it.
        pixels: Range inside: "signed" is [-1, 1], "unit" is [0, 1], else (value of black, value of white).
        codebook: The codes (k, d) if `quantizer` is a function; how many there are if it is a pair.
        levels: Grids, if the latent of a plain codebook or a function is a row (b, d, 1, n) of several.
    Returns:
        An adapter for images of `size`; of any size that is a multiple of the stride if it has one grid and one stride.
    Raises:
        ConfigError: An argument makes no sense.
        ModelError: A part fails in the dry run, or returns something of another shape than it should.
    Example:
        >>> squares = torch.nn.AvgPool2d(4)
        >>> paint = torch.nn.Upsample(scale_factor=4)
        >>> wrap_model(squares, torch.eye(3), paint, size=(8, 8), pixels="unit").grid
        (2, 2)
    """
    network = WrappedNetwork(
        _callable("encoder", encoder), _quantizer_of(quantizer, codebook), _callable("decoder", decoder), _range(pixels)
    )
    # Before anything runs: a quantizer in training mode would learn from the dry run.
    network.eval().requires_grad_(False)
    with torch.no_grad(), exact_kernels():
        images = _example(network, size)
        latent = _latent_of(network, images, name)
        found = _levels_of(network, latent, levels)
        network.settle(found)
        _check_image(network, images, name)
    h, w = latent.shape[2:]
    is_even = found is None and size[0] % h == 0 and size[1] % w == 0 and size[0] // h == size[1] // w
    if found is None and not is_even:
        found = (Level(name="tokens", grid=(h, w), codes=(0, network.codes.k)),)
    return NetworkAdapter(
        name=name, family="wrapped", network=network, size=size, stride=size[0] // h if is_even else None, levels=found
    )


def _callable(role: str, part: Any) -> Callable[..., Any]:
    if not callable(part):
        raise ConfigError(f"{role} is {what(part)}, which cannot be called; pass a module or a function")
    return part


def _range(pixels: str | tuple[float, float]) -> tuple[float, float]:
    found = RANGES.get(pixels) if isinstance(pixels, str) else (float(pixels[0]), float(pixels[1]))
    if found is None or found[0] == found[1]:
        raise ConfigError(f"pixels={pixels!r} is no range; write 'signed', 'unit', or (value of black, value of white)")
    return found


def _quantizer_of(quantizer: Any, codebook: Tensor | int | None) -> OwnQuantizer | LibraryQuantizer:
    given = _table_of(quantizer)
    library = None if given is not None else library_quantizer(quantizer)
    if (given is not None or library is not None) and codebook is not None:
        raise ConfigError("the quantizer brings its codes itself; leave codebook= out")
    if library is not None:
        return library
    if given is not None:
        return OwnQuantizer(_checked(given))
    if isinstance(quantizer, (tuple, list)) and len(quantizer) == 2 and all(map(callable, quantizer)):
        return OwnQuantizer(_codes_by(quantizer[1], codebook), quantizer[0])
    if not callable(quantizer):
        raise ConfigError(
            f"the quantizer is {what(quantizer)}; pass a codebook (k, d), a quantizer of vector-quantize-pytorch, a "
            "function from latents to tokens with codebook=, or a pair of functions (choose, embed)"
        )
    table = _table_of(codebook)
    if table is None:
        raise ConfigError(
            f"the quantizer {what(quantizer)} is a function; give its codes too: codebook= a tensor (k, d)"
        )
    return OwnQuantizer(_checked(table), quantizer)


def _table_of(value: Any) -> Tensor | None:
    if isinstance(value, nn.Embedding):
        return value.weight
    return value if isinstance(value, Tensor) else None


def _checked(table: Tensor) -> TableCodes:
    if table.ndim != 2 or 0 in table.shape or not table.is_floating_point():
        raise ConfigError(f"the codebook is {what(table)}; it must be of real numbers (k, d), one code per row")
    if not torch.isfinite(table).all():
        raise ConfigError("the codebook holds numbers that are NaN or infinite; every code must be finite")
    return table_codes(table)


def _codes_by(embed: Callable[..., Any], codebook: Tensor | int | None) -> TableCodes:
    """The codebook that a function speaks for."""
    k = codebook if isinstance(codebook, int) else len(codebook) if codebook is not None else 0
    if k < 1:
        raise ConfigError("a pair of functions (choose, embed) does not say how many codes there are; give codebook=K")
    device = next((one.device for part in _modules_of(embed) for one in part.parameters()), torch.device("cpu"))
    with torch.no_grad():
        codes = embed(torch.arange(k, device=device)[None, None])
    if not isinstance(codes, Tensor) or codes.ndim != 4 or codes.shape[::2] != (1, 1) or codes.shape[3] != k:
        raise ModelError(
            f"embed returned {what(codes)} for tokens (1, 1, {k}); it must return codes (1, d, 1, {k}), channels first"
        )
    table = codes[0, :, 0].T.contiguous()
    if isinstance(codebook, Tensor) and not torch.equal(table, codebook.to(table)):
        raise ConfigError("codebook= holds other codes than embed returns; leave one out: codebook=K is enough")
    return _checked(table)


def _modules_of(part: Any) -> Iterator[nn.Module]:
    """The modules that a callable is or uses: itself, the owner of a method, what a function refers to."""
    if isinstance(part, nn.Module):
        yield part
    elif isinstance(part, functools.partial):
        for one in (part.func, *part.args, *part.keywords.values()):
            yield from _modules_of(one)
    elif inspect.ismethod(part):
        yield from _modules_of(part.__self__)
    elif inspect.isfunction(part):
        seen = inspect.getclosurevars(inspect.unwrap(part))
        # Functions that a function uses are not followed further: only what it names itself is its own.
        yield from (one for one in (*seen.nonlocals.values(), *seen.globals.values()) if isinstance(one, nn.Module))


def _example(network: WrappedNetwork, size: tuple[int, int]) -> Float[Tensor, "b 3 H W"]:
    """Two noisy images as the network wants them."""
    like = next(one for one in network.parameters() if one.is_floating_point())
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"size={size} is no height and width in pixels; write size=(256, 256), say")
    noise = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    return network.prepare(noise).to(like)


def _latent_of(network: WrappedNetwork, images: Float[Tensor, "b 3 H W"], name: str) -> Float[Tensor, "b c h w"]:
    try:
        latent = network.halves[0](images)
    except Exception as error:
        raise ModelError(f"the encoder of {name!r} fails on images {tuple(images.shape)}: {_line(error)}") from error
    if not isinstance(latent, Tensor) or latent.ndim != 4 or len(latent) != len(images) or 0 in latent.shape:
        raise ModelError(
            f"the encoder of {name!r} returned {what(latent)} for images {tuple(images.shape)}; it must return latents "
            "(b, c, h, w): wrap it in a function that does"
        )
    if not torch.isfinite(latent).all():
        raise ModelError(f"the encoder of {name!r} returned numbers that are NaN or infinite; check its weights")
    quantizer = network.quantizer
    if isinstance(quantizer, LibraryQuantizer):
        quantizer.check(latent)
    elif isinstance(quantizer, OwnQuantizer) and quantizer.rule is None and latent.shape[1] != quantizer.codes.d:
        raise ModelError(
            f"the encoder of {name!r} returned latents of {latent.shape[1]} channels but the codes have "
            f"{quantizer.codes.d} numbers; they must be equal"
        )
    return latent


def _levels_of(
    network: WrappedNetwork, latent: Float[Tensor, "b c h w"], levels: Sequence[Level] | None
) -> tuple[Level, ...] | None:
    """The grids of several levels: of the stages, or as given; None for one grid."""
    parts, grid = network.stages, (latent.shape[2], latent.shape[3])
    if levels is not None:
        wanted = sum(level.length for level in levels)
        if len(parts) > 1 or grid != (1, wanted):
            raise ConfigError(
                f"levels= has {wanted} positions but the latent's grid is {grid}, of {len(parts)} stage(s); levels are "
                "for latents (b, d, 1, n) of a plain codebook: leave them out"
            )
        return tuple(levels)
    if len(parts) == 1:
        return None
    kind = "head" if isinstance(network.quantizer, LibraryQuantizer) and network.quantizer.joins == BESIDE else "stage"
    is_shared, first, found = len({id(part) for part in parts}) == 1, 0, []
    for number, part in enumerate(parts):
        found.append(Level(name=f"{kind} {number + 1}", grid=grid, codes=(first, first + part.k)))
        first += 0 if is_shared else part.k
    return tuple(found)


def _codes_of(parts: Sequence[Codes], levels: Sequence[Level]) -> Codes:
    """The codebook of the whole row: the shared one, or all of them one after the other."""
    if len({id(part) for part in parts}) > 1:
        return StackedCodes(parts, levels)
    ends = [level.codes for level in levels]
    table = parts[0].table() if len(levels) > 1 and ends != [(0, parts[0].k)] * len(levels) else None
    if table is None:
        return parts[0]
    if [first for first, _ in ends] != [0, *(last for _, last in ends[:-1])] or ends[-1][1] != len(table):
        raise ConfigError(
            f"levels= have codes {ends} but the codebook has {len(table)}; they must be equal to (0, {len(table)}), or "
            "follow one another without a gap"
        )
    return StackedCodes([table_codes(table[first:last]) for first, last in ends], levels)


def _check_image(network: WrappedNetwork, images: Float[Tensor, "b 3 H W"], name: str) -> None:
    """Encode and decode once, and look at what comes out."""
    try:
        tokens = network.choose(images).tokens
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the quantizer of {name!r} fails on the encoder's latents: {_line(error)}") from error
    codes = network.joined(network.codes.embed(tokens).to(images.dtype))
    try:
        decoded = network.halves[1](codes)
    except Exception as error:
        raise ModelError(f"the decoder of {name!r} fails on codes {tuple(codes.shape)}: {_line(error)}") from error
    wanted = [(len(images), channels, *images.shape[2:]) for channels in (3, 1)]
    if not isinstance(decoded, Tensor) or tuple(decoded.shape) not in wanted:
        raise ModelError(
            f"the decoder of {name!r} returned {what(decoded)}; it must return images {wanted[0]}, or grey {wanted[1]}"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
