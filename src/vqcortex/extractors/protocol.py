"""What an extractor is, how its sizes follow from the grid, and how to build one by name.

Sizes. The published networks were made for 256 code channels on 16x16 grids with 512 feature channels throughout. Ours
take those sizes at 16x16 and above, and shrink with the number of cells:

- width: the largest power of two that is at most two channels per cell, 32 to 512 (7x7: 64; 8x8: 128; 16x16: 512);
- fully connected layers: the published size at full width; below that half of the published ratio to the width, at
  least 256 (7x7: 256 instead of 4096);
- transformer blocks: one per 20 cells, at least 4, at most the published number;
- halvings of the grid (poolings, strides): only while the shorter side stays at least 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.errors import ConfigError, ShapeError
from vqcortex.extractors import EXTRACTORS
from vqcortex.seeds import number_for

FULL_WIDTH = 512
LEAST_WIDTH = 32
LEAST_HIDDEN = 256
LEAST_SIDE = 3
CELLS_PER_BLOCK = 20
LEAST_BLOCKS = 4


@runtime_checkable
class ExtractorSettings(Protocol):
    """What the settings of every architecture share; each is a frozen dataclass.

    Attributes:
        channels: d, numbers per code.
        grid: Rows and columns of a token grid, (h, w).
        concepts: c, logits per image, at least 2.
    """

    @property
    def channels(self) -> int: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def concepts(self) -> int: ...

    def problems(self) -> Iterator[str]:
        """What is wrong with the sizes, one line each."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """A network from codes to concepts; in eval mode an image's logits depend on nothing but the image."""

    @property
    def settings(self) -> ExtractorSettings: ...

    def __call__(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]: ...


@runtime_checkable
class LooksThroughDecoder(Protocol):
    """An extractor that reads what the model's decoder makes of the codes."""

    def look_through(self, decode: Callable[[Tensor], Tensor]) -> None:
        """Take the decoder: codes (b, d, h, w) to pixels (b, 3, H, W) in [0, 1], differentiable."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One entry of the EXTRACTORS registry.

    Args:
        settings: Its settings class.
        network: From settings to a network with fresh weights drawn from torch's global generator.
        default_settings: From (d, grid, concepts) to settings: the published sizes at 16x16, smaller on small grids.
        looks_through_decoder: Its networks work only once they were given the model's decoder; see `see_with`.
    """

    settings: type
    network: Callable[[Any], nn.Module]
    default_settings: Callable[[int, tuple[int, int], int], Any]
    looks_through_decoder: bool = False


def build_extractor(name: str, d: int, grid: tuple[int, int], concepts: int, seed: int, **overrides: Any) -> nn.Module:
    """Return a fresh extractor, the same weights for the same arguments, in training mode on the CPU.

    Args:
        name: An entry of EXTRACTORS.
        d: Numbers per code.
        grid: Rows and columns of a token grid.
        concepts: Logits per image, at least 2.
        seed: Decides the initial weights; torch's global generator is left as it was.
        overrides: Settings of the architecture to replace, by name: width=64.

    Raises:
        UnknownName: No such extractor.
        ConfigError: A size is wrong or an override has an unknown name.

    Example:
        >>> net = build_extractor("conv8", d=3, grid=(4, 4), concepts=8, seed=0, width=8)
        >>> net.eval()(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 8])
    """
    architecture = EXTRACTORS[name]
    check_sizes(d, grid, concepts)
    settings = overridden(name, architecture.default_settings(d, grid, concepts), overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number_for(seed, "extractor", name))
        return architecture.network(settings)


def see_with(module: nn.Module, decode: Callable[[Tensor], Tensor]) -> nn.Module:
    """Give the extractor the decoder if it looks through one, and return it; any other is returned as it is."""
    if isinstance(module, LooksThroughDecoder):
        module.look_through(decode)
    return module


