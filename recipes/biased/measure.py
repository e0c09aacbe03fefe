"""Measure the audit on generators whose bias is known.

What is measured of one generator lies in WORK/measured and is not measured again. The truth of a generated picture is
the rule of its attribute (attributes.py), which looks at pixels; the audit sees tokens.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from attributes import ATTRIBUTES, Attribute
from make import Wanted, all_wanted, encoded
from pixels import seen, unseen
from torch import Tensor

from vqcortex.adapters.zoo import ZooModel, load_zoo
from vqcortex.audit.carriers import find_carriers, without_shared
from vqcortex.audit.effect import live_codes
from vqcortex.audit.rates import estimate_rates
from vqcortex.files import write_json
from vqcortex.judges import load_judges
from vqcortex.pipelines.audit import Audited, Learned, audit_neutral, audit_tables, learn_groups, pixels_of
from vqcortex.pipelines.groups import Grids
from vqcortex.pipelines.repair import repair_generator, repair_table
from vqcortex.pipelines.settings import AuditSettings
from vqcortex.seeds import generator_for

REWEIGHTED = ".reweight.json"
NEUTRAL = 1000  # images audited
TRIED = {"everywhere": 500, "reweight": 1000}  # images per strength tried
NULL_POOL, NULL_SETS, NULL_IMAGES, NULL_CODES = 1500, 250, 500, 50  # three times the images make the pool
PLANTED = 0.05  # share of pictures that gain a code by being painted from which the code counts as planted
EVERYWHERE = [(row, column) for row in range(7) for column in range(7)]
# Rows and columns of the 7x7 grid that are painted over.
PAINTED = {
    "corner": [(row, column) for row in (0, 1) for column in (5, 6)],
    "cast": EVERYWHERE,
    "border": [(row, column) for row, column in EVERYWHERE if {row, column} & {0, 6}],
    "pair": [(3, column) for column in range(7)],
}


def settings_for(attribute: Attribute) -> AuditSettings:
    """The audit's defaults."""
    return AuditSettings(groups=("with=painted", "without=plain"), neutral=f"concept:{attribute.concept}")


def groups_of(attribute: Attribute, model: ZooModel, data: str) -> tuple[dict[str, Grids], Tensor]:
    """Attribute images: half of the pictures that trained no prior, painted, and the others; and the others painted."""
    held = torch.cat([unseen(data, model.concepts.index(one)) for one in attribute.concepts])
    held = held[torch.randperm(len(held), generator=generator_for(0, attribute.name, "halves"))]
    painted, plain = held.chunk(2)
    grids = encoded(model, attribute.paint(painted)), encoded(model, plain)
    named = {
        name: Grids(tokens=some.int(), image_ids=tuple(f"{name}/{row}" for row in range(len(some))))
        for name, some in zip(("with", "without"), grids, strict=True)
    }
    return named, encoded(model, attribute.paint(plain))


def planted_codes(cells: list[tuple[int, int]], plain: Tensor, painted: Tensor, k: int) -> set[int]:
    """Codes that the same pictures gain by being painted, in some cells."""
    rows, columns = torch.tensor(cells).T
    gained = torch.zeros(k)
    for some, sign in ((painted, 1), (plain, -1)):
        for grid in some[:, rows, columns].long():
            gained[grid.unique()] += sign
    return set((gained / len(plain) >= PLANTED).nonzero()[:, 0].tolist())


def drawn(model: ZooModel, attribute: Attribute, what: str, images: int) -> Grids:
    """Neutral images: the class, drawn by the generator."""
    ids = tuple(f"{what}/{number:06d}" for number in range(images))
    concept = torch.full((images,), model.concepts.index(attribute.concept))
    parts = [model.generate(concept[at : at + 250], ids[at : at + 250], 0) for at in range(0, images, 250)]
    return Grids(tokens=torch.cat(parts).int(), image_ids=ids)


def truth(attribute: Attribute, grids: Grids, model: ZooModel) -> float:
    """Share of images that carry the attribute, by its rule."""
    return float(attribute.sees(pixels_of(grids.tokens, model, 250)).double().mean())


