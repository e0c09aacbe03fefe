"""Quantizers that a user brings, read as codebooks: a table, a rule of one's own, and vector-quantize-pytorch's.

A quantizer here has parts: one codebook per residual stage, per head, or only one. Tokens are always chosen by the
quantizer's own forward pass, whatever its options; look-up and the question which tokens are doubtful are ours, and
`LibraryQuantizer.check` compares the two before anything is trusted.

Source:
    github.com/lucidrains/vector-quantize-pytorch. FSQ: Mentzer et al. 2023, arXiv:2309.15505, section 3; LFQ: Yu et al.
    2023, arXiv:2310.05737, section 3.2; residual stages: Zeghidour et al. 2021, arXiv:2107.03312, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.codes import Choice, Codes, LatticeCodes, TableCodes, nearest_rows
from vqcortex.errors import ModelError

LIBRARY = "vector_quantize_pytorch"
# How a library's quantizer wants a latent: as (b, c, h, w), as (b, h*w, c), or as (b, c, h*w).
IMAGE, ROWS_LAST, ROWS_FIRST = "image", "rows last", "rows first"
# How parts make one vector: added up, or channels one after the other.
SUM, BESIDE = "sum", "beside"
_EPSILON = 1e-6  # the library's own, where it brings vectors to unit length


@runtime_checkable
class Quantizer(Protocol):
    """Between an encoder and a decoder.

    Attributes:
        parts: A codebook per stage; the same object where stages share one.
    """

    @property
    def parts(self) -> Sequence[Codes]: ...

    def choose(self, latent: Float[Tensor, "b c h w"]) -> list[Choice]:
        """Tokens of each part, numbered from 0 in each."""
        ...

    def joined(self, embedded: Sequence[Float[Tensor, "b d h w"]]) -> Float[Tensor, "b e h w"]:
        """What the decoder is fed, from the codes of each part; differentiable."""
        ...


def table_codes(table: Float[Tensor, "k d"]) -> TableCodes:
    """A codebook of rows that are already there; not copied."""
    codes = TableCodes(0, 0)
    codes.weight = nn.Parameter(table.detach(), requires_grad=False)
    return codes


@final
class OwnQuantizer(nn.Module):
    """One codebook, and maybe a rule of one's own.

    Args:
        codes: The codebook.
        rule: From latents to tokens; None: the nearest row.
    """

    def __init__(self, codes: Codes, rule: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.codes, self.rule = codes, rule

    @property
    def parts(self) -> Sequence[Codes]:
        return (self.codes,)

    def choose(self, latent: Float[Tensor, "b c h w"]) -> list[Choice]:
        if self.rule is None:
            return [self.codes.nearest(latent)]
        tokens = self.rule(latent)
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.shape != latent[:, 0].shape:
            raise ModelError(
                f"the quantizer's rule returned {what(tokens)} for latents {tuple(latent.shape)}; "
                f"it must return whole numbers {tuple(latent[:, 0].shape)}, a token per position"
            )
        if latent.shape[1] != self.codes.d:
            return [Choice(tokens.long(), torch.ones_like(tokens, dtype=torch.bool))]
        # What a foreign rule is sure of is not known; where it agrees with the distance, the distance says it.
        nearest = self.codes.nearest(latent)
        return [Choice(tokens.long(), nearest.doubtful | (nearest.tokens != tokens))]

    def joined(self, embedded: Sequence[Float[Tensor, "b d h w"]]) -> Float[Tensor, "b e h w"]:
        return embedded[0]


@final
class LibraryQuantizer(nn.Module):
    """A quantizer of vector-quantize-pytorch, taken apart.

    Args:
        quantizer: The module, in eval mode.
        parts: Its codebooks.
        joins: SUM or BESIDE.
        layout: IMAGE, ROWS_LAST or ROWS_FIRST.
        inward: From latents (b, n, c) to what the first stage sees; the library's projection, say.
        outward: From joined codes (b, n, d) to the quantizer's output; differentiable.
        compared: From a stage's number and what it sees (b, d, h, w) to what its codes are compared with.
        ids_first: Whether ids come as (b, stages, n).
    """

    def __init__(
        self,
        quantizer: nn.Module,
        parts: Sequence[Codes],
        *,
        joins: str = SUM,
        layout: str = ROWS_LAST,
        inward: Callable[[Tensor], Tensor] = lambda rows: rows,
        outward: Callable[[Tensor], Tensor] = lambda rows: rows,
        compared: Callable[[int, Tensor], Tensor] = lambda _, seen: seen,
        ids_first: bool = False,
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.codes = nn.ModuleList(cast(Sequence[nn.Module], parts))
        self.joins, self._layout, self._ids_first = joins, layout, ids_first
        self._inward, self._outward, self._compared = inward, outward, compared

    @property
    def parts(self) -> Sequence[Codes]:
        return cast(Sequence[Codes], list(self.codes))

    def asked(self, latent: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b q h w"]]:
        """The library's own output and ids.

        Raises:
            ModelError: It takes no such latents.
        """
        b, _, h, w = latent.shape
        given = {IMAGE: latent, ROWS_LAST: _rows(latent), ROWS_FIRST: latent.flatten(2)}[self._layout]
        try:
            quantized, ids = self.quantizer(given)[:2]
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{_name(self.quantizer)} takes no latents {tuple(latent.shape)} (batch, channels, rows, columns), "
                f"given to it as {tuple(given.shape)}: {reason}; dim, channel order and accept_image_fmap must fit"
            ) from error
        if self._layout == ROWS_LAST:
            quantized = quantized.transpose(1, 2)
        ids = ids.reshape(b, -1, h * w) if self._ids_first else ids.reshape(b, h * w, -1).transpose(1, 2)
        return quantized.reshape(b, -1, h, w), ids.reshape(b, -1, h, w).long()

    def choose(self, latent: Float[Tensor, "b c h w"]) -> list[Choice]:
        _, ids = self.asked(latent)
        inside = _grid(self._inward(_rows(latent)), latent)
        if self.joins == BESIDE:
            pieces = inside.chunk(len(self.parts), 1)
            return [self._sure(stage, piece, piece, ids[:, stage]) for stage, piece in enumerate(pieces)]
        rest, found = inside, []
        for stage, part in enumerate(self.parts):
            found.append(self._sure(stage, rest, inside, ids[:, stage]))
            rest = rest - part.embed(ids[:, stage])
        return found

    def _sure(
        self, stage: int, seen: Float[Tensor, "b d h w"], whole: Float[Tensor, "b d h w"], ids: Int[Tensor, "b h w"]
    ) -> Choice:
        """The library's tokens of a stage, doubtful where ours are or where the two differ."""
        part, compared = self.parts[stage], self._compared(stage, seen)
        if isinstance(part, TableCodes):
            # A small remainder is as uncertain as the whole vector was.
            stretched = compared.norm(dim=1) / seen.norm(dim=1).clamp_min(_EPSILON)
            ours = nearest_rows(compared, part.weight, reach=whole.norm(dim=1) * stretched)
        else:
            ours = part.nearest(compared)
        return Choice(ids, ours.doubtful | (ours.tokens != ids))

    def joined(self, embedded: Sequence[Float[Tensor, "b d h w"]]) -> Float[Tensor, "b e h w"]:
        codes = torch.cat(list(embedded), 1) if self.joins == BESIDE else torch.stack(list(embedded)).sum(0)
        return _grid(self._outward(_rows(codes)), codes)

    def check(self, latent: Float[Tensor, "b c h w"]) -> None:
        """Return quietly if the codes of the library's ids make the library's output.

        Raises:
            ModelError: They do not: an option changes codes in a way that is not known here.
        """
        quantized, ids = self.asked(latent)
        if ids.shape[1] != len(self.parts):
            raise ModelError(
                f"{_name(self.quantizer)} returned {ids.shape[1]} ids per position from {len(self.parts)} codebooks; "
                f"{_INSTEAD}"
            )
        ours = self.joined([part.embed(ids[:, stage]) for stage, part in enumerate(self.parts)])
        away = float((ours - quantized).abs().amax()) if ours.shape == quantized.shape else math.inf
        if not away <= 1e-4 * max(1.0, float(quantized.abs().amax())):
            raise ModelError(
                f"{_name(self.quantizer)} returns other vectors than the codes of its tokens (up to {away:.3g} apart): "
                f"an option of it changes them after look-up; {_INSTEAD}"
            )


