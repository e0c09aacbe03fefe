"""Who believes what a search found: the extractor that was searched, those that took no part, and the judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vqcortex.adapters.protocol import Adapter
from vqcortex.evaluation.codebook_level import changes
from vqcortex.evaluation.fills import decoded
from vqcortex.evaluation.intervals import Resampling, intervals
from vqcortex.evaluation.judge import Judge, ask, probability_of
from vqcortex.evaluation.tables import ALL
from vqcortex.results import Column, Table

SEARCHED, HELD_OUT, JUDGE = "searched", "held out", "judge"
UNTOUCHED = "untouched"  # the start images, as if a strategy had found them
Measure = Callable[[Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Witnesses:
    """Who is asked about grids (m, h, w) that are to show a target (m,).

    Args:
        extractors: By name, from codes (m, d, h, w) to calibrated log-probabilities (m, c).
        searched: Names of those that the search made large.
        judges: Classifiers of pictures.
        plausible: By column of the table, what a grid and its target measure, (m,); None: not known of this model.
    """

    extractors: Mapping[str, Callable[[Tensor], Tensor]]
    searched: tuple[str, ...]
    judges: Sequence[Judge]
    plausible: Mapping[str, Measure | None]

    def roles(self) -> dict[str, str]:
        """What part each took, by name."""
        own = {name: SEARCHED if name in self.searched else HELD_OUT for name in self.extractors}
        return own | {judge.name: JUDGE for judge in self.judges}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """What was measured of one strategy's grids, means over restarts.

    Args:
        scope: Where tokens could change, in words.
        strategy: How it was searched.
        target: Concept searched for, (b,).
        restarts: Per image.
        roles: By witness.
        probability: Of the target, by witness, (b,).
        plausible: By column, (b,); None: not known.
        changed: Tokens that differ from the start, (b,); None: there was no start.
    """

    scope: str
    strategy: str
    target: Int[Tensor, " b"]
    restarts: int
    roles: Mapping[str, str]
    probability: Mapping[str, Float[Tensor, " b"]]
    plausible: Mapping[str, Float[Tensor, " b"] | None]
    changed: Float[Tensor, " b"] | None

    def mean_of(self, role: str) -> Float[Tensor, " b"] | None:
        """Mean probability over the witnesses of a role, per image; None where there is none."""
        some = [self.probability[name] for name, one in self.roles.items() if one == role]
        return torch.stack(some).mean(0) if some else None

    @property
    def adversarial_index(self) -> Float[Tensor, " b"]:
        """Probability by what was searched, minus the judges' mean, -1 to 1."""
        searched, judges = self.mean_of(SEARCHED), self.mean_of(JUDGE)
        assert searched is not None
        assert judges is not None
        return searched - judges


@torch.no_grad()
def measure_beliefs(
    adapter: Adapter,
    witnesses: Witnesses,
    scope: str,
    strategy: str,
    grids: Int[Tensor, "b r h w"],
    target: Int[Tensor, " b"],
    start: Int[Tensor, "b h w"] | None,
) -> Beliefs:
    """Ask every witness about every restart; nothing is chosen by any of them.

    Args:
        adapter: The model whose codebook was searched.
        witnesses: Who is asked.
        scope: See `Beliefs`; so are strategy, target.
        grids: What was found.
        start: What it was made from; None: from nothing.
    """
    restarts = grids.shape[1]
    flat, wanted = grids.flatten(0, 1), target.repeat_interleave(restarts)
    embedded, pixels = adapter.embed(flat), decoded(adapter, flat)
    answers = {name: one(embedded).cpu().double() for name, one in witnesses.extractors.items()}
    answers |= {judge.name: ask(judge, pixels) for judge in witnesses.judges}
    measured = {name: None if one is None else one(flat, wanted) for name, one in witnesses.plausible.items()}
    return Beliefs(
        scope=scope, strategy=strategy, target=target.cpu(), restarts=restarts, roles=witnesses.roles(),
        probability={name: _mean(probability_of(one, wanted), restarts) for name, one in answers.items()},
        plausible={name: None if one is None else _mean(one, restarts) for name, one in measured.items()},
        changed=None if start is None else changes(start, grids),
    )  # fmt: skip


def _mean(values: Float[Tensor, " m"], restarts: int) -> Float[Tensor, " b"]:
    return values.cpu().double().view(-1, restarts).mean(1)


def join_beliefs(parts: Sequence[Beliefs]) -> Beliefs:
    """One of several that were measured alike, of other images."""
    first = parts[0]

    return Beliefs(
        scope=first.scope, strategy=first.strategy, restarts=first.restarts, roles=first.roles,
        target=torch.cat([one.target for one in parts]),
        probability={name: torch.cat([one.probability[name] for one in parts]) for name in first.probability},
        plausible={name: _joined([one.plausible[name] for one in parts]) for name in first.plausible},
        changed=_joined([one.changed for one in parts]),
    )  # fmt: skip


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [one for one in parts if one is not None]
    return torch.cat(known) if known else None