def measure_attribute(attribute: Attribute, model: ZooModel, data: str) -> tuple[Learned, dict[str, Any]]:
    """What is learned of an attribute, and how right that is."""
    groups, both = groups_of(attribute, model, data)
    learned = learn_groups(groups, model, settings_for(attribute))
    # The encoder sees around a cell, so that painting changes codes beside what is painted too.
    everywhere = planted_codes(EVERYWHERE, groups["without"].tokens, both, model.k)
    within = planted_codes(PAINTED[attribute.name], groups["without"].tokens, both, model.k)
    pixels = {name: pixels_of(one.tokens, model, 250) for name, one in groups.items()}
    live = live_codes(*(one.tokens for one in groups.values()))
    grids = {name: one.tokens for name, one in groups.items()}
    found = find_carriers(grids, grids["without"], live, learned.reference)
    best = [int(found.codes[at]) for at in found.of(0, 0.05)][:5]
    # The published choice: codes most frequent at the best positions, shared ones not removed.
    published = list(learned.lists["with"])[:5]
    about = {
        "rule_finds": float(attribute.sees(pixels["with"]).double().mean()),
        "rule_errs": float(attribute.sees(pixels["without"]).double().mean()),
        "confusion": learned.confusion.tolist(), "groups": {name: len(one) for name, one in groups.items()},
        "planted": sorted(everywhere), "planted_within": sorted(within), "live": len(live), "best": best,
        "concept_tokens": published, "precision": _share(best, everywhere), "precision_within": _share(best, within),
        "precision_concept_tokens": _share(published, everywhere),
        "shared": without_shared(learned.lists)[1],
    }  # fmt: skip
    return learned, about | measure_null(attribute, learned, model, data)


def _share(found: list[int], true: set[int]) -> float:
    return sum(code in true for code in found) / max(1, len(found))


def measure_null(attribute: Attribute, learned: Learned, model: ZooModel, data: str) -> dict[str, Any]:
    """Neutral sets in which every picture is painted by the toss of a coin: how often the audit cries wolf."""
    pictures = seen(data, model.concepts.index(attribute.concept))[:NULL_POOL]
    both = torch.stack([encoded(model, pictures), encoded(model, attribute.paint(pictures))])
    settings = settings_for(attribute)
    answers = torch.stack([audit_answers(learned, one, settings) for one in both])
    known = learned.answers.counts
    alarms = {tolerance: 0 for tolerance in (0.0, settings.tolerance)}
    codes = 0
    for number in range(NULL_SETS):
        source = generator_for(number, attribute.name, "null")
        rows = torch.randperm(NULL_POOL, generator=source)[:NULL_IMAGES]
        coin = torch.randint(2, (NULL_IMAGES,), generator=source)
        rates = estimate_rates(known, answers[coin, rows].bincount(minlength=len(known)), seed=number)
        for tolerance in alarms:
            far = abs(float(rates.rate[0]) - 0.5) > tolerance
            alarms[tolerance] += far and rates.p_beyond(0, 0.5, tolerance) <= settings.audit_alpha
        if number < NULL_CODES:  # with groups of their own, or all sets would share one error of the expectation
            neutral, marked, plain = torch.randperm(NULL_POOL, generator=source).split(NULL_IMAGES)
            grids = {"with": both[1, marked], "without": both[0, plain]}
            images = both[coin, neutral]
            found = find_carriers(grids, images, live_codes(*grids.values(), images), learned.reference)
            codes += int((found.excess_q <= settings.audit_alpha).any())
    return {
        "null_sets": NULL_SETS, "null_images": NULL_IMAGES,
        "null_alarms": {f"{key:g}": value for key, value in alarms.items()},
        "null_code_sets": NULL_CODES, "null_code_alarms": codes,
    }  # fmt: skip


def audit_answers(learned: Learned, tokens: Tensor, settings: AuditSettings) -> Tensor:
    """How the extractor answers images."""
    grids = Grids(tokens=tokens.int(), image_ids=tuple(map(str, range(len(tokens)))))
    return audit_neutral(learned, grids, settings).answers


