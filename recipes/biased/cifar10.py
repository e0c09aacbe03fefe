"""Audit the colour VQGAN as it is: does it draw what its data show as often as they do? Into docs/audit.md.

    python recipes/biased/cifar10.py --data torchvision:CIFAR10 --work out/audit-cifar10

Nothing is planted. Groups are halves of a class's real pictures, told apart by a rule on pixels at the class's own
median, so that an even rate is that of the data; the rule on what the generator's draws decode to is the truth. What is
called biased is repaired and audited again. Figures of a class and rule lie in WORK and are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import exact, markdown, percent
from torch import Tensor

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Adapter, Generator
from vqcortex.audit.rates import estimate_rates
from vqcortex.audit.verdict import UNLIKE
from vqcortex.errors import VqCortexError
from vqcortex.files import write_json
from vqcortex.images import open_images
from vqcortex.judges import load_judges
from vqcortex.pipelines.audit import audit_neutral, learn_groups, pixels_of
from vqcortex.pipelines.groups import Grids
from vqcortex.pipelines.repair import repair_generator, repair_table
from vqcortex.pipelines.settings import AuditSettings

MODEL = "zoo:cifar10"
REAL, NEUTRAL, BATCH = 2000, 1000, 250  # real pictures of a class, draws audited, and at once
PAGE = Path(__file__).parents[2] / "docs/audit.md"
BEGIN, END = "<!-- cifar10: written by recipes/biased/cifar10.py -->", "<!-- end of cifar10 -->"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Something that can be measured on a picture.

    Args:
        high: What pictures above the median are called.
        low: And those below.
        measure: Pictures (n, 3, H, W) in [0, 1] to one number each.
    """

    high: str
    low: str
    measure: Callable[[Tensor], Tensor]


RULES = {
    "brightness": Rule(high="bright", low="dark", measure=lambda x: x.mean((1, 2, 3))),
    "warmth": Rule(high="warm", low="cold", measure=lambda x: x[:, 0].mean((1, 2)) - x[:, 2].mean((1, 2))),
    "contrast": Rule(high="strong", low="faint", measure=lambda x: x.std((1, 2, 3))),
}


def real_pictures(source: str, number: int) -> Tensor:
    """The first training pictures of a class, (n, 3, 32, 32) in [0, 1]."""
    found: list[Tensor] = []
    for record in open_images(source, "train"):
        if record.concept == number:
            pixels = np.asarray(record.image.convert("RGB"))
            found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
            if len(found) == REAL:
                break
    return torch.stack(found).float() / 255


def encoded(model: Adapter, pixels: Tensor) -> Tensor:
    """Token grids of pictures."""
    return torch.cat([model.encode(part) for part in pixels.split(BATCH)]).int()


def drawn(model: Generator, number: int, what: str) -> Grids:
    """Draws of a class."""
    ids = tuple(f"{what}/{image:06d}" for image in range(NEUTRAL))
    concept = torch.full((NEUTRAL,), number)
    parts = [model.generate(concept[at : at + BATCH], ids[at : at + BATCH], 0) for at in range(0, NEUTRAL, BATCH)]
    return Grids(tokens=torch.cat(parts).int(), image_ids=ids)


def measure_class(model: Generator, source: str, number: int, work: Path) -> None:
    """Audit one class by every rule, and repair what is biased."""
    name = model.concepts[number]
    paths = {rule: work / f"{name}-{rule}.json" for rule in RULES}
    if all(path.exists() for path in paths.values()):
        return
    pixels = real_pictures(source, number)
    tokens, neutral = encoded(model, pixels), drawn(model, number, "neutral")
    real, shown = pixels_of(tokens, model, BATCH), pixels_of(neutral.tokens, model, BATCH)
    for rule, path in paths.items():
        if path.exists():
            continue
        measure = RULES[rule].measure
        # The decoder may be darker than the data: even is what its own pictures of the data show.
        values = measure(real)
        bound = values.median()

        def truth(pictures: Tensor, bound: Tensor = bound, measure: Callable[[Tensor], Tensor] = measure) -> float:
            return float((measure(pictures) > bound).double().mean())

        groups = {}
        for group, rows in ((RULES[rule].high, values > bound), (RULES[rule].low, values <= bound)):
            ids = tuple(f"{group}/{row}" for row in range(int(rows.sum())))
            groups[group] = Grids(tokens=tokens[rows], image_ids=ids)
        settings = AuditSettings(
            model=MODEL, groups=tuple(f"{group}=real" for group in groups), neutral=f"concept:{name}",
            group_images=REAL, neutral_images=NEUTRAL,
        )  # fmt: skip
        learned = learn_groups(groups, model, settings)
        found = audit_neutral(learned, neutral, settings)
        # The correction that does not ask how sure the extractor is, for comparison.
        coarse = estimate_rates(learned.confusion, found.called.bincount(minlength=2))
        times, p = found.rates.misfit()
        errs = 1 - learned.confusion.double().diagonal() / learned.confusion.double().sum(1)
        figures: dict[str, Any] = {
            "high": RULES[rule].high, "true": truth(shown), "said": float(found.rates.said[0]),
            "rate": float(found.rates.rate[0]), "low": float(found.rates.low[0]),
            "high_end": float(found.rates.high[0]), "word": found.word, "errs": float(errs.mean()),
            "coarse": [float(one[0]) for one in (coarse.rate, coarse.low, coarse.high)],
            "misfit": [times, p], "wide": list(found.rates.ends(0, 0.95, dispersion=max(1.0, times))),
        }  # fmt: skip
        if found.word == "biased":
            asked = replace(settings, repair="reweight", repair_tries=3)
            repaired = repair_generator(found, model, lambda one, what: drawn(one, number, what), asked)
            table = repair_table(repaired, model, load_judges(MODEL), name, asked)
            figures["repair"] = {
                "strength": repaired.strength, "rows": [dict(row) for row in table.rows],
                "true": truth(pixels_of(repaired.after.neutral.tokens, model, BATCH)),
            }  # fmt: skip
        write_json(path, figures)
        print(name, rule, json.dumps({key: value for key, value in figures.items() if key != "repair"}), flush=True)


