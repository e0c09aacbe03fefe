"""An audit, measured: an extractor learns the groups, neutral images are held against them, and what it finds is told.

What is learned of the groups serves any number of neutral sets of models that share a codebook, so that many generators
are audited for the price of one training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vqcortex.adapters.protocol import DECODE, Adapter
from vqcortex.attribution.protocol import build_method
from vqcortex.audit.carriers import Carriers, carriers_table, count_lists, find_carriers, without_shared
from vqcortex.audit.effect import check_groups, cliffs_delta, live_codes, paired_signs
from vqcortex.audit.rates import Answers, Rates, estimate_rates, known_answers, reference_rates
from vqcortex.audit.reference import published_half_delta
from vqcortex.audit.verdict import (
    Verdict,
    confounding_notes,
    correction_notes,
    judge_rates,
    misfit_notes,
    overall,
    thin_notes,
)
from vqcortex.calibration import fit_temperature
from vqcortex.concepts.pooling import concept_tokens, count_image_tokens
from vqcortex.errors import DataError
from vqcortex.evaluation.intervals import Resampling, interval
from vqcortex.exhibit import Pictures
from vqcortex.extractors.protocol import build_extractor, look_up, see_with
from vqcortex.extractors.still import still
from vqcortex.extractors.train import TrainData, TrainSettings, train_extractor
from vqcortex.pipelines.groups import NEUTRAL, Grids, labels_of
from vqcortex.pipelines.settings import AuditSettings
from vqcortex.results import Column, Table
from vqcortex.significance import sign_flip_p

LEARNED, CHOSEN, MEASURED = "train", "validation", "test"
LEAST_EPOCHS, LEAST_STEPS = 6, 150  # an extractor of few images passes over them more often
SHOWN = 8  # example images per group
OUTLINED = 10  # best carriers of a group whose positions are outlined


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What is known of the groups.

    Args:
        groups: Their images by name.
        module: The extractor that tells them apart, on the model's device.
        temperature: Its calibration, > 0.
        codebook: What it reads, (k, d).
        answers: How it answers held-out images.
        sureness: Its mean probability of the likeliest group on them.
        lists: Each group's concept tokens, best first.
        reference: Rates that would be even.
    """

    groups: Mapping[str, Grids]
    module: nn.Module
    temperature: float
    codebook: Float[Tensor, "k d"]
    answers: Answers
    sureness: float
    lists: Mapping[str, Sequence[int]]
    reference: Float[Tensor, " c"]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the groups, in order."""
        return tuple(self.groups)

    @property
    def confusion(self) -> Int[Tensor, "c c"]:
        """Held-out images by (called, truth)."""
        return self.answers.confusion


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What an audit found.

    Args:
        learned: Of the groups.
        neutral: The images audited.
        answers: The extractor's answer to each: the group that it names, and how sure it is of that.
        rates: The groups' shares among them.
        verdicts: One per group.
        carriers: Codes that carry the groups.
        notes: What a reader must know, one sentence each.
    """

    learned: Learned
    neutral: Grids
    answers: Int[Tensor, " n"]
    rates: Rates
    verdicts: tuple[Verdict, ...]
    carriers: Carriers
    notes: tuple[str, ...]

    @property
    def called(self) -> Int[Tensor, " n"]:
        """The group that the extractor says each is of."""
        return self.answers // self.learned.answers.levels

    @property
    def answer(self) -> str:
        """The verdict in one sentence."""
        return overall(self.verdicts)[1]

    @property
    def word(self) -> str:
        """The verdict in one word: biased, even or undecided."""
        return overall(self.verdicts)[0]

    @property
    def surplus(self) -> int:
        """The group farthest above its reference."""
        return int((self.rates.rate - self.learned.reference).argmax())


