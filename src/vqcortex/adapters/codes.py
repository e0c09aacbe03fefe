"""Tables of codes: what a token stands for, and which token a vector is nearest to.

Families differ in three ways here: codes as stored or brought to unit length, distance or angle, and tables that are
never written down because a code is its own binary digits. Each is one small class with the same four members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.protocol import Level, join_levels, split_levels
from vqcortex.errors import ModelError

# A latent vector computed in float32 by a deep network moves by about this share of its length when the batch size
# changes which convolution kernel is used. A choice that such a move could turn is called doubtful.
ROUNDING = 2e-5
# Largest virtual table that is ever written down, in numbers (1 GB of float32).
MOST_NUMBERS = 2**28
_PIECE = 2**21  # numbers held at once while distances are computed: what a processor's cache holds
_CANDIDATES = 8  # codes per vector that are compared exactly


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens of a batch, and how sure they are.

    Args:
        tokens: (b, h, w).
        doubtful: True where rounding could have chosen another code, (b, h, w).
        logits: The family's own score of every code, higher is likelier, (b, k, h, w); None if it has none.
    """

    tokens: Int[Tensor, "b h w"]
    doubtful: Tensor
    logits: Tensor | None = None


@runtime_checkable
class Codes(Protocol):
    """A codebook.

    Attributes:
        k: Number of codes.
        d: Numbers per code.
    """

    @property
    def k(self) -> int: ...
    @property
    def d(self) -> int: ...

    def table(self) -> Float[Tensor, "k d"]:
        """All codes as used for look-up.

        Raises:
            ModelError: A virtual table too big to be written down.
        """
        ...

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Codes of tokens, channels first."""
        ...

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Choice:
        """The code nearest to each vector."""
        ...


def look_up(tokens: Int[Tensor, "b h w"], table: Float[Tensor, "k d"]) -> Float[Tensor, "b d h w"]:
    """Rows of a table, channels first."""
    return F.embedding(tokens, table).permute(0, 3, 1, 2)


def nearest_rows(
    embedded: Float[Tensor, "b d h w"], table: Float[Tensor, "k d"], *, reach: Float[Tensor, "b h w"] | None = None
) -> Choice:
    """The row of a table nearest to each vector by Euclidean distance, the lower index in a tie.

    Args:
        embedded: Vectors, channels first.
        table: k codes.
        reach: Length whose rounding each vector carries, (b, h, w): what is left of a long vector after subtracting
            others is as uncertain as the long one was. None: each vector's own length.
    """
    b, d, h, w = embedded.shape
    flat = embedded.permute(0, 2, 3, 1).reshape(-1, d)
    lengths = flat.norm(dim=1) if reach is None else reach.reshape(-1)
    away = 2 * rounding_of(embedded.dtype) * lengths.to(_wide(flat))
    # Half precision could not tell close codes apart.
    wider = torch.promote_types(flat.dtype, torch.float32)
    flat, table = flat.to(wider), table.to(wider)
    squares = table.square().sum(1)
    step = max(1, min(_PIECE // len(table), _PIECE // (_CANDIDATES * d)))
    pieces = zip(flat.split(step), away.split(step), strict=True)
    found = [_nearest_piece(piece, table, squares, far) for piece, far in pieces] if len(flat) else []
    tokens = torch.cat([one[0] for one in found]) if found else flat.new_zeros(0, dtype=torch.long)
    doubtful = torch.cat([one[1] for one in found]) if found else flat.new_zeros(0, dtype=torch.bool)
    return Choice(tokens.view(b, h, w), doubtful.view(b, h, w))


def rounding_of(dtype: torch.dtype) -> float:
    """Share of its length by which a latent vector moves with the batch it was computed in."""
    return max(ROUNDING, 4 * torch.finfo(dtype).eps)


def _wide(like: Tensor) -> torch.dtype:
    # Apple's devices have no float64.
    return torch.float32 if like.device.type == "mps" else torch.float64


def _nearest_piece(
    flat: Float[Tensor, "n d"],
    table: Float[Tensor, "k d"],
    squares: Float[Tensor, " k"],
    away: Float[Tensor, " n"],
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    # |x - c|² without |x|², which is the same for every code.
    distance = torch.addmm(squares[None], flat, table.T, alpha=-2)
    best = distance.topk(min(_CANDIDATES, len(table)), dim=1, largest=False)
    # The best few are compared again in float64: the subtraction of large squares above costs digits, and a row that
    # is met exactly must win whatever the length of the codes. In the order of the table, so that ties go to the first.
    candidates = best.indices.sort(1).values  # (n, m)
    x = flat.to(_wide(flat))
    near = table[candidates].to(x.dtype)  # (n, m, d)
    exact = (near - x[:, None]).square().sum(2)
    shortest, place = exact.min(1, keepdim=True)
    apart = (near - near.gather(1, place[..., None].expand(-1, -1, near.shape[2]))).norm(dim=2)
    # Moving x by e turns a difference of squared distances by at most 2·e·|c2 - c1|.
    doubtful = ((exact - shortest <= away[:, None] * apart) & (apart > 0)).any(1)
    tokens = candidates.gather(1, place)[:, 0]
    if len(table) > _CANDIDATES:
        # A code left out could matter only if |x - c| were within `away` of the shortest, as |c2 - c1| is no longer
        # than both distances together. Then all codes that are as near are compared.
        digits = 8 * torch.finfo(flat.dtype).eps * (flat.square().sum(1) + squares.amax())
        border = (shortest[:, 0].sqrt() + away).square() - x.square().sum(1) + digits
        for row in (best.values.amax(1) <= border).nonzero()[:, 0].tolist():
            crowd = (distance[row] <= border[row]).nonzero()[:, 0]
            first, is_doubtful = _nearest_exactly(x[row], table[crowd].to(x.dtype), away[row])
            tokens[row], doubtful[row] = crowd[first], is_doubtful
    return tokens, doubtful


def _nearest_exactly(x: Float[Tensor, " d"], table: Float[Tensor, "k d"], away: Tensor) -> tuple[Tensor, Tensor]:
    """As `_nearest_piece` for one vector, without any shortcut; equal rows are one code, that of the lowest index."""
    distance = (table - x).square().sum(1)
    token = distance.argmin()
    apart = (table - table[token]).norm(dim=1)
    turns = (distance - distance[token] <= away * apart) & (apart > 0)
    return token, turns.any()


def best_logit(logits: Float[Tensor, "b k h w"]) -> Choice:
    """The code with the largest logit, as families choose that score every code with a network."""
    if logits.shape[1] == 1:
        none = torch.zeros_like(logits[:, 0], dtype=torch.bool)
        return Choice(none.long(), none, logits)
    two = logits.topk(2, dim=1)
    gap = two.values[:, 0] - two.values[:, 1]
    doubtful = gap <= 4 * rounding_of(logits.dtype) * logits.abs().amax(1)
    return Choice(logits.argmax(1), doubtful, logits)


@final
class TableCodes(nn.Module):
    """A table used as it is stored: nearest by Euclidean distance.

    Args:
        k: Codes.
        d: Numbers per code.
    """

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(k, d), requires_grad=False)

    @property
    def k(self) -> int:
        return len(self.weight)

    @property
    def d(self) -> int:
        return self.weight.shape[1]

    def table(self) -> Float[Tensor, "k d"]:
        return self.weight

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return look_up(tokens, self.weight)

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Choice:
        return nearest_rows(embedded, self.weight)


@final
class UnitCodes(nn.Module):
    """A table whose rows are brought to unit length before use; nearest by angle.

    Args:
        k: Codes.
        d: Numbers per code.

    Source:
        Yu et al. 2021, arXiv:2110.04627, section 3.2 (l2-normalised codes).
    """

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(k, d), requires_grad=False)

    @property
    def k(self) -> int:
        return len(self.weight)

    @property
    def d(self) -> int:
        return self.weight.shape[1]

    def table(self) -> Float[Tensor, "k d"]:
        return F.normalize(self.weight, dim=1)

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return look_up(tokens, self.table())

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Choice:
        return nearest_rows(F.normalize(embedded, dim=1), self.table())


@final
class LatticeCodes(nn.Module):
    """Codes that are points of a lattice: no table is stored, a token is a number in mixed radix.

    Args:
        values: The values that each channel can take, ascending.
        last_is_least: Whether the last channel is the least significant digit of a token; else the first one is.

    Source:
        Yu et al. 2023, arXiv:2310.05737, section 3.2 (look-up free: two values per channel); Mentzer et al. 2023,
        arXiv:2309.15505, section 3 (finite scalar: several).
    Example:
        >>> LatticeCodes([(-1.0, 1.0)] * 18).k
        262144
    """

    def __init__(self, values: Sequence[Sequence[float]], *, last_is_least: bool = False) -> None:
        super().__init__()
        self._values = tuple(tuple(map(float, one)) for one in values)
        order = range(len(self._values))
        self._order = tuple(reversed(order) if last_is_least else order)  # channels, least significant first
        # Follows the module from device to device; there is nothing else to hold.
        self._anchor = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def k(self) -> int:
        return math.prod(len(one) for one in self._values)

    @property
    def d(self) -> int:
        return len(self._values)

    def table(self) -> Float[Tensor, "k d"]:
        if self.k * self.d > MOST_NUMBERS:
            raise ModelError(
                f"a table of {self.k} codes of {self.d} numbers is too big to be written down (at most {MOST_NUMBERS} "
                "numbers); use embed and nearest, which need none"
            )
        everything = torch.arange(self.k, device=self._anchor.device)
        return self.embed(everything[None, None])[0, :, 0].T.contiguous()

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        channels, rest = {}, tokens
        for channel in self._order:
            row = self._row(channel, tokens.device)
            channels[channel] = row[rest % len(row)]
            rest = rest // len(row)
        return torch.stack([channels[channel] for channel in range(self.d)], 1)

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Choice:
        tokens = torch.zeros_like(embedded[:, 0], dtype=torch.long)
        doubtful = torch.zeros_like(tokens, dtype=torch.bool)
        place = 1
        away = rounding_of(embedded.dtype) * embedded.norm(dim=1).clamp_min(1)
        for channel in self._order:
            value, row = embedded[:, channel].contiguous(), self._row(channel, embedded.device).to(embedded.dtype)
            borders = (row[1:] + row[:-1]) / 2
            # A value on the border belongs to the lower side, as `x > 0` decides in the look-up free quantizer.
            tokens = tokens + place * torch.bucketize(value, borders)
            place *= len(row)
            if len(borders):
                doubtful = doubtful | ((value[..., None] - borders).abs().amin(-1) <= away)
        return Choice(tokens, doubtful)

    def _row(self, channel: int, device: torch.device) -> Tensor:
        return torch.tensor(self._values[channel], device=device, dtype=self._anchor.dtype)


@final
class StackedCodes(nn.Module):
    """The codebooks of several levels, one after the other; a token knows its level by its number.

    Args:
        parts: One codebook per level, equal in d.
        levels: Where each stands in the row; `codes` of level i must be the rows of part i.
    """

    def __init__(self, parts: Sequence[Codes], levels: Sequence[Level]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)  # type: ignore[arg-type]
        self._levels = tuple(levels)

    @property
    def k(self) -> int:
        return sum(part.k for part in self._codes())

    @property
    def d(self) -> int:
        return self._codes()[0].d

    def _codes(self) -> list[Codes]:
        return list(self.parts)  # type: ignore[arg-type]

    def table(self) -> Float[Tensor, "k d"]:
        return torch.cat([part.table() for part in self._codes()])

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        # Any code may be put anywhere (a search tries it); what may stand where is for `levels` to say.
        found = None
        for part, level in zip(self._codes(), self._levels, strict=True):
            here = (tokens >= level.codes[0]) & (tokens < level.codes[1])
            codes = part.embed((tokens - level.codes[0]).clamp(0, part.k - 1))
            found = codes if found is None else torch.where(here[:, None], codes, found)
        assert found is not None
        return found

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Choice:
        grids = split_levels(embedded, self._levels)
        found = [part.nearest(grid) for part, grid in zip(self._codes(), grids, strict=True)]
        tokens = [one.tokens + level.codes[0] for one, level in zip(found, self._levels, strict=True)]
        return Choice(join_levels(tokens), join_levels([one.doubtful for one in found]))
