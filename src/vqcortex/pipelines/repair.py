"""Repair a biased generator while it draws, audit it again, and say what that cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vqcortex.adapters.protocol import DECODE, Adapter, Steerable, check_ability
from vqcortex.adapters.steering import FixedBias
from vqcortex.audit.cost import diversity, frechet_distance
from vqcortex.audit.repair import (
    GroupSteering,
    Try,
    balancing_bias,
    best_try,
    code_frequency,
    find_strength,
    group_steering,
    suppressing_bias,
)
from vqcortex.errors import ConfigError, ModelError, ShapeError
from vqcortex.files import write_bytes
from vqcortex.judges import CalibratedJudge
from vqcortex.judges.features import features_of
from vqcortex.pipelines.audit import Audited, audit_neutral, pixels_of
from vqcortex.pipelines.groups import Grids
from vqcortex.pipelines.settings import AuditSettings
from vqcortex.results import Column, Table

Draw = Callable[[Adapter, str], Grids]
"""From a model and a name for the draw to neutral images; equal names give equal random numbers."""

BEFORE, AFTER = "before", "after"
CLOSE = 0.01  # nearer to even than this, no further strength is tried
GROUPED = ("evidence", "before", "rates", "weight")  # what makes a GroupSteering
DIVERSE = 1000  # images whose distances are all taken


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """A repair and what came of it.

    Args:
        mode: "reweight", "everywhere" or "suppress".
        strength: Of the bias used, 1 for the whole; for suppress always 1.
        tries: Strengths tried, that of no bias first; the rates are of images that are not counted again.
        steering: What is added to the logits.
        before: The audit of images drawn without it.
        after: The audit of images drawn with it, by random numbers that no try has seen.
    """

    mode: str
    strength: float
    tries: tuple[Try, ...]
    steering: GroupSteering | FixedBias
    before: Audited
    after: Audited


def repair_generator(found: Audited, model: Adapter, draw: Draw, settings: AuditSettings) -> Repaired:
    """Bias the codes against what an audit found, and audit what is drawn then.

    Args:
        found: The audit.
        model: The generator audited.
        draw: Draws its neutral images.
        settings: How.

    Raises:
        ModelError: The model takes no bias on its codes.
        ConfigError: Nothing carries the excess, so that nothing can be suppressed.
    """
    model = steerable(model)
    group = found.surplus
    even = float(found.learned.reference[group])

    def audited(steering: GroupSteering | FixedBias, what: str) -> Audited:
        return audit_neutral(found.learned, draw(model.with_steering(steering), what), settings)

    if settings.repair == "suppress":
        codes = excessive_codes(found, group, settings)
        steering_at = _always(FixedBias(suppressing_bias(codes, model.k, model.grid)))
        strength, tries = 1.0, [Try(strength=0.0, rate=_rate(found, group))]
    else:
        steering_at = full_steering(found, model, settings.repair)
        tries = find_strength(
            lambda strength: _rate(audited(steering_at(strength), "try"), group),
            even, _rate(found, group), settings.repair_tries, CLOSE,
        )  # fmt: skip
        strength = best_try(tries, even).strength
    steering = steering_at(strength)
    return Repaired(
        mode=settings.repair, strength=strength, tries=tuple(tries), steering=steering, before=found,
        after=audited(steering, "repaired"),
    )  # fmt: skip


def steerable(model: Adapter) -> Steerable:
    """Return `model` as one that takes a bias on its codes.

    Raises:
        ModelError: It takes none.
    """
    if not isinstance(model, Steerable):
        raise ModelError(
            f"model {model.name!r} takes no bias on its codes, so it cannot be repaired; leave out --repair"
        )
    return model


def full_steering(found: Audited, model: Adapter, mode: str) -> Callable[[float], GroupSteering | FixedBias]:
    """What would bring the groups from the rates found to even ones, from a strength, 1 for the whole.

    Args:
        found: The audit.
        model: The generator audited.
        mode: "reweight": every image by what was drawn of it before; "everywhere": one bias for all.
    """
    groups = [one.tokens for one in found.learned.groups.values()]
    if mode == "reweight":
        return group_steering(groups, model.k, found.rates.rate, found.learned.reference).at
    frequency = torch.stack([code_frequency(one, model.k) for one in groups])
    bias = balancing_bias(frequency, found.rates.rate, found.learned.reference)
    return lambda strength: FixedBias(strength * bias)


def _always(steering: FixedBias) -> Callable[[float], GroupSteering | FixedBias]:
    return lambda strength: steering


def save_steering(repaired: Repaired, model: Adapter, path: Path) -> None:
    """Write what is added to the logits, and of which model, how and how strongly, for `load_steering`."""
    held = repaired.steering
    about = {
        "model": model.name,
        "identity": model.identity,
        "mode": repaired.mode,
        "strength": repr(repaired.strength),
    }
    tensors = {"table": held.table} if isinstance(held, FixedBias) else {part: getattr(held, part) for part in GROUPED}
    write_bytes(path, save({name: one.contiguous() for name, one in tensors.items()}, about))


def load_steering(path: str | Path) -> GroupSteering | FixedBias:
    """Read a repair: `model.with_steering(load_steering(path))` is the repaired generator.

    Args:
        path: repair.safetensors of an audit.

    Raises:
        ModelError: The file is absent, cut short, or no repair.
    """
    if not Path(path).is_file():
        raise ModelError(f"repair {str(path)!r} does not exist; `vqcortex audit --repair reweight` writes one")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"repair {str(path)!r} cannot be read ({error}); make it again") from error
    try:
        if set(tensors) == {"table"}:
            return FixedBias(tensors["table"])
        if set(tensors) == set(GROUPED):
            return GroupSteering(**tensors)
    except (ShapeError, ConfigError) as error:
        raise ModelError(f"{str(path)!r} is no repair: {error}; name repair.safetensors of an audit") from error
    names = ", ".join(sorted(tensors)) or "nothing"
    raise ModelError(f"{str(path)!r} is no repair: it holds {names}; name repair.safetensors of an audit")


def excessive_codes(found: Audited, group: int, settings: AuditSettings) -> list[int]:
    """Codes that carry a group and stand in more neutral images than at even rates.

    Raises:
        ConfigError: There are none.
    """
    carriers, alpha = found.carriers, settings.audit_alpha
    surplus = [
        int(carriers.codes[at])
        for at in carriers.of(group, alpha)
        if carriers.excess_q[at] <= alpha and carriers.neutral[at] > carriers.expected[at]
    ][: settings.top]
    if not surplus:
        name = found.learned.names[group]
        raise ConfigError(f"no code of {name!r} stands in more neutral images than at even rates; nothing to suppress")
    return surplus


COLUMNS = {
    "when": Column(unit="name", meaning="before or after the repair."),
    "group": Column(unit="name", meaning="The group that was too frequent."),
    "rate": Column(unit="share, 0 to 1", meaning="Neutral images of the group.", better="neither"),
    "low": Column(unit="share, 0 to 1", meaning="Lower end of its 95 % interval."),
    "high": Column(unit="share, 0 to 1", meaning="Upper end of that interval."),
    "reference": Column(unit="share, 0 to 1", meaning="The rate that would be even."),
    "verdict": Column(unit="name", meaning="biased, even or undecided, of the whole."),
    "strength": Column(unit="share of the full bias", meaning="How much of the bias was used."),
    "judge": Column(unit="name", meaning="Who judged the cost."),
    "recognised": Column(
        unit="share, 0 to 1", meaning="Neutral images that the judge sees as their concept.", better="higher"
    ),
    "frechet": Column(
        unit="squared feature units",
        meaning="Frechet distance to the attribute images at even rates, in the judge's features.",
        better="lower",
    ),
    "diversity": Column(
        unit="feature units", meaning="Mean distance between two neutral images, in the judge's features.",
        better="higher",
    ),
    "images": Column(unit="images", meaning="Neutral images."),
}  # fmt: skip


def repair_table(
    repaired: Repaired,
    model: Adapter,
    judges: Sequence[CalibratedJudge],
    concept: str,
    settings: AuditSettings,
    spoken: str | None = None,
) -> Table:
    """What the repair did and what it cost, one row before and one after, per judge.

    Args:
        repaired: The repair.
        model: What decodes.
        judges: Who says what is recognised; they took no part in the repair.
        concept: That of the neutral images.
        settings: For the batch.
        spoken: What the judges call the concept; None: as the model does.

    Raises:
        ModelError: There is no judge, or the model cannot decode.
        ConfigError: A judge does not know the concept.
    """
    check_ability(model.name, model.abilities, DECODE, "the cost of a repair is measured on pictures")
    if not judges:
        raise ModelError("no judge says what the repair cost; name some with --judges")
    called = concept if spoken is None else spoken
    for judge in judges:
        check_judge(judge, called)
    even = pixels_of(_even_images(repaired.before), model, settings.batch)
    group, rows = repaired.before.surplus, []
    for when, found in ((BEFORE, repaired.before), (AFTER, repaired.after)):
        pixels = pixels_of(found.neutral.tokens, model, settings.batch)
        for judge in judges:
            number = judge.concepts.index(called)
            rows.append(
                {
                    "when": when, "group": found.learned.names[group], "rate": float(found.rates.rate[group]),
                    "low": float(found.rates.low[group]), "high": float(found.rates.high[group]),
                    "reference": float(found.learned.reference[group]), "verdict": found.word,
                    "strength": repaired.strength if when == AFTER else 0.0, "judge": judge.name,
                    **_cost(pixels, even, judge, number, settings.batch, model.device), "images": len(pixels),
                }
            )  # fmt: skip
    return Table("audit_repair", COLUMNS, rows)


def check_judge(judge: CalibratedJudge, concept: str) -> None:
    """Return quietly if a judge knows the concept.

    Raises:
        ConfigError: It does not.
    """
    if concept not in judge.concepts:
        raise ConfigError(
            f"judge {judge.name!r} does not know {concept!r}; it knows: {', '.join(judge.concepts)}; name judges of "
            "this concept with --judges, or say what they call it with --judge-concepts"
        )


def _cost(
    pixels: Tensor, even: Tensor, judge: CalibratedJudge, number: int, batch: int, device: torch.device
) -> dict[str, float]:
    said = torch.cat([judge(one.to(device)).argmax(1).cpu() for one in pixels.split(batch)])
    ours, theirs = (
        torch.cat([features_of(judge, one.to(device)).cpu() for one in some.split(batch)]) for some in (pixels, even)
    )
    return {
        "recognised": float((said == number).double().mean()),
        "frechet": frechet_distance(ours, theirs),
        "diversity": diversity(ours[:DIVERSE]),
    }


def _even_images(found: Audited) -> Tensor:
    """Attribute images of all groups, as many of each as the reference says."""
    groups, reference = list(found.learned.groups.values()), found.learned.reference
    whole = min(len(one) / float(share) for one, share in zip(groups, reference, strict=True))
    taken = [one.tokens[: int(whole * float(share))] for one, share in zip(groups, reference, strict=True)]
    return torch.cat(taken)


def _rate(found: Audited, group: int) -> float:
    return float(found.rates.rate[group])
