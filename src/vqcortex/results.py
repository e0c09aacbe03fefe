"""What verbs hand to faces: small immutable values, and tables whose columns say what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, final

from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.files import replacing, write_json

Better = Literal["higher", "lower", "neither"]
Level = Literal["high", "moderate", "low", "unknown"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What one column of a table holds.

    Args:
        unit: In words: "probability, 0 to 1", "images", "name".
        better: Which way is better, for measurements; "neither" for everything else.
        meaning: One sentence.
    """

    unit: str
    meaning: str
    better: Better = "neither"


@final
@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same keys, and a description of every key.

    Args:
        name: File name without ending.
        columns: In order; every row has exactly these keys.
        rows: Plain Python values: str, int, float, bool, None, or lists of them.
    """

    name: str
    columns: Mapping[str, Column]
    rows: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if set(row) != set(self.columns):
                raise ValueError(f"row {number} of table {self.name!r} has {sorted(row)}, not {sorted(self.columns)}")

    def where(self, **wanted: object) -> list[Mapping[str, Any]]:
        """Rows whose values equal the ones given."""
        return [row for row in self.rows if all(row[key] == value for key, value in wanted.items())]


def save_table(table: Table, folder: Path) -> list[Path]:
    """Write NAME.parquet and NAME.json; the column descriptions travel in both."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {key: asdict(column) for key, column in table.columns.items()}
    data = {key: [row[key] for row in table.rows] for key in table.columns}
    arrow = pa.table(data).replace_schema_metadata({"vqcortex": json.dumps(about, sort_keys=True)})
    parquet, text = folder / f"{table.name}.parquet", folder / f"{table.name}.json"
    with replacing(parquet) as temporary:
        pq.write_table(arrow, temporary)
    order = list(table.columns)  # JSON is written with sorted keys
    write_json(text, {"name": table.name, "order": order, "columns": about, "rows": [dict(row) for row in table.rows]})
    return [parquet, text]


def load_table(path: Path) -> Table:
    """Read what `save_table` wrote; `path` is the .json file."""
    value = json.loads(path.read_text())
    columns = {key: Column(**value["columns"][key]) for key in value["order"]}
    return Table(value["name"], columns, value["rows"])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How far explanations can be trusted, and why.

    Args:
        level: "high", "moderate", "low", or "unknown" where nothing was measured.
        reasons: Sentences with their numbers, the gravest first; each begins with bad, doubtful, not known or fine.
        concepts: The same for each concept by name, empty in those themselves.
    """

    level: Level = "unknown"
    reasons: tuple[str, ...] = ()
    concepts: Mapping[str, Trust] = field(default_factory=dict)

    def of(self, concept: str) -> Trust:
        """Trust in the explanations of one concept; unknown where nothing is known of it."""
        return self.concepts.get(concept, Trust(reasons=self.reasons if self.level == "unknown" else ()))


TRUST_COLUMN = Column(
    unit="name", meaning="How far explanations of the concept can be trusted: high, moderate, low, unknown."
)


def stamped(table: Table, trust: Trust) -> Table:
    """The table with one more column, `trust`: that of each row's concept."""
    rows = [{**row, "trust": trust.of(row["concept"]).level} for row in table.rows]
    return Table(table.name, {**table.columns, "trust": TRUST_COLUMN}, rows)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Traversal:
    """First-order effect of every code at every position on a concept, and how well real swaps agree.

    Args:
        concept: Index of the concept explained.
        effect: Mean over images of the linear estimate of the change of the concept's logit, (k, h, w).
        images: Images averaged over.
        cells: Verified cells as (code, row, column), best estimate first, (v, 3).
        estimated: Their linear estimates, in logits, (v,).
        measured: Their mean true change when swapped for real, in logits, (v,).
        measured_error: Standard error of `measured` over images, (v,).
    """

    concept: int
    effect: Float[Tensor, "k h w"]
    images: int
    cells: Int[Tensor, "v 3"]
    estimated: Float[Tensor, " v"]
    measured: Float[Tensor, " v"]
    measured_error: Float[Tensor, " v"]

    @property
    def code_relevance(self) -> Float[Tensor, " k"]:
        """Relevance of a code: its mean effect over positions, in logits."""
        return self.effect.mean((1, 2))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a codebook search did, for b images and r restarts of each.

    Args:
        strategy: Name in the SEARCHES registry.
        tokens: The final grids (argmax or nearest codes), (b, r, h, w).
        start: The grids it started from, (b, h, w).
        free: True where a token was allowed to change, (h, w).
        target: Concept searched for, per image, (b,).
        steps: Step numbers at which `probability` was taken.
        probability: The extractor's probability of the target for the argmax grids at those steps, (s, b, r).
    """

    strategy: str
    tokens: Int[Tensor, "b r h w"]
    start: Int[Tensor, "b h w"]
    free: Tensor
    target: Int[Tensor, " b"]
    steps: tuple[int, ...] = field(default=())
    probability: Float[Tensor, "s b r"] | None = None


def column_names(cls: type) -> list[str]:
    """Field names of a result class, in order."""
    return [one.name for one in fields(cls)]
