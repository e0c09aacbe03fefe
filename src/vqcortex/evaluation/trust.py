"""How far explanations can be trusted: figures go in, a level and its reasons come out.

An explanation says what an extractor looks at. It is about the concept only where the extractor knows it, where
classifiers that learned something else agree with it, and where the method's maps follow what was learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.errors import DataError
from vqcortex.evaluation.rank_agreement import RankAgreement
from vqcortex.evaluation.sanity.protocol import Finding
from vqcortex.judges.quality import wilson
from vqcortex.results import Better, Column, Level, Table, Trust

Standing = Literal["bad", "doubtful", "not known", "fine"]
STANDINGS: tuple[Standing, ...] = ("bad", "doubtful", "not known", "fine")
INDEPENDENT = ("judge", "extractor")
VOTING = (*INDEPENDENT, "maps")  # where one of several may err
SHARED = ("calibration", "sanity", "maps")  # what counts for every concept
LEAST_MAPS = 8  # images of a concept below which the mean correlation of their maps tells nothing
WHOLE = "all"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """From where on a figure is fine, and from where on it is bad; doubtful in between.

    Shares are measured on the way from chance (0) to perfect (1): with ten even concepts 0.6 is right on 64 %.

    Args:
        fine_share: Shares at least this far on the way are fine, 0 to 1.
        bad_share: Shares less far on the way are bad, 0 to 1.
        fine_ece: Calibration errors up to this are fine, 0 to 1.
        bad_ece: Calibration errors above this are bad, 0 to 1.
        fine_rho: Rank correlations of two extractors' maps from here on are fine, -1 to 1.
        bad_rho: Those below this are bad, -1 to 1.
    """

    fine_share: float = 0.6
    bad_share: float = 0.25
    fine_ece: float = 0.1
    bad_ece: float = 0.25
    fine_rho: float = 0.2
    bad_rho: float = 0.1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What an extractor and others said of the same test images.

    Args:
        concept: The truth, (b,).
        named: The concept that the extractor finds most probable, (b,).
        extractors: The same by the study's other extractors, by name.
        judges: The same by judges whose word counts, by name.
        why_no_judges: Why nobody is in `judges`; for readers.
        ece: The extractor's expected calibration error on test images, after temperature scaling; None: not known.
        maps: Rank correlation of maps, by the names of the two extractors; of the images `mapped`.
        mapped: Concepts of the images whose maps were compared, (m,).
    """

    concept: Int[Tensor, " b"]
    named: Int[Tensor, " b"]
    extractors: Mapping[str, Int[Tensor, " b"]] = field(default_factory=dict)
    judges: Mapping[str, Int[Tensor, " b"]] = field(default_factory=dict)
    why_no_judges: str = "no judge was asked"
    ece: float | None = None
    maps: Mapping[str, RankAgreement] = field(default_factory=dict)
    mapped: Int[Tensor, " m"] | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One figure and where it stands.

    Args:
        concept: The concept it is about; "all": the whole.
        subject: accuracy, naming, calibration, judge, extractor, maps, sanity or editability.
        against: Whom or what it was measured against or by; may be empty.
        standing: bad, doubtful, not known or fine.
        text: A sentence with the number and its bounds.
        value: The number; None: there is none.
        fine: From where on it is fine; None where only bad and fine exist.
        bad: From where on it is bad.
        better: Which way is better.
        images: Images behind it.
    """

    concept: str
    subject: str
    standing: Standing
    text: str
    against: str = ""
    value: float | None = None
    fine: float | None = None
    bad: float | None = None
    better: Better = "higher"
    images: int = 0


def reasons_for(
    answers: Answers, sanity: Sequence[Finding] | None, concepts: Sequence[str], bounds: Bounds | None = None
) -> list[Reason]:
    """Every figure with where it stands, for the whole and for each concept.

    Args:
        answers: On test images.
        sanity: What the sanity checks found; None: they were not done.
        concepts: Names, in the order of the labels.
        bounds: Where figures are fine and bad; None: the defaults.

    Raises:
        DataError: There are no images.
    """
    if not len(answers.concept):
        raise DataError("0 test images say nothing of trust; at least 1 is needed; make more with --per-concept")
    bounds, count = bounds or Bounds(), len(concepts)
    found = [_accuracy(answers, count, bounds), _calibration(answers.ece, bounds, len(answers.concept))]
    found += _whole_agreement(answers, bounds)
    found += [_map_reason(WHOLE, pair, one, bounds) for pair, one in answers.maps.items()]
    found += _sanity(sanity)
    for number, name in enumerate(concepts):
        found += _of_concept(number, name, answers, count, bounds)
    return _voted(found)


def _voted(reasons: Sequence[Reason]) -> list[Reason]:
    """Of several judges, extractors or pairs of maps, those that are bad but fewer than half only raise doubt."""
    votes: dict[tuple[str, str], list[bool]] = {}
    for one in reasons:
        votes.setdefault((one.concept, one.subject), []).append(one.standing == "bad")
    outvoted = {key for key, said in votes.items() if key[1] in VOTING and 2 * sum(said) < len(said)}
    return [
        replace(one, standing="doubtful", text=f"{one.text}; the others are better")
        if one.standing == "bad" and (one.concept, one.subject) in outvoted
        else one
        for one in reasons
    ]


def weighed(reasons: Sequence[Reason], concepts: Sequence[str]) -> Trust:
    """The verdict on the whole and on each concept.

    One bad figure makes trust low, one doubtful figure moderate; a judge or an extractor that most others contradict
    only raises doubt. What is not known lowers nothing by itself, but high
    trust needs somebody independent who agrees: a judge, or another extractor.

    Args:
        reasons: From `reasons_for`.
        concepts: Names.
    """
    whole = [one for one in reasons if one.concept == WHOLE]
    shared = [one for one in whole if one.subject in SHARED]
    each = {name: [one for one in reasons if one.concept == name] for name in concepts}
    return Trust(
        level=_level(whole), reasons=_texts(whole),
        concepts={
            name: Trust(level=_level([*own, *shared]) if _is_known(own) else "unknown", reasons=_texts([*own, *shared]))
            for name, own in each.items()
        },
    )  # fmt: skip


def amended(trust: Trust, reasons: Sequence[Reason]) -> Trust:
    """The verdict with what was measured after it: what is bad makes trust low, what is doubtful at most moderate.

    Nothing makes trust higher, or known where it was not.

    Args:
        trust: Of a study.
        reasons: Further ones, for the whole and for concepts.
    """
    whole = _amended(trust, [one for one in reasons if one.concept == WHOLE])
    each = {
        name: _amended(one, [reason for reason in reasons if reason.concept == name])
        for name, one in trust.concepts.items()
    }
    return replace(whole, concepts=each)


def _amended(trust: Trust, reasons: Sequence[Reason]) -> Trust:
    standings = {one.standing for one in reasons}
    level = trust.level
    if level != "unknown" and "bad" in standings:
        level = "low"
    elif level == "high" and "doubtful" in standings:
        level = "moderate"
    order = [f"{one}:" for one in STANDINGS]
    texts = sorted((*trust.reasons, *_texts(reasons)), key=lambda text: order.index(f"{text.partition(':')[0]}:"))
    return Trust(level=level, reasons=tuple(texts))


def _level(reasons: Sequence[Reason]) -> Level:
    standings = {one.standing for one in reasons}
    if not _is_known(reasons):
        return "unknown"
    if "bad" in standings:
        return "low"
    is_backed = any(one.subject in INDEPENDENT and one.standing == "fine" for one in reasons)
    return "high" if is_backed and "doubtful" not in standings else "moderate"


def _is_known(reasons: Sequence[Reason]) -> bool:
    return any(one.standing != "not known" for one in reasons)


def _texts(reasons: Sequence[Reason]) -> tuple[str, ...]:
    ordered = sorted(reasons, key=lambda one: STANDINGS.index(one.standing))
    return tuple(f"{one.standing}: {one.text}" for one in ordered)


# -- figures -----------------------------------------------------------------------------------------------------------


def _share(
    same: int, images: int, chance: float, bounds: Bounds, said: str, concept: str, subject: str, against: str = ""
) -> Reason:
    """A share of images, between chance and perfect; too few images to be sure that it is not bad are doubtful."""
    bad, fine = (chance + way * (1 - chance) for way in (bounds.bad_share, bounds.fine_share))
    value, low = same / images, wilson(same, images)[0]
    standing: Standing = "bad" if value < bad else "fine" if value >= fine and low >= bad else "doubtful"
    unsure = ", but so few images cannot rule out a bad one" if value >= fine and low < bad else ""
    text = (
        f"{said} {_percent(value)} of {images:,} test images (chance {_percent(chance)}; fine from {_percent(fine)}, "
        f"bad below {_percent(bad)}){unsure}"
    )
    return Reason(
        concept=concept, subject=subject, against=against, standing=standing, text=text, value=value, fine=fine,
        bad=bad, images=images,
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _accuracy(answers: Answers, concepts: int, bounds: Bounds) -> Reason:
    chance = float(answers.concept.bincount(minlength=concepts).max()) / len(answers.concept)
    right = int((answers.named == answers.concept).sum())
    return _share(right, len(answers.concept), chance, bounds, "the extractor is right on", WHOLE, "accuracy")


def _calibration(ece: float | None, bounds: Bounds, images: int) -> Reason:
    if ece is None:
        return Reason(
            concept=WHOLE,
            subject="calibration",
            standing="not known",
            text="the extractor's calibration was not measured",
        )
    standing: Standing = "fine" if ece <= bounds.fine_ece else "bad" if ece > bounds.bad_ece else "doubtful"
    text = (
        f"the extractor's probabilities are off by {ece:.3f} on average (fine up to {bounds.fine_ece:g}, bad above "
        f"{bounds.bad_ece:g})"
    )
    return Reason(
        concept=WHOLE, subject="calibration", standing=standing, text=text, value=ece, fine=bounds.fine_ece,
        bad=bounds.bad_ece, better="lower", images=images,
    )  # fmt: skip


def _whole_agreement(answers: Answers, bounds: Bounds) -> Iterator[Reason]:
    for subject, others in (("judge", answers.judges), ("extractor", answers.extractors)):
        if not others:
            why = answers.why_no_judges if subject == "judge" else "the study has no other extractor"
            text = f"whether {subject}s agree with the extractor: {why}"
            yield Reason(concept=WHOLE, subject=subject, standing="not known", text=text)
        for name, theirs in others.items():
            same, said = int((answers.named == theirs).sum()), f"{subject} {name} names the extractor's concept on"
            chance = _chance(answers.named, theirs)
            yield _share(same, len(theirs), chance, bounds, said, WHOLE, subject, name)


def _chance(one: Tensor, other: Tensor) -> float:
    """How often two would agree that name as they do, but regardless of the image (Cohen 1960)."""
    size = int(max(one.max(), other.max())) + 1
    shares = [votes.bincount(minlength=size).double() / len(votes) for votes in (one, other)]
    return float((shares[0] * shares[1]).sum())


def _map_reason(concept: str, pair: str, found: RankAgreement, bounds: Bounds) -> Reason:
    kept = found.rho[~found.is_flat]
    if 2 * len(kept) < len(found.rho) or not len(kept):
        flat = len(found.rho) - len(kept)
        text = f"maps of {pair} are constant on {flat} of {len(found.rho)} images, so their orders cannot be compared"
        return Reason(concept=concept, subject="maps", against=pair, standing="doubtful", text=text, images=len(kept))
    value = float(kept.mean())
    standing: Standing = "fine" if value >= bounds.fine_rho else "bad" if value < bounds.bad_rho else "doubtful"
    text = (
        f"maps of {pair} have a mean rank correlation of {value:.2f} over {len(kept):,} images (fine from "
        f"{bounds.fine_rho:g}, bad below {bounds.bad_rho:g})"
    )
    return Reason(
        concept=concept, subject="maps", against=pair, standing=standing, text=text, value=value,
        fine=bounds.fine_rho, bad=bounds.bad_rho, images=len(kept),
    )  # fmt: skip


def _sanity(findings: Sequence[Finding] | None) -> Iterator[Reason]:
    if findings is None:
        yield Reason(concept=WHOLE, subject="sanity", standing="not known", text="the sanity checks were not done")
    standings: dict[str, Standing] = {"pass": "fine", "fail": "bad", "skipped": "not known"}
    for one in findings or ():
        number = "" if one.value is None else f"{one.measures} {one.value:.3g}, at most {one.limit:g} allowed"
        text = f"sanity check {one.check}: {'; '.join(part for part in (number, one.reason) if part)}"
        yield Reason(
            concept=WHOLE, subject="sanity", against=one.check, standing=standings[one.verdict], text=text,
            value=one.value, bad=one.limit, better="lower", images=one.images,
        )  # fmt: skip


def _of_concept(number: int, name: str, answers: Answers, concepts: int, bounds: Bounds) -> Iterator[Reason]:
    here, called = answers.concept == number, answers.named == number
    images, chance = int(here.sum()), 1 / concepts
    if not images:
        yield Reason(concept=name, subject="accuracy", standing="not known", text=f"no test image shows {name}")
        return
    both = int((here & called).sum())
    yield _share(both, images, chance, bounds, f"the extractor finds {name} on", name, "accuracy")
    if int(called.sum()):
        said = f"the extractor is right to name {name} on"
        yield _share(both, int(called.sum()), images / len(here), bounds, said, name, "naming")
    for subject, others in (("judge", answers.judges), ("extractor", answers.extractors)):
        for other, theirs in others.items():
            said = f"{subject} {other} names the extractor's concept, where {name} is shown, on"
            same = int((answers.named == theirs)[here].sum())
            yield _share(same, images, chance, bounds, said, name, subject, other)
    mapped = torch.zeros(0, dtype=torch.bool) if answers.mapped is None else answers.mapped == number
    if int(mapped.sum()) >= LEAST_MAPS:
        for pair, found in answers.maps.items():
            yield _map_reason(name, pair, RankAgreement(found.rho[mapped], found.is_flat[mapped]), bounds)


# -- tables ------------------------------------------------------------------------------------------------------------

LEVEL = Column(unit="name", meaning="How far explanations can be trusted: high, moderate, low, unknown.")
TRUST_COLUMNS = {
    "concept": Column(unit="name", meaning="The concept; all: the whole study."),
    "trust": LEVEL,
    "reasons": Column(unit="sentences", meaning="Why, the gravest first, with numbers and bounds."),
}
REASON_COLUMNS = {
    "concept": Column(unit="name", meaning="The concept; all: the whole study."),
    "subject": Column(unit="name", meaning="accuracy, naming, calibration, judge, extractor, maps or sanity."),
    "against": Column(
        unit="name", meaning="Judge, other extractor, pair of extractors, or sanity check; may be empty."
    ),
    "standing": Column(unit="name", meaning="bad, doubtful, not known or fine."),
    "value": Column(unit="share, probability or rank correlation", meaning="The figure; empty: there is none."),
    "fine": Column(unit="as value", meaning="From where on it is fine; empty where it is either fine or bad."),
    "bad": Column(unit="as value", meaning="From where on it is bad."),
    "better": Column(unit="name", meaning="Which way is better: higher or lower."),
    "images": Column(unit="images", meaning="Test images behind it."),
    "text": Column(unit="sentence", meaning="The same in words."),
}


def trust_tables(trust: Trust, reasons: Sequence[Reason]) -> list[Table]:
    """The tables `trust`, the verdicts, and `trust_reasons`, the figures behind them."""
    verdicts = {WHOLE: trust, **trust.concepts}
    rows = [{"concept": name, "trust": one.level, "reasons": list(one.reasons)} for name, one in verdicts.items()]
    figures = [{name: getattr(one, name) for name in REASON_COLUMNS} for one in reasons]
    return [Table("trust", TRUST_COLUMNS, rows), Table("trust_reasons", REASON_COLUMNS, figures)]


def read_trust(table: Table) -> Trust:
    """The verdicts back from the table `trust`."""
    found = {row["concept"]: Trust(level=row["trust"], reasons=tuple(row["reasons"])) for row in table.rows}
    whole = found.pop(WHOLE)
    return Trust(level=whole.level, reasons=whole.reasons, concepts=found)