PROBABILITY = "probability, 0 to 1"
WHOSE = {
    "scope": Column(unit="name", meaning="Where tokens could change: in a region, or everywhere and from nothing."),
    "strategy": Column(unit="name", meaning="How it was searched; untouched: the start images themselves."),
    "target": Column(unit="name", meaning="Concept searched for; all: every search."),
    "images": Column(unit="images", meaning="Searches; the figures are means over them and over restarts."),
    "restarts": Column(unit="restarts", meaning="Independent restarts of each."),
}  # fmt: skip
BELIEF_COLUMNS = WHOSE | {
    "searched_probability": Column(
        unit=PROBABILITY, meaning="What the searched extractors give the target, calibrated: this was made large.",
    ),
    "held_out_probability": Column(
        unit=PROBABILITY, better="higher",
        meaning="Mean over the study's extractors that took no part; empty where there is none.",
    ),
    "judges_probability": Column(
        unit=PROBABILITY, better="higher", meaning="Mean over judges, which see the picture and took no part.",
    ),
    "adversarial_index": Column(
        unit="probability, -1 to 1", better="lower",
        meaning="Searched extractors' minus judges' probability: high where the extractor was fooled.",
    ),
    "adversarial_low": Column(unit="probability, -1 to 1", meaning="Lower end; empty with one search."),
    "adversarial_high": Column(unit="probability, -1 to 1", meaning="Upper end; empty with one search."),
    "log_frequency": Column(
        unit="nats", better="higher",
        meaning="Mean logarithm, over free positions, of a code's frequency in training images.",
    ),
    "neighbour_log_odds": Column(
        unit="nats", better="higher",
        meaning="Mean logarithm of how often neighbours meet in training images, over chance; 0: as chance has it.",
    ),
    "log_likelihood": Column(
        unit="nats", better="higher",
        meaning="Log-likelihood of the whole grid by the model's own generator; empty where it has none.",
    ),
    "changed_tokens": Column(unit="tokens", better="lower", meaning="Tokens unlike the start; empty without one."),
}  # fmt: skip
WITNESS_COLUMNS = WHOSE | {
    "witness": Column(unit="name", meaning="An extractor of the study, or a judge."),
    "role": Column(unit="name", meaning="searched: its answer was made large; held out and judge: took no part."),
    "probability": Column(unit=PROBABILITY, meaning="Mean calibrated probability of the target.", better="higher"),
}  # fmt: skip


def belief_table(believed: Sequence[Beliefs], concepts: Sequence[str], resampling: Resampling) -> Table:
    """Strategies side by side, over all searches and per target."""
    rows = [{**about, **_row(one, rows, resampling)} for one in believed for about, rows in _groups(one, concepts)]
    return Table("search_beliefs", BELIEF_COLUMNS, rows)


def witness_table(believed: Sequence[Beliefs], concepts: Sequence[str]) -> Table:
    """Every witness by itself."""
    rows = [
        {**about, "witness": name, "role": one.roles[name], "probability": float(values[rows].mean())}
        for one in believed
        for about, rows in _groups(one, concepts)
        for name, values in one.probability.items()
    ]
    return Table("search_witnesses", WITNESS_COLUMNS, rows)


def _groups(one: Beliefs, concepts: Sequence[str]) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """What stands in front of a row, and the images behind it: all, then those of each target."""
    everyone = torch.ones_like(one.target, dtype=torch.bool)
    groups = [(ALL, everyone), *((concepts[t], one.target == t) for t in one.target.unique().tolist())]
    for name, rows in groups:
        about = {"scope": one.scope, "strategy": one.strategy, "target": name, "images": int(rows.sum())}
        yield {**about, "restarts": one.restarts}, rows


def _row(one: Beliefs, rows: Tensor, resampling: Resampling) -> dict[str, Any]:
    (index,) = intervals(one.adversarial_index[rows][None], resampling)
    means = {role: _value(one.mean_of(role), rows) for role in (SEARCHED, HELD_OUT, JUDGE)}
    return {
        "searched_probability": means[SEARCHED],
        "held_out_probability": means[HELD_OUT],
        "judges_probability": means[JUDGE],
        "adversarial_index": index.value,
        "adversarial_low": index.low,
        "adversarial_high": index.high,
        **{name: _value(values, rows) for name, values in one.plausible.items()},
        "changed_tokens": _value(one.changed, rows),
    }


def _value(values: Tensor | None, rows: Tensor) -> float | None:
    return None if values is None else float(values[rows].mean())
