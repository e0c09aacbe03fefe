"""Do judges see a concept go when its tokens are taken out, and come when they are put in? Counts in, verdicts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool
from torch import Tensor

from vqcortex.errors import DataError
from vqcortex.evaluation.trust import LEAST_MAPS, WHOLE, Reason, Standing
from vqcortex.judges.quality import wilson
from vqcortex.results import Column, Table
from vqcortex.significance import sign_flip_p

Kind = Literal["remove", "insert", "swap"]
KINDS: tuple[Kind, ...] = ("remove", "insert", "swap")
OURS, FREQUENCY, RANDOM = "concept_tokens", "token_frequency", "random_codes"
ARMS = (OURS, FREQUENCY, RANDOM)
ALPHA = 0.05
SUBJECT = "editability"
DOES = {"remove": "taking them out", "insert": "putting them in", "swap": "swapping them in"}
Row = Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Edits of one kind, made for one concept with so many of its tokens.

    Args:
        concept: Number of the concept taken out, put in, or swapped for.
        kind: "remove", "insert" or "swap".
        tokens: Concept tokens used, the best first.
        judges: j names.
        success: By arm, whether each judge agrees that the edit did what it should, (j, b).
        cells: By arm, mean number of tokens changed per image.
    """

    concept: int
    kind: Kind
    tokens: int
    judges: tuple[str, ...]
    success: dict[str, Bool[Tensor, "j b"]]
    cells: dict[str, float]


COLUMNS = {
    "concept": Column(unit="name", meaning="Concept taken out, put in, or swapped for; all: every concept."),
    "kind": Column(
        unit="name",
        meaning="remove: out of its images; insert: into images of others; swap: of another's tokens for its own.",
    ),
    "tokens": Column(unit="tokens", meaning="Tokens of the list that were used, the best first."),
    "arm": Column(unit="name", meaning="Whose list: concept_tokens, token_frequency of the concept, or random_codes."),
    "judge": Column(unit="name", meaning="Classifier that took no part."),
    "images": Column(unit="images", meaning="Edits behind the share."),
    "success": Column(
        unit="share, 0 to 1", better="higher",
        meaning="Edits after which the judge no longer finds the concept likeliest (remove), or finds it likelier "
        "than what was shown (insert, swap).",
    ),
    "low": Column(unit="share, 0 to 1", meaning="Lower end of its 95 % interval (Wilson); empty without images."),
    "high": Column(unit="share, 0 to 1", meaning="Upper end."),
    "beyond": Column(
        unit="share, -1 to 1", better="higher",
        meaning="Success of the concept's own tokens minus this arm's, same images.",
    ),
    "p": Column(unit="probability, 0 to 1", meaning="Sign-flip test of that difference; empty for our own arm."),
    "changed_tokens": Column(unit="tokens", meaning="Tokens changed, mean over images."),
}  # fmt: skip


def editability_table(trials: Sequence[Trials], concepts: Sequence[str]) -> Table:
    """Success per concept, kind, size, arm and judge; and over all concepts."""
    rows = [row for one in trials for row in _rows(one, concepts[one.concept])]
    whole = [row for one in _together(trials) for row in _rows(one, WHOLE)]
    return Table("editability", COLUMNS, [*whole, *rows])


def _together(trials: Sequence[Trials]) -> Iterable[Trials]:
    """The trials of all concepts as one, per kind and size."""
    for kind, tokens in dict.fromkeys((one.kind, one.tokens) for one in trials):
        some = [one for one in trials if (one.kind, one.tokens) == (kind, tokens)]
        count = [one.success[OURS].shape[1] for one in some]
        yield Trials(
            concept=-1, kind=kind, tokens=tokens, judges=some[0].judges,
            success={arm: torch.cat([one.success[arm] for one in some], 1) for arm in ARMS},
            cells={
                arm: sum(one.cells[arm] * n for one, n in zip(some, count, strict=True)) / max(sum(count), 1)
                for arm in ARMS
            },
        )  # fmt: skip


def _rows(one: Trials, name: str) -> Iterable[dict[str, Any]]:
    for arm in ARMS:
        for number, judge in enumerate(one.judges):
            won, images = one.success[arm][number], one.success[arm].shape[1]
            low, high = wilson(int(won.sum()), images) if images else (None, None)
            beyond = one.success[OURS][number].double() - won.double()
            yield {
                "concept": name, "kind": one.kind, "tokens": one.tokens, "arm": arm, "judge": judge, "images": images,
                "success": float(won.double().mean()) if images else None, "low": low, "high": high,
                "beyond": float(beyond.mean()) if images else None,
                "p": float(sign_flip_p(beyond[None])[0]) if images and arm != OURS else None,
                "changed_tokens": one.cells[arm],
            }  # fmt: skip


def editability_reasons(table: Table, concepts: Sequence[str]) -> list[Reason]:
    """Evidence for or against the explanation, for the whole and for each concept.

    At the largest size a kind of edit speaks for the tokens where they do better than as many random codes for every
    judge, and against them where they do worse for every judge, each at the 5 % level. Nothing that speaks for them is
    doubtful; something against them and nothing for them is bad.

    Raises:
        DataError: The table is empty.
    """
    if not table.rows:
        raise DataError("the table of editability is empty; run 'vqcortex editability' again")
    most = max(row["tokens"] for row in table.rows)
    return [_reason(name, table.where(concept=name, tokens=most)) for name in (WHOLE, *concepts)]


def _reason(name: str, rows: Sequence[Row]) -> Reason:
    kinds = {kind: [row for row in rows if row["kind"] == kind and row["images"] >= LEAST_MAPS] for kind in KINDS}
    known = {kind: some for kind, some in kinds.items() if some}
    images = max((row["images"] for row in rows), default=0)
    if not known:
        text = f"editability: {images} test images are too few to say; at least {LEAST_MAPS} are needed"
        return Reason(concept=name, subject=SUBJECT, standing="not known", text=text, images=images)
    signs = [_sign(some) for some in known.values()]
    standing: Standing = "fine" if max(signs) > 0 else "bad" if min(signs) < 0 else "doubtful"
    shares = [
        f"{DOES[kind]} on {_share(some, OURS)} (random codes {_share(some, RANDOM)})" for kind, some in known.items()
    ]
    of = "a concept's tokens" if name == WHOLE else f"the tokens of {name}"
    beats = "beats as many random codes" if max(signs) > 0 else "never surely beats as many random codes"
    text = f"editing {of} {beats}: judges follow {', '.join(shares)} of up to {images:,} test images"
    return Reason(concept=name, subject=SUBJECT, standing=standing, text=text, images=images)


def _sign(rows: Sequence[Row]) -> int:
    """1 where random codes surely do worse for every judge, -1 where they surely do better, else 0."""
    random = [row for row in rows if row["arm"] == RANDOM]
    if not all(row["p"] <= ALPHA for row in random):
        return 0
    return int(all(row["beyond"] > 0 for row in random)) - int(all(row["beyond"] < 0 for row in random))


def _share(rows: Sequence[Row], arm: str) -> str:
    shares = [row["success"] for row in rows if row["arm"] == arm]
    return f"{sum(shares) / len(shares) * 100:.1f} %"
