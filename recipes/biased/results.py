"""Put what measure.py measured into docs/audit.md, between its marks, and draw its pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attributes import ATTRIBUTES, Attribute
from make import Wanted, all_wanted
from measure import drawn, groups_of, settings_for
from scipy.stats import beta
from torch import Tensor
from worlds import measure_worlds

from vqcortex.adapters.zoo import load_zoo
from vqcortex.audit.carriers import find_carriers
from vqcortex.audit.effect import live_codes
from vqcortex.audit.repair import group_steering
from vqcortex.files import write_json
from vqcortex.pipelines.audit import audit_neutral, audit_tables, learn_groups, pixels_of
from vqcortex.pipelines.groups import Grids
from vqcortex.seeds import generator_for

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- measured: written by recipes/biased/results.py -->", "<!-- end of what is measured -->"
SPEED = 10_000  # images of either side
EVEN = 0.5
SHOWN, SHOWN_RATE = 10, 99


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def exact(found: int, of: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson)."""
    low = 0.0 if found == 0 else float(beta.ppf(0.025, found, of - found + 1))
    high = 1.0 if found == of else float(beta.ppf(0.975, found + 1, of - found))
    return f"{found} of {of} = {found / of:.1%} [{low:.1%}, {high:.1%}]"


def auroc(biased: Sequence[float], even: Sequence[float]) -> float:
    """Share of pairs in which the biased generator scores higher, ties counting half."""
    a, b = np.array(biased)[:, None], np.array(even)[None]
    return float((a > b).mean() + (a == b).mean() / 2)


def auroc_interval(biased: Sequence[float], even: Sequence[float]) -> tuple[float, float]:
    """Its 95 % bootstrap interval over generators."""
    rng = np.random.default_rng(0)
    draws = [auroc(rng.choice(biased, len(biased)), rng.choice(even, len(even))) for _ in range(2000)]
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def percent(value: float) -> str:
    """A share in percent, one decimal."""
    return f"{100 * value:.1f}"


def rates_table(found: dict[str, dict[str, Any]]) -> str:
    """Every generator: planted, true and estimated rate, and what is said."""
    rows = [
        [
            one.name, f"{one.rate}", percent(found[one.name]["true"]),
            (f"{percent(found[one.name]['rate'])} "
            f"[{percent(found[one.name]['low'])}, {percent(found[one.name]['high'])}]"),
            found[one.name]["word"],
        ]
        for one in ordered(found)
    ]  # fmt: skip
    return markdown(["generator", "planted, %", "true, %", "estimated, %", "verdict"], rows)


def ordered(found: dict[str, Any]) -> list[Wanted]:
    """Generators measured, by attribute, rate and seed."""
    names = list(ATTRIBUTES)
    wanted = [one for one in all_wanted() if one.name in found]
    return sorted(wanted, key=lambda one: (names.index(one.attribute.name), one.rate, one.seed))


Found = dict[str, dict[str, Any]]


def headline(found: Found, attributes: Found, seconds: dict[str, float], reweighted: Found, everywhere: Found) -> str:
    """The figures asked for, each with its target."""
    biased = [found[one.name] for one in ordered(found) if one.rate >= 70]
    even = [found[one.name] for one in ordered(found) if one.rate == 50]
    scores = [one["distance"] for one in biased], [one["distance"] for one in even]
    low, high = auroc_interval(*scores)
    errors = [abs(one["rate"] - one["true"]) for one in found.values()]
    inside = sum(one["low"] <= one["true"] <= one["high"] for one in found.values())
    alarms, sets = (sum(one[key] for one in attributes.values()) for key in ("null_code_alarms", "null_code_sets"))
    tolerant, strict = (sum(one["null_alarms"][key] for one in attributes.values()) for key in ("0.05", "0"))
    drawn_sets = sum(one["null_sets"] for one in attributes.values())
    hits = sum(round(5 * one["precision"]) for one in attributes.values())
    within = sum(round(5 * one["precision_within"]) for one in attributes.values())
    rows = [
        [
            f"detection, AUROC of {len(biased)} generators at 70 % or more against {len(even)} at 50 %", "≥ 0.98",
            f"{auroc(*scores):.3f} [{low:.3f}, {high:.3f}]",
        ],
        [
            "estimated less true rate, points", "within ± 5",
            (f"at most {100 * max(errors):.1f}, mean {100 * float(np.mean(errors)):.1f}; the truth is in the interval "
            f"in {exact(inside, len(found))}"),
        ],
        ["planted tokens, precision of the best 5", "≥ 0.9", f"{exact(hits, 5 * len(attributes))}"],
        ["the same, counting only what is gained where paint was laid", "", f"{exact(within, 5 * len(attributes))}"],
        [
            "generators planted at 50 % that are called biased", "≤ 5 %",
            exact(sum(one["word"] == "biased" for one in even), len(even)),
        ],
        ["sets painted by the toss of a coin that are called biased", "≤ 5 %", exact(tolerant, drawn_sets)],
        ["the same without any tolerance (nominal level 5 %)", "≤ 5 %", exact(strict, drawn_sets)],
        ["such sets in which any code shows an excess (false discoveries 5 %)", "≤ 5 %", exact(alarms, sets)],
        ["repair, `reweight`: true rate within 5 points of even, at most 3 points of recognition lost", "all",
         mended(reweighted)],
        ["the same, `everywhere`", "", mended(everywhere)],
        [
            f"audit of {SPEED:,} × {SPEED:,} images once tokens exist, training included", "< 60 s",
            f"{seconds['worked']:.0f} s of one core's time ({seconds['whole']:.0f} s by the clock, machine shared)",
        ],
        [
            "the same images on 16×16 grids of 16,384 codes, all codes compared (no training)", "",
            f"{seconds['large']:.0f} s of one core's time",
        ],
    ]  # fmt: skip
    return markdown(["figure", "target", "measured"], rows)