_INSTEAD = "pass a pair of callables (choose, embed) and codebook=K codes, or implement the adapter protocol"


def _rows(latent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    return latent.flatten(2).transpose(1, 2)


def _grid(rows: Float[Tensor, "b n c"], like: Float[Tensor, "b e h w"]) -> Float[Tensor, "b c h w"]:
    return rows.transpose(1, 2).unflatten(2, like.shape[2:])


def _name(quantizer: nn.Module) -> str:
    return f"{LIBRARY}.{_kind(quantizer)}"


def what(value: object) -> str:
    """A value in words, for messages."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _kind(quantizer: object) -> str | None:
    """The library's class that an object is of, a subclass of one's own included; None if it is of none."""
    classes = (kind for kind in type(quantizer).__mro__ if kind.__module__.partition(".")[0] == LIBRARY)
    return next((kind.__name__ for kind in classes), None)


def library_quantizer(quantizer: object) -> LibraryQuantizer | None:
    """A quantizer of vector-quantize-pytorch as parts; None for any other object.

    Raises:
        ModelError: A kind, or an option, that cannot be read as codebooks; or it was never given its codes.
    """
    kind = _kind(quantizer)
    if kind is None or not isinstance(quantizer, nn.Module):
        return None
    if kind not in _READERS:
        raise ModelError(f"{LIBRARY}.{kind} is none of the quantizers known here: {', '.join(_READERS)}; {_INSTEAD}")
    return _READERS[kind](quantizer)


def _refuse(quantizer: Any, *options: str) -> None:
    for option in options:
        if getattr(quantizer, option, False):
            raise ModelError(f"{_name(quantizer)} with {option} cannot be read as a codebook; {_INSTEAD}")


def _tables(layer: Any) -> list[TableCodes]:
    """The codebooks of a VectorQuantize: one, or one per head."""
    codebook = layer._codebook
    _refuse(layer, "accept_3d_fmap")
    if codebook.affine_param or codebook.vq_bridge is not None:
        option = "affine_param" if codebook.affine_param else "vq_bridge"
        raise ModelError(f"{LIBRARY}.VectorQuantize with {option} cannot be read as a codebook; {_INSTEAD}")
    if not bool(codebook.initted):
        raise ModelError(
            f"{LIBRARY}.VectorQuantize with kmeans_init has no codes yet (initted is False); "
            "train it, or load its weights, before wrapping it"
        )
    return [table_codes(table) for table in codebook.embed]


def _unit(seen: Tensor) -> Tensor:
    return F.normalize(seen, dim=1, eps=_EPSILON)


def _vector_quantize(quantizer: Any) -> LibraryQuantizer:
    tables = _tables(quantizer)
    layout = IMAGE if quantizer.accept_image_fmap else ROWS_LAST if quantizer.channel_last else ROWS_FIRST
    return LibraryQuantizer(
        quantizer,
        tables if len(tables) == quantizer.heads else tables * quantizer.heads,
        joins=BESIDE,
        layout=layout,
        inward=quantizer.project_in,
        outward=quantizer.project_out,
        compared=lambda _, seen: _unit(seen) if quantizer.use_cosine_sim else seen,
    )


def _residual_vq(quantizer: Any) -> LibraryQuantizer:
    _refuse(quantizer, "implicit_neural_codebook", "diveq")
    layers = list(quantizer.layers)
    if quantizer.shared_codebook:
        parts = _tables(layers[0]) * len(layers)
    else:
        parts = [table for layer in layers for table in _tables(layer)]
    return LibraryQuantizer(
        quantizer,
        parts,
        layout=IMAGE if quantizer.accept_image_fmap else ROWS_LAST,
        inward=quantizer.project_in,
        outward=quantizer.project_out,
        compared=lambda stage, seen: _unit(seen) if layers[stage].use_cosine_sim else seen,
    )


def _sim_vq(quantizer: Any) -> LibraryQuantizer:
    layers = list(quantizer.layers) if hasattr(quantizer, "layers") else [quantizer]
    with torch.no_grad():
        parts = [table_codes(layer.codebook) for layer in layers]
    return LibraryQuantizer(quantizer, parts, layout=ROWS_FIRST if quantizer.channel_first else ROWS_LAST)


def _turned(quantizer: Any, rows: Float[Tensor, "b n c"], *, back: bool = False) -> Float[Tensor, "b n c"]:
    """Every codebook's channels turned by the quantizer's rotation, if it has one."""
    if not quantizer.orthogonal_rotation:
        return rows
    turn = quantizer.orthogonal_rot.T if back else quantizer.orthogonal_rot
    return (rows.unflatten(2, (quantizer.num_codebooks, -1)) @ turn).flatten(2)


def _fsq_values(quantizer: Any, scale: Sequence[float] | None = None) -> list[list[float]]:
    """The values that each channel of an FSQ can take, times a scale per channel."""
    steps = [int(one) for one in quantizer._levels]
    if quantizer.preserve_symmetry:
        values = [[2 * i / (n - 1) - 1 for i in range(n)] for n in steps]
    else:
        values = [[(i - n // 2) / (n // 2) for i in range(n)] for n in steps]
    scales = scale or [1.0] * len(steps)
    return [[value * one for value in row] for row, one in zip(values, scales, strict=True)]


def _fsq_bound(quantizer: Any, seen: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """Where a vector lies among the values of an FSQ before it is rounded."""
    pieces = seen.unflatten(2, (quantizer.num_codebooks, -1))
    squeeze = (lambda x: x.clamp(-1, 1)) if quantizer.bound_hard_clamp else torch.tanh
    if quantizer.preserve_symmetry:
        return cast(Tensor, squeeze(pieces)).flatten(2)
    steps = quantizer._levels
    half = (steps - 1) * (1 + 1e-3) / 2
    offset = torch.where(steps % 2 == 0, 0.5, 0.0)
    shift = offset / half if quantizer.bound_hard_clamp else torch.atanh(offset / half)
    return ((squeeze(pieces + shift) * half - offset) / (steps // 2)).flatten(2)


def _fsq(quantizer: Any) -> LibraryQuantizer:
    if not quantizer.return_indices:
        raise ModelError(
            f"{_name(quantizer)} with return_indices=False gives no tokens; make it with return_indices=True"
        )
    return LibraryQuantizer(
        quantizer,
        [LatticeCodes(_fsq_values(quantizer))] * quantizer.num_codebooks,
        joins=BESIDE,
        layout=ROWS_FIRST if quantizer.channel_first else ROWS_LAST,
        inward=lambda rows: _fsq_bound(quantizer, _turned(quantizer, quantizer.project_in(rows))),
        outward=lambda rows: quantizer.project_out(_turned(quantizer, rows, back=True)),
    )


def _lfq_codes(quantizer: Any) -> LatticeCodes:
    d = quantizer.codebook_dim
    value = quantizer.codebook_scale / (math.sqrt(d) if quantizer.spherical else 1)
    return LatticeCodes([(-value, value)] * d, last_is_least=True)


def _lfq(quantizer: Any) -> LibraryQuantizer:
    return LibraryQuantizer(
        quantizer,
        [_lfq_codes(quantizer)] * quantizer.num_codebooks,
        joins=BESIDE,
        layout=ROWS_FIRST if quantizer.channel_first else ROWS_LAST,
        inward=lambda rows: _turned(quantizer, quantizer.project_in(rows)),
        outward=lambda rows: quantizer.project_out(_turned(quantizer, rows, back=True)),
    )


def _residual_fsq(quantizer: Any) -> LibraryQuantizer:
    layers, scales = list(quantizer.layers), quantizer.scales

    def inward(rows: Tensor) -> Tensor:
        rows, limit = quantizer.project_in(rows), quantizer.soft_clamp_input_value
        return rows if limit is None else (rows / limit).tanh() * limit

    def compared(stage: int, seen: Tensor) -> Tensor:
        scale = scales[stage].to(seen)
        return _grid(_fsq_bound(layers[stage], _rows(seen) / scale) * scale, seen)

    return LibraryQuantizer(
        quantizer,
        [LatticeCodes(_fsq_values(layer, one.tolist())) for layer, one in zip(layers, scales, strict=True)],
        layout=ROWS_FIRST if quantizer.is_channel_first else ROWS_LAST,
        inward=inward,
        outward=quantizer.project_out,
        compared=compared,
        ids_first=quantizer.is_channel_first,
    )


def _residual_lfq(quantizer: Any) -> LibraryQuantizer:
    return LibraryQuantizer(
        quantizer,
        [_lfq_codes(layer) for layer in quantizer.layers],
        inward=quantizer.project_in,
        outward=quantizer.project_out,
    )


_READERS: dict[str, Callable[[Any], LibraryQuantizer]] = {
    "VectorQuantize": _vector_quantize,
    "ResidualVQ": _residual_vq,
    "FSQ": _fsq,
    "LFQ": _lfq,
    "SimVQ": _sim_vq,
    "ResidualFSQ": _residual_fsq,
    "ResidualLFQ": _residual_lfq,
    "ResidualSimVQ": _sim_vq,
}