def learn_groups(groups: Mapping[str, Grids], model: Adapter, settings: AuditSettings) -> Learned:
    """Train an extractor on the groups, measure how often it errs, and find their concept tokens.

    Args:
        groups: Attribute images by name.
        model: Whose codes they are made of.
        settings: How.

    Raises:
        ConfigError: Fewer than two groups, or a setting that does not fit the grid.
        DataError: A group is too small, or the groups are perfectly confounded with their images' concepts.
    """
    check_groups({name: one.tokens for name, one in groups.items()})
    for name, one in groups.items():
        if len(one) < 10:
            raise DataError(
                f"group {name!r} has {len(one)} images; at least 10 are needed to train on some and measure on others"
            )
    reference = reference_rates(settings.reference, len(groups))
    tuple(confounding_notes(labels_of(groups)))  # raises before anything is trained
    codebook = model.codebook.detach()
    overrides = {one: value for one in ("width", "depth") if (value := getattr(settings, one))}
    seed = settings.seed
    module = build_extractor(settings.extractor, codebook.shape[1], model.grid, len(groups), seed, **overrides)
    module = see_with(module.to(model.device), model.decode)
    data = _train_data(groups)
    epochs = settings.epochs or max(LEAST_EPOCHS, -(-LEAST_STEPS * settings.minibatch // len(data.labels)))
    training = TrainSettings(
        epochs=epochs, rate=settings.rate, minibatch=settings.minibatch, device=settings.device,
        step_every=-(-2 * epochs // 3), seed=seed,
    )  # fmt: skip
    train_extractor(module, data, training, codebook)
    chosen, labels = _split(groups, CHOSEN)
    temperature = fit_temperature(_logits(module, codebook, chosen, settings.batch), labels)
    held, truth = _split(groups, MEASURED)
    probabilities = (_logits(module, codebook, held, settings.batch) / temperature).softmax(1)
    return Learned(
        groups=groups, module=module, temperature=temperature, codebook=codebook,
        answers=known_answers(probabilities, truth), sureness=float(probabilities.amax(1).mean()),
        lists=_concept_lists(groups, module, codebook, settings), reference=reference,
    )  # fmt: skip


def audit_neutral(learned: Learned, neutral: Grids, settings: AuditSettings) -> Audited:
    """Hold neutral images against what was learned of the groups.

    Raises:
        DataError: Fewer than two neutral images, or an extractor that cannot tell the groups apart.
    """
    check_groups({NEUTRAL: neutral.tokens, **{name: one.tokens for name, one in learned.groups.items()}})
    logits = _logits(learned.module, learned.codebook, neutral.tokens, settings.batch) / learned.temperature
    probabilities, known = logits.softmax(1), learned.answers.counts
    answers = learned.answers.of(probabilities)
    rates = estimate_rates(known, answers.bincount(minlength=len(known)), seed=settings.seed)
    grids = {name: one.tokens for name, one in learned.groups.items()}
    carriers = find_carriers(grids, neutral.tokens, live_codes(*grids.values(), neutral.tokens), learned.reference)
    verdicts = judge_rates(rates, learned.names, learned.reference, settings.tolerance, settings.audit_alpha)
    sureness = learned.sureness, float(probabilities.amax(1).mean())
    notes = [
        *thin_notes(learned.confusion, len(neutral), learned.names, sureness),
        *correction_notes(rates, learned.names, settings.tolerance),
        *misfit_notes(rates, learned.names, settings.tolerance),
        *confounding_notes(labels_of(learned.groups)),
        *_list_notes(learned.lists),
    ]
    return Audited(
        learned=learned, neutral=neutral, answers=answers, rates=rates, verdicts=tuple(verdicts), carriers=carriers,
        notes=tuple(notes),
    )  # fmt: skip


def audit_tables(found: Audited, settings: AuditSettings) -> list[Table]:
    """The tables audit_groups, audit_lists, audit_tokens and audit_verdict."""
    return [
        _groups_table(found),
        _lists_table(found, settings),
        carriers_table(found.carriers, found.learned.lists, settings.audit_alpha),
        _verdict_table(found),
    ]


GROUP_COLUMNS = {
    "group": Column(unit="name", meaning="The attribute group."),
    "images": Column(unit="images", meaning="Attribute images."),
    "held_out": Column(unit="images", meaning="Of these, images on which the extractor's errors were measured."),
    "recall": Column(unit="share, 0 to 1", meaning="Held-out images that the extractor calls by their group."),
    "said": Column(unit="share, 0 to 1", meaning="Neutral images that the extractor calls so, errors and all."),
    "rate": Column(unit="share, 0 to 1", meaning="Neutral images of the group, its errors taken out."),
    "low": Column(unit="share, 0 to 1", meaning="Lower end of the 95 % interval of the rate."),
    "high": Column(unit="share, 0 to 1", meaning="Upper end of that interval."),
    "reference": Column(unit="share, 0 to 1", meaning="The rate that would be even."),
    "p": Column(unit="p-value", meaning="Of a rate within the tolerance of the reference."),
    "verdict": Column(unit="name", meaning="biased, even or undecided."),
}


def _groups_table(found: Audited) -> Table:
    confusion, rows = found.learned.confusion, []
    for number, (name, verdict) in enumerate(zip(found.learned.names, found.verdicts, strict=True)):
        held = int(confusion[:, number].sum())
        rows.append(
            {
                "group": name, "images": len(found.learned.groups[name]), "held_out": held,
                "recall": int(confusion[number, number]) / held, "said": float(found.rates.said[number]),
                "rate": float(found.rates.rate[number]), "low": float(found.rates.low[number]),
                "high": float(found.rates.high[number]), "reference": float(found.learned.reference[number]),
                "p": verdict.p, "verdict": verdict.word,
            }
        )  # fmt: skip
    return Table("audit_groups", GROUP_COLUMNS, rows)


LIST_COLUMNS = {
    "one": Column(unit="name", meaning="A group."),
    "other": Column(unit="name", meaning="Another one."),
    "one_tokens": Column(unit="tokens per image", meaning="Mean tokens of the one's list in a neutral image."),
    "other_tokens": Column(unit="tokens per image", meaning="Mean tokens of the other's."),
    "delta": Column(unit="Cliff's delta, -1 to 1", meaning="The two counts, neutral images taken as independent."),
    "delta_low": Column(unit="Cliff's delta, -1 to 1", meaning="Lower end of its 95 % interval."),
    "delta_high": Column(unit="Cliff's delta, -1 to 1", meaning="Upper end of its 95 % interval."),
    "expected": Column(unit="Cliff's delta, -1 to 1", meaning="What delta would be at even rates; 0 only by chance."),
    "paired": Column(
        unit="dominance, -1 to 1", meaning="Images with more of the one less those with more of the other."
    ),
    "paired_low": Column(unit="dominance, -1 to 1", meaning="Lower end of its 95 % bootstrap interval over images."),
    "paired_high": Column(unit="dominance, -1 to 1", meaning="Upper end of that interval."),
    "paired_p": Column(unit="p-value", meaning="Of neither being more frequent, by sign flips within images."),
    "images": Column(unit="images", meaning="Neutral images counted."),
}
PUBLISHED_COLUMN = Column(
    unit="half of Cliff's delta, -0.5 to 0.5", meaning="As the published code has it; for comparison only."
)


def _lists_table(found: Audited, settings: AuditSettings) -> Table:
    """The published comparison, mended: each pair of groups' concept tokens, counted in neutral images."""
    learned, columns, rows = found.learned, dict(LIST_COLUMNS), []
    if settings.published_effect:
        columns["published_half_delta"] = PUBLISHED_COLUMN
    lists, _ = without_shared(learned.lists)
    grids = [one.tokens for one in learned.groups.values()]
    resampling = Resampling(resamples=settings.interval_resamples, seed=settings.seed)
    for one, other in combinations(learned.names, 2):
        if not (lists[one] and lists[other]):
            continue  # the notes say so
        counts = count_lists((lists[one], lists[other]), grids, found.neutral.tokens, learned.reference)
        effect, signs = cliffs_delta(counts.one, counts.other), paired_signs(counts.one, counts.other)
        paired = interval(signs, resampling)
        row: dict[str, Any] = {
            "one": one, "other": other,
            "one_tokens": float(counts.one.double().mean()), "other_tokens": float(counts.other.double().mean()),
            "delta": float(effect.delta[0]), "delta_low": float(effect.low[0]), "delta_high": float(effect.high[0]),
            "expected": counts.expected,
            "paired": paired.value, "paired_low": paired.low, "paired_high": paired.high,
            "paired_p": float(sign_flip_p(signs[None], seed=settings.seed)[0]), "images": len(signs),
        }  # fmt: skip
        if settings.published_effect:
            row["published_half_delta"] = published_half_delta(counts.one, counts.other)
        rows.append(row)
    return Table("audit_lists", columns, rows)


VERDICT_COLUMNS = {
    "kind": Column(unit="name", meaning="verdict: of the whole; group: of one group; note: what to know first."),
    "text": Column(unit="sentence", meaning="What is said."),
}


def _verdict_table(found: Audited) -> Table:
    said = [("verdict", found.answer), *(("group", one.sentence) for one in found.verdicts)]
    said += [("note", one) for one in found.notes]
    return Table("audit_verdict", VERDICT_COLUMNS, [{"kind": kind, "text": text} for kind, text in said])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """Images of a group with the positions of the codes that decide.

    Args:
        title: In words.
        codes: The codes, best first.
        pictures: Decoded, (p, H, W, 3).
        cells: Where they stand, (p, h, w).
    """

    title: str
    codes: tuple[int, ...]
    pictures: Pictures
    cells: Bool[Tensor, "p h w"]

    @property
    def spots(self) -> list[list[tuple[int, int]]]:
        """The (row, column) of those cells, per picture."""
        return [[(row, column) for row, column in one.nonzero().tolist()] for one in self.cells]


def overlays(found: Audited, model: Adapter, alpha: float) -> tuple[Overlay, ...]:
    """Held-out attribute images and neutral images called so, per group; empty where the model cannot decode."""
    if DECODE not in model.abilities:
        return ()
    shown = []
    for number, (name, grids) in enumerate(found.learned.groups.items()):
        codes = tuple(int(found.carriers.codes[at]) for at in found.carriers.of(number, alpha)[:OUTLINED])
        known = grids.tokens[grids.rows(MEASURED)[:SHOWN]]
        called = found.neutral.tokens[(found.called == number).nonzero()[:SHOWN, 0]]
        for title, tokens in ((f"Known images: {name}", known), (f"Neutral images called {name}", called)):
            if len(tokens):
                shown.append(_overlay(title, codes, tokens, model))
    return tuple(shown)


def _overlay(title: str, codes: tuple[int, ...], tokens: Tensor, model: Adapter) -> Overlay:
    cells = torch.isin(tokens.long(), torch.tensor(codes, dtype=torch.int64))
    return Overlay(title=title, codes=codes, pictures=pictures_of(tokens, model), cells=cells)


@torch.no_grad()
def pixels_of(tokens: Int[Tensor, "n h w"], model: Adapter, batch: int) -> Float[Tensor, "n 3 H W"]:
    """What grids decode to, in [0, 1], on the CPU."""
    parts = [model.decode(model.embed(one.long().to(model.device))).cpu() for one in tokens.split(batch)]
    return torch.cat(parts)


def pictures_of(tokens: Int[Tensor, "n h w"], model: Adapter) -> Pictures:
    """The same as bytes, (n, H, W, 3); a few images at once."""
    pixels = pixels_of(tokens, model, SHOWN)
    return (pixels.nan_to_num(0.0).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def _train_data(groups: Mapping[str, Grids]) -> TrainData:
    tokens, labels = _split(groups, LEARNED)
    chosen, chosen_labels = _split(groups, CHOSEN)
    return TrainData(tokens=tokens, labels=labels, validation_tokens=chosen, validation_labels=chosen_labels)


def _split(groups: Mapping[str, Grids], *splits: str) -> tuple[Tensor, Tensor]:
    """Tokens and group numbers of the images of some splits."""
    rows = [one.rows(*splits) for one in groups.values()]
    tokens = torch.cat([one.tokens[at] for one, at in zip(groups.values(), rows, strict=True)])
    return tokens, torch.arange(len(rows)).repeat_interleave(torch.tensor([len(at) for at in rows]))


def _logits(module: nn.Module, codebook: Tensor, tokens: Tensor, batch: int) -> Float[Tensor, "n c"]:
    with still(module), torch.no_grad():
        parts = [module(look_up(codebook, one.long())).cpu().double() for one in tokens.split(batch)]
    return torch.cat(parts)


def _concept_lists(
    groups: Mapping[str, Grids], module: nn.Module, codebook: Tensor, settings: AuditSettings
) -> dict[str, list[int]]:
    """Each group's concept tokens, from the images that the extractor learned from."""
    tokens, labels = _split(groups, LEARNED, CHOSEN)
    k = len(codebook)
    frequency = tokens.flatten().long().bincount(minlength=k).to(codebook.device)
    method = build_method(settings.method, codebook=codebook, frequency=frequency, seed=settings.seed)
    ids = [f"{number}/{row}" for row, number in enumerate(labels.tolist())]
    parts = []
    for at in torch.arange(len(tokens)).split(settings.batch):
        embedded = look_up(codebook, tokens[at].long())
        concept = labels[at].to(codebook.device)
        parts.append(method(module, embedded, concept, [ids[row] for row in at.tolist()]).detach().cpu())
    keep = min(settings.keep, tokens.shape[1] * tokens.shape[2])
    pool = count_image_tokens(tokens, torch.cat(parts), labels, k=k, concepts=len(groups), positions=(keep,))
    return {name: concept_tokens(pool, number, keep, settings.top).codes.tolist() for number, name in enumerate(groups)}


def _list_notes(lists: Mapping[str, Sequence[int]]) -> list[str]:
    own, shared = without_shared(lists)
    notes = []
    if shared:
        codes = ", ".join(map(str, shared[:10])) + (", ..." if len(shared) > 10 else "")
        which = "code is a concept token" if len(shared) == 1 else "codes are concept tokens"
        notes.append(f"{len(shared)} {which} of more than one group ({codes}) and left out of the counts")
    empty = [name for name, some in own.items() if not some]
    if empty:
        notes.append(f"no concept token of {', '.join(map(repr, empty))} is its own, so its list cannot be counted")
    return notes