def mended(repairs: Found) -> str:
    """How many repairs did what is asked of them, and by how much the worst did not."""
    off = [abs(one["true"] - EVEN) for one in repairs.values()]
    lost = [recognition_lost(one) for one in repairs.values()]
    good = sum(gap <= 0.05 and cost <= 0.03 for gap, cost in zip(off, lost, strict=True))
    return (
        f"{good} of {len(repairs)}; {100 * max(off):.1f} points off at most, {100 * max(lost):+.1f} points lost at "
        f"most, mean {100 * float(np.mean(lost)):+.1f}"
    )


def recognition_lost(repair: dict[str, Any]) -> float:
    """Share recognised before less after, by the judge who loses most."""
    shares = {(row["judge"], row["when"]): row["recognised"] for row in repair["rows"]}
    return max(shares[judge, "before"] - shares[judge, "after"] for judge, _ in shares)


def repair_table(found: Found, repairs: Found) -> str:
    """What the repair did to each biased generator, and its price."""

    def both(rows: list[dict[str, Any]], name: str, digits: int, scale: float = 1.0) -> str:
        cells = [
            f"{scale * np.mean([row[name] for row in rows if row['when'] == when]):.{digits}f}"
            for when in ("before", "after")
        ]
        return " → ".join(cells)

    rows = []
    for one in ordered(found):
        if one.name in repairs:
            repair = repairs[one.name]
            rows.append(
                [
                    one.name, f"{repair['strength']:.2f}",
                    f"{percent(found[one.name]['true'])} → {percent(repair['true'])}",
                    percent(next(row["rate"] for row in repair["rows"] if row["when"] == "after")),
                    f"{100 * recognition_lost(repair):+.1f}",
                    both(repair["rows"], "recognised", 1, 100), both(repair["rows"], "frechet", 2),
                    both(repair["rows"], "diversity", 2),
                ]
            )  # fmt: skip
    heads = [
        "generator",
        "strength",
        "true rate, %",
        "estimated after, %",
        "most lost by a judge",
        "recognised, %",
        "Fréchet distance",
        "diversity",
    ]
    return markdown(heads, rows)


def attribute_table(attributes: dict[str, dict[str, Any]]) -> str:
    """What each attribute's audit rests on."""
    rows = []
    for name, one in attributes.items():
        truth = ATTRIBUTES[name]
        where = truth.concept if truth.other is None else f"{truth.concept}, {truth.other}"
        rows.append(
            [
                name, where, truth.what, f"{one['rule_finds']:.1%} / {one['rule_errs']:.1%}",
                " ".join(map(str, one["best"])), f"{one['precision']:.1f}", f"{one['precision_concept_tokens']:.1f}",
                f"{len(one['planted'])} of {one['live']}",
            ]
        )  # fmt: skip
    heads = [
        "attribute", "classes", "what", "rule finds / errs", "best five codes", "planted among them",
        "planted among the five first concept tokens", "planted codes",
    ]  # fmt: skip
    return markdown(heads, rows)