def network_from(name: str, values: Mapping[str, Any]) -> nn.Module:
    """Build the network that stored settings describe, on torch's meta device: it has shapes but no weights yet.

    Lists read from JSON become tuples. Drawing weights that a checkpoint replaces would take seconds at full size.

    Raises:
        UnknownName: No such extractor.
        ConfigError: A setting is missing, unknown or wrong.
    """
    architecture = EXTRACTORS[name]
    wanted, given = {one.name for one in fields(architecture.settings)}, set(values)
    if wanted != given:
        raise ConfigError(f"settings of {name!r} are {sorted(given)} but {sorted(wanted)} are needed")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    with torch.device("meta"):
        return architecture.network(checked(name, architecture.settings(**plain)))


def overridden(name: str, settings: Any, overrides: Mapping[str, Any]) -> Any:
    """Replace settings by name and check the result."""
    known = [one.name for one in fields(settings)]
    if unknown := sorted(set(overrides) - set(known)):
        raise ConfigError(f"extractor {name!r} has no setting {', '.join(unknown)}; it has: {', '.join(known)}")
    return checked(name, replace(settings, **overrides))


def checked(name: str, settings: Any) -> Any:
    """Return the settings, or raise one error that lists everything wrong with them."""
    check_sizes(settings.channels, settings.grid, settings.concepts)
    if found := list(settings.problems()):
        lines = "\n".join(f"  - {one}" for one in found)
        raise ConfigError(f"{len(found)} setting(s) of extractor {name!r} wrong:\n{lines}")
    return settings


def check_sizes(d: int, grid: tuple[int, int], concepts: int) -> None:
    """Refuse sizes no extractor can have."""
    if d < 1 or min(grid) < 1:
        raise ConfigError(f"d={d} on a {grid[0]}x{grid[1]} grid; an extractor needs at least 1 channel and 1x1 cells")
    if concepts < 2:
        raise ConfigError(f"concepts={concepts}, but telling concepts apart needs at least 2; label images with more")


def check_embedded(embedded: Float[Tensor, "b d h w"], settings: ExtractorSettings) -> None:
    """Refuse a grid other than the one the extractor was built for."""
    wanted = (settings.channels, *settings.grid)
    if tuple(embedded.shape[1:]) != wanted:
        raise ShapeError(
            f"embedded has shape {tuple(embedded.shape)} but this extractor reads (b, {', '.join(map(str, wanted))}); "
            "embed tokens of the model it was trained for"
        )


def look_up(codebook: Float[Tensor, "k d"], tokens: Integer[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
    """Codes of token grids held in any integer type, on the codebook's device, in channels-last memory."""
    return F.embedding(tokens.to(codebook.device).long(), codebook).permute(0, 3, 1, 2)


def width_for(grid: tuple[int, int]) -> int:
    """Feature channels for a grid: two per cell, rounded down to a power of two, 32..512."""
    room = 2 * grid[0] * grid[1]
    return min(FULL_WIDTH, max(LEAST_WIDTH, 1 << room.bit_length() - 1))


def hidden_for(published: int, width: int) -> int:
    """Size of a fully connected layer: as published at full width, else half of the published ratio, 256 or more."""
    return published if width >= FULL_WIDTH else max(LEAST_HIDDEN, published * width // (2 * FULL_WIDTH))


def depth_for(published: int, grid: tuple[int, int]) -> int:
    """Transformer blocks for a grid: one per 20 cells, 4..published."""
    return min(published, max(LEAST_BLOCKS, grid[0] * grid[1] // CELLS_PER_BLOCK))


def halved(side: int, times: int = 1) -> int:
    """Length of a side after halvings that keep the odd row or column."""
    return -(-side // 2**times)


def halvings_for(grid: tuple[int, int]) -> int:
    """How often a grid can be halved while its shorter side stays at least 3: 16x16 twice, 7x7 once, 4x4 never."""
    times = 0
    while halved(min(grid), times + 1) >= LEAST_SIDE:
        times += 1
    return times


def wrong_numbers(**least: tuple[int | float, int | float]) -> Iterator[str]:
    """Yield a line for every (value, least) pair whose value is too small."""
    for name, (value, bound) in least.items():
        if value < bound:
            yield f"{name}={value} must be at least {bound}"


def wrong_dropout(dropout: float) -> Iterator[str]:
    """Yield a line when a dropout rate lies outside [0, 1)."""
    if not 0 <= dropout < 1:
        yield f"dropout={dropout} must lie in [0, 1)"