def measure_generator(wanted: Wanted, learned: Learned, work: Path) -> dict[str, Any]:
    """Audit one generator, and repair it where it is biased."""
    model, attribute = load_zoo(str(work / wanted.name)), wanted.attribute
    settings = settings_for(attribute)
    neutral = drawn(model, attribute, "neutral", NEUTRAL)
    found = audit_neutral(learned, neutral, settings)
    tables = {one.name: one for one in audit_tables(found, replace(settings, published_effect=True))}
    figures: dict[str, Any] = {
        "planted": wanted.rate / 100, "true": truth(attribute, neutral, model), "rate": float(found.rates.rate[0]),
        "low": float(found.rates.low[0]), "high": float(found.rates.high[0]), "word": found.word,
        "p": found.verdicts[0].p, "distance": found.verdicts[0].distance, "lists": tables["audit_lists"].rows,
    }  # fmt: skip
    if wanted.rate != 50:
        figures["repair"] = measure_repair(found, model, attribute, replace(settings, repair="everywhere"))
    return figures


def measure_repair(found: Audited, model: ZooModel, attribute: Attribute, settings: AuditSettings) -> dict[str, Any]:
    """Push codes, audit again, and let the judges say what it cost."""

    def draw(one: Any, what: str) -> Grids:
        return drawn(one, attribute, what, NEUTRAL if what == "repaired" else TRIED[settings.repair])

    repaired = repair_generator(found, model, draw, replace(settings, repair_tries=3))
    table = repair_table(repaired, model, load_judges("zoo:fashion"), attribute.concept, settings)
    return {
        "strength": repaired.strength, "tries": [[one.strength, one.rate] for one in repaired.tries],
        "true": truth(attribute, repaired.after.neutral, model), "rows": [dict(row) for row in table.rows],
    }  # fmt: skip


def measure_reweighting(wanted: Wanted, learned: Learned, work: Path) -> dict[str, Any]:
    """Repair one generator by pushing every image by what was drawn of it before."""
    model, attribute = load_zoo(str(work / wanted.name)), wanted.attribute
    settings = replace(settings_for(attribute), repair="reweight")
    found = audit_neutral(learned, drawn(model, attribute, "neutral", NEUTRAL), settings)
    return {"repair": measure_repair(found, model, attribute, settings)}


def measure_all(data: str, work: Path) -> None:
    """Measure what is not measured yet; `results.py` makes tables and pictures of it.

    Args:
        data: Image source of Fashion-MNIST.
        work: Where make.py put the generators.

    Raises:
        FileNotFoundError: One of them is not there.
    """
    if missing := [one.name for one in all_wanted() if not (work / one.name / "model.json").is_file()]:
        raise FileNotFoundError(f"{str(work)!r} holds no generator {missing[0]!r}; make it first: --only generators")
    folder = work / "measured"
    folder.mkdir(exist_ok=True)
    model = load_zoo("fashion")
    for attribute in ATTRIBUTES.values():
        todo = [
            one for one in all_wanted() if one.attribute is attribute and not (folder / f"{one.name}.json").exists()
        ]
        path = folder / f"{attribute.name}.json"
        if not todo and path.exists():
            continue
        began = time.monotonic()
        learned, about = measure_attribute(attribute, model, data)
        write_json(path, about)
        print(attribute.name, json.dumps(about), f"{time.monotonic() - began:.0f} s", flush=True)
        for wanted in todo:
            figures = measure_generator(wanted, learned, work)
            write_json(folder / f"{wanted.name}.json", figures)
            print(wanted.name, f"true {figures['true']:.3f} rate {figures['rate']:.3f} {figures['word']}", flush=True)
    reweight_all(model, data, work)


def reweight_all(model: ZooModel, data: str, work: Path) -> None:
    """The second repair of every biased generator, the most biased first."""
    folder, learned = work / "measured", {}
    wanted = [one for one in all_wanted() if one.rate != 50 and not (folder / f"{one.name}{REWEIGHTED}").exists()]
    for one in sorted(wanted, key=lambda one: -one.rate):
        name = one.attribute.name
        if name not in learned:
            learned[name] = learn_groups(groups_of(one.attribute, model, data)[0], model, settings_for(one.attribute))
        figures = measure_reweighting(one, learned[name], work)
        write_json(folder / f"{one.name}{REWEIGHTED}", figures)
        print(one.name, f"reweighted: true {figures['repair']['true']:.3f}", flush=True)