def published_table(found: dict[str, dict[str, Any]]) -> str:
    """What counting two lists says of generators that are even."""
    rows = []
    for one in ordered(found):
        if one.rate == 50 and one.seed == 0 and found[one.name]["lists"]:
            counts = found[one.name]["lists"][0]
            rows.append(
                [
                    one.name, percent(found[one.name]["true"]), f"{counts['published_half_delta']:+.2f}",
                    f"{counts['delta']:+.2f} [{counts['delta_low']:+.2f}, {counts['delta_high']:+.2f}]",
                    f"{counts['expected']:+.2f}", f"{counts['paired_p']:.4f}",
                ]
            )  # fmt: skip
    heads = ["generator", "true rate, %", "published half delta", "Cliff's delta", "expected at 50 %", "paired p"]
    return markdown(heads, rows)


def measure_speed(data: str) -> dict[str, float]:
    """Seconds of an audit of 10,000 attribute images and 10,000 neutral ones, from tokens to tables."""
    attribute, model = ATTRIBUTES["corner"], load_zoo("fashion")
    groups, _ = groups_of(attribute, model, data)
    rng = generator_for(0, "speed")

    def many(name: str, images: int) -> Grids:
        tokens = groups[name].tokens[torch.randint(len(groups[name]), (images,), generator=rng)]
        return Grids(tokens=tokens, image_ids=tuple(f"{name}/{row}" for row in range(images)))

    larger = {name: many(name, SPEED // 2) for name in groups}
    neutral = many("with", SPEED)
    settings = settings_for(attribute)
    learn_groups(groups, model, settings)  # libraries are loaded
    began = time.perf_counter()
    worked = time.process_time()
    learned = learn_groups(larger, model, settings)
    between = time.perf_counter()
    audit_tables(audit_neutral(learned, neutral, settings), settings)
    ended = time.perf_counter()
    return {
        "whole": ended - began, "learn": between - began, "worked": time.process_time() - worked,
        "threads": float(torch.get_num_threads()), "large": measure_large(),
    }  # fmt: skip


def measure_large() -> float:
    """Seconds of one core's time to compare all codes of a codebook of 16,384 on 16x16 grids, as many images."""
    rng = generator_for(0, "large")

    def grids(images: int) -> Tensor:
        return (torch.rand(images, 16, 16, generator=rng) ** 4 * 16_384).int()

    groups, neutral = {"with": grids(SPEED // 2), "without": grids(SPEED // 2)}, grids(SPEED)
    began = time.process_time()
    find_carriers(groups, neutral, live_codes(*groups.values(), neutral), torch.tensor([0.5, 0.5], dtype=torch.float64))
    return time.process_time() - began


def draw_rates(found: Found, reweighted: Found, everywhere: Found, path: Path) -> None:
    """Estimated against true rates, and what the repair makes of them."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    colours = dict(zip(ATTRIBUTES, ("#d1481c", "#2b6cb0", "#2f855a", "#805ad5"), strict=True))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    left.plot([40, 100], [40, 100], color="#999", lw=1)
    left.fill_between([40, 100], [35, 95], [45, 105], color="#999", alpha=0.12, lw=0)
    for one in ordered(found):
        row = found[one.name]
        rate, low, high = (100 * row[name] for name in ("rate", "low", "high"))
        left.errorbar(
            100 * row["true"], rate, [[rate - low], [high - rate]], fmt="o", ms=4, lw=1.2,
            color=colours[one.attribute.name],
        )  # fmt: skip
        for repairs, style in ((reweighted, "-"), (everywhere, ":")):
            if one.name in repairs:
                ends = [100 * row["true"], 100 * repairs[one.name]["true"]]
                right.plot([0, 1], ends, style, marker="o", ms=4, lw=1.2, color=colours[one.attribute.name])
    left.set(
        xlabel="true rate, %", ylabel="estimated rate, %, 95 % interval", title="Estimated against true (± 5 points)"
    )
    right.axhspan(45, 55, color="#999", alpha=0.2, lw=0)
    right.set(
        xticks=[0, 1],
        xticklabels=["before", "after"],
        ylabel="true rate, %",
        title="Repair: reweight, and dotted everywhere",
    )
    for name, colour in colours.items():
        right.plot([], [], color=colour, marker="o", ms=4, label=name)
    right.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def draw_pictures(found: Found, reweighted: Found, data: str, work: Path, path: Path) -> None:
    """What the generators planted at 99 % draw, where the codes that decide stand, and the same draws repaired."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(ATTRIBUTES), 2, figsize=(10.4, 3.4), layout="constrained")
    for line, attribute in zip(axes, ATTRIBUTES.values(), strict=True):
        before, after, marked = repaired_draws(attribute, found, reweighted, data, work)
        for axis, pixels, cells, title in (
            (line[0], before, marked, f"planted at {SHOWN_RATE} %, deciding codes outlined"),
            (line[1], after, None, "the same draws, reweighted"),
        ):
            axis.imshow(torch.cat(list(pixels[:, 0]), 1), cmap="gray", vmin=0, vmax=1)
            for number, row, column in [] if cells is None else cells.nonzero().tolist():
                corner = (28 * number + 4 * column - 0.5, 4 * row - 0.5)
                axis.add_patch(pyplot.Rectangle(corner, 4, 4, fill=False, color="#f06a24", lw=0.7))
            axis.set(xticks=[], yticks=[])
            if attribute is next(iter(ATTRIBUTES.values())):
                axis.set_title(title, fontsize=9)
        line[0].set_ylabel(f"{attribute.name}\n{attribute.concept}", fontsize=8)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def repaired_draws(
    attribute: Attribute, found: Found, reweighted: Found, data: str, work: Path
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures before and after, by the same random numbers, and where the five best codes stand before."""
    name = f"{attribute.name}-{SHOWN_RATE}-0"
    model = load_zoo(str(work / name))
    groups, _ = groups_of(attribute, model, data)
    rate = found[name]["rate"]
    even = torch.tensor([EVEN, 1 - EVEN], dtype=torch.float64)
    rates = torch.tensor([rate, 1 - rate], dtype=torch.float64)
    steering = group_steering([one.tokens for one in groups.values()], model.k, rates, even)
    before = drawn(model, attribute, "shown", SHOWN)
    steered = model.with_steering(steering.at(reweighted[name]["strength"]))
    after = drawn(steered, attribute, "shown", SHOWN)
    grids = {one: some.tokens for one, some in groups.items()}
    carriers = find_carriers(grids, before.tokens, live_codes(*grids.values(), before.tokens), even)
    best = torch.tensor([int(carriers.codes[at]) for at in carriers.of(0, 0.05)[:5]])
    pictures = (pixels_of(one.tokens, model, SHOWN) for one in (before, after))
    return *pictures, torch.isin(before.tokens.long(), best)


def worlds_line(found: dict[str, Any]) -> str:
    """What the search for shortcuts says of planted worlds."""
    return (
        f"In {found['runs']} planted worlds the patch is the first suspect in {exact(found['first'], found['runs'])}; "
        f"of the true causes {exact(found['causes'], found['causes_tried'])} are called shortcuts, of the codes that "
        f"mean nothing {exact(found['others'], found['others_tried'])}."
    )


def write_results(data: str, work: Path, docs: Path = DOCS) -> None:
    """Write the tables into audit.md and draw its pictures.

    Args:
        data: Image source of Fashion-MNIST.
        work: Where measure.py left its figures.
        docs: Where audit.md lies.

    Raises:
        FileNotFoundError: An attribute was not measured.
    """
    import matplotlib

    matplotlib.use("Agg")
    held = {path.stem: json.loads(path.read_text()) for path in sorted((work / "measured").glob("*.json"))}
    if missing := [name for name in ATTRIBUTES if name not in held]:
        raise FileNotFoundError(f"{str(work)!r} holds no figures of {missing[0]!r}; measure first: --only measure")
    attributes = {name: held[name] for name in ATTRIBUTES}
    found = {one.name: held[one.name] for one in all_wanted() if one.name in held}
    timed = work / "speed.json"
    everywhere = {name: one["repair"] for name, one in found.items() if "repair" in one}
    reweighted = {
        one.name: held[f"{one.name}.reweight"]["repair"] for one in all_wanted() if f"{one.name}.reweight" in held
    }
    if not timed.exists():
        write_json(timed, measure_speed(data))
    shortcuts = work / "shortcuts.json"
    if not shortcuts.exists():
        write_json(shortcuts, measure_worlds())
    parts = [
        headline(found, attributes, json.loads(timed.read_text()), reweighted, everywhere),
        "### Attributes", attribute_table(attributes), "### Rates", rates_table(found),
        "### What counting two lists would have said", published_table(found),
        "### Repair, `reweight`", repair_table(found, reweighted),
        "### Repair, `everywhere`", repair_table(found, everywhere),
        "### Shortcuts", worlds_line(json.loads(shortcuts.read_text())),
    ]  # fmt: skip
    page = docs / "audit.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{rest.split(END)[1]}")
    draw_rates(found, reweighted, everywhere, docs / "audit-rates.png")
    draw_pictures(found, reweighted, data, work, docs / "audit-pictures.png")