def lost(repair: dict[str, Any]) -> float:
    """Points of recognition lost with the judge that loses most."""
    sides = {when: [row for row in repair["rows"] if row["when"] == when] for when in ("before", "after")}
    pairs = zip(sides["before"], sides["after"], strict=True)
    return 100 * max(before["recognised"] - after["recognised"] for before, after in pairs)


def section(work: Path, concepts: tuple[str, ...]) -> str:
    """What came out, as Markdown."""
    rows, found = [], []
    for rule in RULES:
        for name in concepts:
            one = json.loads((work / f"{name}-{rule}.json").read_text())
            found.append(one)
            repair = one.get("repair")
            rows.append(
                [
                    name, one["high"], percent(one["true"]), percent(one["said"]),
                    f"{percent(one['rate'])} [{percent(one['low'])}, {percent(one['high_end'])}]",
                    percent(one["errs"]), one["word"],
                    "" if repair is None else percent(repair["true"]),
                    "" if repair is None else f"{lost(repair):+.1f}",
                ]
            )  # fmt: skip
    heads = [
        "class", "draws that are", "true, %", "as called, %", "estimated, %", "extractor errs, %", "verdict",
        "true after repair, %", "most lost by a judge, points",
    ]  # fmt: skip
    return f"{of_estimates(found)} {of_verdicts(found)}\n\n{markdown(heads, rows)}"


def of_estimates(found: list[dict[str, Any]]) -> str:
    """How far estimates are from the truth, made in three ways."""

    def off(rates: list[float]) -> str:
        points = [100 * abs(rate - one["true"]) for rate, one in zip(rates, found, strict=True)]
        near = sum(one <= 5 for one in points)
        return f"{np.mean(points):.1f} points off the truth on average and {max(points):.1f} at most, {near} at most 5"

    inside = sum(one["low"] <= one["true"] <= one["high_end"] for one in found)
    coarse = sum(one["coarse"][1] <= one["true"] <= one["coarse"][2] for one in found)
    unlike = [one for one in found if one["misfit"][1] <= UNLIKE]
    wide = sum(one["wide"][0] <= one["true"] <= one["wide"][1] for one in unlike)
    narrow = sum(one["low"] <= one["true"] <= one["high_end"] for one in unlike)
    return (
        f"The {len(found)} estimates are {off([one['rate'] for one in found])}; the truth lies in "
        f"{exact(inside, len(found))} of the 95 % intervals. With one level of sureness (Rogan and Gladen) they are "
        f"{off([one['coarse'][0] for one in found])}, and {coarse} intervals hold the truth. What the extractor calls, "
        f"errors and all, is {off([one['said'] for one in found])}. In {len(unlike)} "
        f"of {len(found)} audits the answers are no mixture of those to known images (p at most {UNLIKE:g}) and a note "
        f"says so: the interval holds the truth in {narrow} of them, the wider one of the note in {wide}."
    )


def of_verdicts(found: list[dict[str, Any]]) -> str:
    """Who is called biased, and whether repair helps."""
    far = [one for one in found if abs(one["true"] - 0.5) > 0.05]
    near = [one for one in found if one not in far]
    alarms = [sum(one["word"] == "biased" for one in some) for some in (far, near)]
    repairs = [one["repair"] for one in found if "repair" in one]
    mended = [one for one in repairs if abs(one["true"] - 0.5) <= 0.05]
    return (
        f"Of {len(far)} rates that are truly more than 5 points from even, {alarms[0]} are called biased; of the "
        f"{len(near)} others, {alarms[1]}. Repair (`reweight`) brings the true rate within 5 points of even in "
        f"{len(mended)} of {len(repairs)}, {sum(lost(one) <= 3 for one in mended)} of them at 3 points of "
        "recognition or less."
    )


def main() -> None:
    """Measure what is not measured yet, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="torchvision:CIFAR10", help="any image source of CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("out/audit-cifar10"), help="figures; kept")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    model = load_model(MODEL)
    assert isinstance(model, Generator)
    for number in range(len(model.concepts)):
        measure_class(model, chosen.data, number, chosen.work)
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{section(chosen.work, model.concepts)}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    try:
        main()
    except VqCortexError as error:
        sys.exit(f"error: {error}")
