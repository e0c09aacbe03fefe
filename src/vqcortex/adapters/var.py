"""The multi-scale residual VQ-VAE of VAR: an image is a row of ever finer grids, each correcting what the coarser left.

Levels are scales, one codebook serves them all. A token's contribution is not its codebook row: the rows of a scale are
enlarged to the full grid, go through a convolution that some scales share, and are added up. So `codebook`, `embed` and
`nearest` speak of rows, and `decode` does the adding; everything is differentiable through the rows.

The scales are in no file. Those of the paper are taken for 256 and 512 pixels (`?size=512`); others are given coarse to
fine, the last one being the latent's own grid: `?scales=1,2,3,5,8`, or `?scales=1x2,2x4` where they are not square.
`?znorm=yes` is for models trained with `using_znorm`: codes are compared by angle, and used as they are stored.
Images are in [-1, 1] inside.

Source:
    Tian et al. 2024, arXiv:2404.02905, section 3.2, algorithms 1 and 2; github.com/FoundationVision/VAR
    (models/vqvae.py, quant.py, basic_vae.py). Encoder and decoder are those of latent-diffusion's vq-f16 but for one
    convolution that makes query, key and value at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.codes import Choice, TableCodes, nearest_rows
from vqcortex.adapters.family import Family, Files, Spec, file_in, table_shape
from vqcortex.adapters.hub import locate
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter, Level, join_levels, split_levels
from vqcortex.adapters.taming import Decoder, Encoder, convolution, decoder_sizes, encoder_sizes, numbers_under
from vqcortex.checkpoints import fill, read_checkpoint, shape_of, state_dict_of
from vqcortex.errors import ConfigError, ModelError

# Scales of the released models, by the side of their images in pixels.
SCALES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
SHARE = 0.5  # of the convolution in what a scale adds; the rest goes around it. The project's quant_resi
TABLE = "quantize.embedding.weight"
_USAGE = "quantize.ema_vocab_hit_SV"  # how often each code was met, one row per scale
_PHI = "quantize.quant_resi."
_PATTERNS = ("vae_*.pth", "*.pth", "*.pt", "*.safetensors")

Grid = tuple[int, int]


@final
class VarNetwork(nn.Module):
    """The whole VQ-VAE, of the sizes that a state dict has.

    Args:
        tensors: The state dict, by the names of this module (see `_renamed`).
        path: Where it came from, for messages.
        scales: Rows and columns of each scale, coarse to fine.
        compares_angles: Whether codes are compared by angle.
    Raises:
        ModelError: A key is missing, or two of them contradict each other.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], path: Path, scales: Sequence[Grid], *, compares_angles: bool = False
    ) -> None:
        super().__init__()
        sizes, decoder = encoder_sizes(tensors, path), decoder_sizes(tensors, path)
        self.stride = sizes.stride
        self.encoder, self.decoder = Encoder(sizes), Decoder(decoder)
        self.quant_conv = _same(tensors, "quant_conv.weight", path)
        self.post_quant_conv = _same(tensors, "post_quant_conv.weight", path)
        self.codes = TableCodes(*table_shape(tensors, "codes.weight", path, d=self.quant_conv.out_channels))
        self.phi = nn.ModuleList(
            _same(tensors, f"phi.{number}.weight", path) for number in range(numbers_under(tensors, "phi."))
        )
        if not self.phi:
            raise ModelError(f"{str(path)!r}: no key begins with {_PHI!r}; the file is of another family, or cut down")
        self._angles = compares_angles
        self.levels = tuple(
            Level(name=f"scale {number + 1}", grid=grid, codes=(0, self.codes.k)) for number, grid in enumerate(scales)
        )

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return 2 * pixels - 1

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """The latent that the scales add up to."""
        return self.quant_conv(self.encoder(image))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        latent = self.encode(images)
        # A small remainder is as uncertain as the whole latent was; the convolutions mix positions.
        reach = latent.norm(dim=1).amax((1, 2))
        rest, found = latent, []
        for number, level in enumerate(self.levels):
            seen = rest if self._is_last(number) else F.interpolate(rest, size=level.grid, mode="area")
            found.append(self._nearest(seen, reach))
            rest = rest - self._added(number, self.codes.embed(found[-1].tokens))
        if len(found) == 1:
            return found[0]
        return Choice(join_levels([one.tokens for one in found]), join_levels([one.doubtful for one in found]))

    def _nearest(self, seen: Float[Tensor, "b d h w"], reach: Float[Tensor, " b"]) -> Choice:
        around = reach[:, None, None].expand_as(seen[:, 0])
        if not self._angles:
            return nearest_rows(seen, self.codes.weight, reach=around)
        length = seen.norm(dim=1).clamp_min(torch.finfo(seen.dtype).tiny)
        rows = F.normalize(self.codes.weight, dim=1)
        return nearest_rows(F.normalize(seen, dim=1), rows, reach=around / length)

    def _is_last(self, number: int) -> bool:
        return number == len(self.levels) - 1

    def _added(self, number: int, rows: Float[Tensor, "b d p q"]) -> Float[Tensor, "b d h w"]:
        """What the rows of one scale add to the latent."""
        full = rows if self._is_last(number) else F.interpolate(rows, size=self.levels[-1].grid, mode="bicubic")
        return (1 - SHARE) * full + SHARE * self.phi[phi_of(number, len(self.levels), len(self.phi))](full)

    def sums(self, embedded: Float[Tensor, "b d r n"]) -> list[Float[Tensor, "b d h w"]]:
        """The latent after each scale, coarse to fine; the last one is what is decoded."""
        sums: list[Tensor] = []
        grids = [embedded] if len(self.levels) == 1 else split_levels(embedded, self.levels)
        for number, rows in enumerate(grids):
            added = self._added(number, rows)
            sums.append(sums[-1] + added if sums else added)
        return sums

    def decode_latent(self, latent: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """The decoder's raw output for a sum of scales; that of the first ones gives a blurred image."""
        return self.decoder(self.post_quant_conv(latent))

    def decode(self, embedded: Float[Tensor, "b d r n"]) -> Float[Tensor, "b 3 H W"]:
        return self.decode_latent(self.sums(embedded)[-1])

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return ((decoded + 1) / 2).clamp(0, 1)

    def prior_input(self, embedded: Float[Tensor, "b d r n"]) -> Float[Tensor, "b m d"]:
        """What VAR's transformer is fed in teacher forcing: before each scale but the first, the sum so far, as fine
        as that scale."""
        grids = [level.grid for level in self.levels[1:]]
        sums = self.sums(embedded)[:-1]
        seen = [F.interpolate(one, size=grid, mode="area") for one, grid in zip(sums, grids, strict=True)]
        return torch.cat([one.flatten(2).transpose(1, 2) for one in seen], 1)


def _same(tensors: Mapping[str, Tensor], key: str, path: Path) -> nn.Conv2d:
    """A convolution that keeps the grid, of the width and kernel that a state dict has."""
    after, before = convolution(tensors, key, path)
    kernel = shape_of(tensors, key, path)[2]
    return nn.Conv2d(before, after, kernel, padding=kernel // 2)


def phi_of(number: int, scales: int, count: int) -> int:
    """Which of `count` shared convolutions serves scale `number` (from 0) of `scales`.

    The scales and the convolutions are spread over [0, 1], a scale takes the nearest.
    """
    # Ties between two convolutions are common and decided by the last digit, so these are numpy's numbers as in the
    # official code, not what they stand for.
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    at = number / (scales - 1) if scales > 1 else 0.0
    return int(np.argmin(np.abs(ticks - at)))


def _renamed(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A state dict by the names of `VarNetwork`: query, key and value apart, convolutions of the scales numbered."""
    shape_of(tensors, TABLE, path)
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".qkv." in key:
            if len(tensor) % 3:
                raise ModelError(
                    f"{str(path)!r}: {key!r} has {len(tensor)} rows, which are not queries, keys and values in equal "
                    "number; the file was altered: restore it"
                )
            named |= {key.replace(".qkv.", f".{part}."): one for part, one in zip("qkv", tensor.chunk(3), strict=True)}
        elif key.startswith(_PHI):
            # Shared by some scales, by all of them, or by none.
            inner = key[len(_PHI) :].removeprefix("qresi_ls.")
            named[f"phi.{inner.replace('qresi.', '0.', 1)}"] = tensor
        elif key == TABLE:
            named["codes.weight"] = tensor
        elif key != _USAGE:
            named[key] = tensor
    return named


def _network(
    tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype, scales: Sequence[Grid], *, compares_angles: bool
) -> VarNetwork:
    counted = len(tensors[_USAGE]) if _USAGE in tensors else len(scales)
    if counted != len(scales):
        raise ModelError(
            f"{str(path)!r}: {_USAGE!r} counts {counted} scales but {len(scales)} are given "
            f"({_text(scales)}); name those the model was trained with: ?scales=1,2,3,..."
        )
    named = _renamed(tensors, path)
    with torch.device("meta"):
        network = VarNetwork(named, path, scales, compares_angles=compares_angles)
    fill(network, named, path=path, dtype=dtype)
    return network


def _text(scales: Sequence[Grid]) -> str:
    return ",".join(str(h) if h == w else f"{h}x{w}" for h, w in scales)


def _scales(spec: Spec) -> tuple[Grid, ...]:
    """The scales that a name gives, or those of the paper for its size.

    Raises:
        ConfigError: They are no grids, or no paper has any for this size.
    """
    text = spec.options.get("scales")
    if text is None:
        size = spec.size((256, 256))
        if size[0] != size[1] or size[0] not in SCALES:
            raise ConfigError(
                f"size={size[0]}x{size[1]} of model {spec.text!r} is none of the released {', '.join(map(str, SCALES))}"
                "; give the scales themselves: ?scales=1,2,3,5,8"
            )
        return tuple((side, side) for side in SCALES[size[0]])
    grids = [side.split("x") for side in text.split(",")]
    if not all(len(grid) <= 2 and all(side.isdigit() and int(side) for side in grid) for grid in grids):
        raise ConfigError(f"scales={text!r} of model {spec.text!r} are no grids; write ?scales=1,2,3,5,8")
    return tuple((int(grid[0]), int(grid[-1])) for grid in grids)


def open_var(spec: Spec) -> Adapter:
    """Open `var:FILE`, with `?scales=` and `?znorm=yes`.

    Raises:
        ModelError: The file is absent, cut short, of another family, or has another number of scales.
        ConfigError: An option is unknown or makes no sense, or the size is not what the scales come to.
    """
    spec.check("scales", "znorm")
    znorm = spec.options.get("znorm", "no")
    if znorm not in ("yes", "no"):
        raise ConfigError(f"znorm={znorm!r} of model {spec.text!r} is neither yes nor no; write ?znorm=yes")
    scales = _scales(spec)
    path = file_in(locate(spec, *_PATTERNS[:1]), *_PATTERNS)
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    network = _network(tensors, path, spec.dtype(), scales, compares_angles=znorm == "yes")
    found = _adapter(spec.text, network, spec.recognised)
    if spec.size(found.size) != found.size:
        raise ConfigError(
            f"size={spec.options['size']} of model {spec.text!r}, but scales {_text(scales)} at {network.stride} "
            f"pixels per token make {found.size[0]}x{found.size[1]}; leave ?size= out, or give other ?scales="
        )
    return found


def _adapter(name: str, network: VarNetwork, recognised: str) -> NetworkAdapter:
    h, w = network.levels[-1].grid
    return NetworkAdapter(
        name=name, family="var", network=network, size=(h * network.stride, w * network.stride), stride=None,
        levels=network.levels, recognised=recognised,
    )  # fmt: skip


def recognise(files: Files) -> str | None:
    """Known by the convolutions that its scales go through."""
    if files.has(TABLE) and any(key.startswith(_PHI) for key in files.tensors):
        return f"a state dict with {TABLE} and {_PHI}*: VAR's multi-scale VQ-VAE"
    return None


def wrap(model: Any) -> Adapter | None:
    """A live VQVAE of the project: its own tensors, not copied, with the scales it was made for."""
    if type(model).__qualname__ != "VQVAE" or not isinstance(model, nn.Module):
        return None
    quantizer = getattr(model, "quantize", None)
    scales = getattr(quantizer, "v_patch_nums", None)
    if scales is None or f"{_PHI}qresi_ls.0.weight" not in (tensors := model.state_dict()):
        return None
    grids = [(one, one) if isinstance(one, int) else (int(one[0]), int(one[1])) for one in scales]
    name = f"live:{type(model).__qualname__}"
    angles = bool(getattr(quantizer, "using_znorm", False))
    return _adapter(name, _network(tensors, Path(name), torch.float32, grids, compares_angles=angles), "")


FAMILY = Family(
    name="var",
    title="Multi-scale VQ-VAE of FoundationVision/VAR",
    formats="vae_*.pth (FILE, or hub id FoundationVision/var), with ?scales= where they are not the paper's",
    abilities=(ENCODE, DECODE),
    open=open_var,
    recognise=recognise,
    wrap=wrap,
    levels="many",
)
