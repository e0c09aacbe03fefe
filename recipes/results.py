"""Re-make docs/results.md and its pictures: studies of every embedded model, of generated and of real images.

    python recipes/results.py --fashion idx:/usr/share/datasets/fashion-mnist --cifar10 torchvision:CIFAR10

The studies are ordinary `vqcortex run` folders under --work, each followed by `vqcortex compare`; stages that are done
are not done again. `--only NAME` makes some of them; what the page says of the others stays.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from vqcortex.cli.show import Bars
from vqcortex.files import write_json
from vqcortex.images import open_images
from vqcortex.judges import load_judges
from vqcortex.pipelines.exhibit import gather
from vqcortex.pipelines.run import run
from vqcortex.pipelines.settings import CompareSettings, RunSettings
from vqcortex.pipelines.study import Study, command_of
from vqcortex.pipelines.tokens import make_tokens
from vqcortex.pipelines.train import train
from vqcortex.report.compare import compare
from vqcortex.results import Table
from vqcortex.tokens.manifest import read_manifest

ROOT = Path(__file__).parents[1]
EXTRACTORS = ("conv8", "se_resnet", "transformer", "pictures")
SAME: dict[str, Any] = {
    "epochs": 20, "step_every": 8, "minibatch": 128, "evaluate_images": 300, "steps": 200, "search_images": 6,
    "shares": (1.0, 3.0, 5.0, 10.0, 20.0, 40.0), "per_concept": 300,
}  # fmt: skip
COMPARISON: dict[str, Any] = {"compare_images": 400, "insertion_images": 100}
COMPARED = ("tis", "integrated_gradients", RunSettings.method)
BY_EXTRACTOR = ("integrated_gradients", *(f"integrated_gradients@{name}" for name in EXTRACTORS[1:]))
ARMS = {
    RunSettings.method: "default", "tis": "published TIS", "random": "random", "centre": "centre",
    "brightness": "brightness", "token_frequency": "token frequency",
}  # fmt: skip
EDITS = {"remove": "taken out", "insert": "put in", "swap": "swapped"}
CONTROLS = ("random", "centre", "brightness", "token_frequency")
FILLS = ("black", "grey", "mean_code", "resampled_codes")
TOKEN_FILLS = ("mean_code", "resampled_codes")


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study to be made.

    Args:
        title: Of its section.
        model: The embedded model.
        region: Searched at the codebook level.
        shown: Three concepts for the picture.
        data: Which source its real images come from; None: they are drawn by the model.
    """

    title: str
    model: str
    region: str
    shown: tuple[str, str, str]
    data: str | None = None

    def settings(self, out: Path, sources: dict[str, str]) -> RunSettings:
        """Of `run`."""
        own: dict[str, Any] = {}
        if self.data is not None:
            source = sources[self.data]
            own = {"images": source, "images_split": "test", "judge_concepts": names_beside(out, source, self.model)}
        return RunSettings(out=out, model=self.model, region=self.region, **SAME, **own)


CLOTHES, THINGS = ("Sneaker", "Bag", "Dress"), ("ship", "horse", "automobile")
STUDIES = {
    "fashion-generated": Plan(
        title="`zoo:fashion`, generated images", model="zoo:fashion", region="2:5,2:5", shown=CLOTHES
    ),
    "fashion-real": Plan(
        title="`zoo:fashion`, real images", model="zoo:fashion", region="2:5,2:5", shown=CLOTHES, data="fashion"
    ),
    "cifar10-generated": Plan(
        title="`zoo:cifar10` (VQGAN), generated images", model="zoo:cifar10", region="3:6,3:6", shown=THINGS
    ),
    "cifar10-real": Plan(
        title="`zoo:cifar10` (VQGAN), real images", model="zoo:cifar10", region="3:6,3:6", shown=THINGS, data="cifar10"
    ),
    "cifar10-vqvae-real": Plan(
        title="`zoo:cifar10-vqvae` (VQ-VAE), real images", model="zoo:cifar10-vqvae", region="3:6,3:6", shown=THINGS,
        data="cifar10",
    ),
}  # fmt: skip


def names_beside(out: Path, source: str, model: str) -> Path | None:
    """A file that says what judges call the source's concepts, in their order; None where the names are the same."""
    ours, theirs = open_images(source, "test").concepts, load_judges(model)[0].concepts
    if ours == theirs:
        return None
    path = out.with_name(f"{out.name}-concepts.json")
    write_json(path, dict(zip(ours, theirs, strict=True)))
    return path


def spoken(study: Study) -> dict[str, str]:
    """What judges call the concepts of a study; of a source whose classes have numbers only, their names."""
    path = study.folder.with_name(f"{study.folder.name}-concepts.json")
    return json.loads(path.read_text()) if path.exists() else {}


def make(name: str, work: Path, sources: dict[str, str], *, methods_only: bool) -> None:
    """Run a study and compare methods on it; with real images, also the four extractors, in a study beside it.

    `methods_only` leaves out everything but tokens, extractors and the comparison of methods.
    """
    plan, beside = STUDIES[name], beside_of(work / name)
    settings = plan.settings(work / name, sources)
    if methods_only:
        make_tokens(settings, progress=Bars())
        train(settings, progress=Bars())
    else:
        run(settings, progress=Bars())
    same: dict[str, Any] = {"judge_concepts": settings.judge_concepts, **COMPARISON}
    compare(CompareSettings(out=work / name, compare_methods=COMPARED, **same), progress=Bars())
    if plan.data is not None and not methods_only:
        settings = replace(settings, out=beside, companions=EXTRACTORS[1:])
        make_tokens(settings, progress=Bars())
        train(settings, progress=Bars())
        compare(CompareSettings(out=beside, compare_methods=BY_EXTRACTOR, **same), progress=Bars())


def beside_of(folder: Path) -> Path:
    """Where the comparison of the four extractors lies."""
    return folder.with_name(f"{folder.name}-extractors")


def cell(row: Any) -> str:
    """A value with its interval."""
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def image_table(table: Table, n: int, judge: str) -> str:
    """Drop of the judge's probability at one n: arms by fills."""
    rows = []
    for arm, label in ARMS.items():
        found = [
            table.where(concept="all", arm=arm, fill=fill, n=n, judge=judge, metric="probability_drop")
            for fill in FILLS
        ]
        rows.append([label, *(cell(one[0]) for one in found)])
    return markdown([f"{judge}, n = {n}", *FILLS], rows)


def verdict_counts(study: Study, level: str, metric: str) -> str:
    """How often our default is better, worse or undecided against each rival, over all judges, n and concepts."""
    rows = [row for row in study.table(f"{level}_verdicts").rows if row["metric"] == metric]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row["masking"], row["other"], row["fill"]), []).append(row["verdict"])
    lines = [
        [masking, other, fill, *(str(words.count(word)) for word in ("better", "undecided", "worse"))]
        for (masking, other, fill), words in sorted(groups.items())
    ]
    return markdown(["masking", "default against", "fill", "better", "undecided", "worse"], lines)


def concept_table(table: Table) -> str:
    """Concept level, both maskings, in token space."""
    rows = [
        [row["masking"], row["arm"], row["judge"], cell(row), f"{row['hidden_share']:.1%}"]
        for row in table.where(concept="all", fill="mean_code", metric="probability_drop")
    ]
    return markdown(["masking", "arm", "judge", "probability drop", "hidden area"], rows)


def codebook_table(table: Table) -> str:
    """Codebook level, all pairs."""
    rows = [
        [row["arm"], row["judge"], row["metric"], cell(row)]
        for row in table.where(concept="all")
        if row["metric"] in ("target_probability", "target_rise", "source_drop", "changed_tokens")
    ]
    return markdown(["arm", "judge", "metric", "value"], rows)


def method_table(study: Study, methods: Sequence[str]) -> str:
    """Drop of both judges' probability in token space: mean over 6 and 10 % of the positions, and at 10 % alone."""
    table, members = study.table("comparison"), members_of(study)
    tenth = round(0.1 * math.prod(read_manifest(study.path("tokens")).grid))
    rows = []
    for method in methods:
        name = method.partition("@")[2] or (next(iter(members)) if ":" not in method else "")
        told = "" if method in CONTROLS else f"`{name}`, {members[name]['top1']:.1%}" if name else "all"
        found = [table.where(arm=method, metric="mean_drop", fill=fill, judge="mean") for fill in TOKEN_FILLS]
        found += [table.where(arm=method, metric="drop", n=tenth, fill=fill, judge="mean") for fill in TOKEN_FILLS]
        rows.append([method, told, *(cell(one[0]) for one in found)])
    heads = [*TOKEN_FILLS, *(f"{fill}, n = {tenth}" for fill in TOKEN_FILLS)]
    return markdown(["hidden first", "extractor, its top-1", *heads], rows)


def times(row: Any) -> str:
    """A ratio with its interval, or why there is none."""
    if row["ratio"] is None or row["ratio_low"] is None:
        return "too near to zero to say how many times"
    return f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] times"


def ratio_lines(study: Study) -> str:
    """How many times the drop of random and of published TIS the default's is."""
    rows = study.table("comparison_pairs").where(method=RunSettings.method, metric="mean_drop")
    lines = [
        f"- {row['fill']}: {times(row)} that of {row['other']}"
        for row in rows
        if row["other"] in ("random", "tis") and row["fill"] in (*TOKEN_FILLS, "mean")
    ]
    return "\n".join(lines)


def section(title: str, study: Study, beside: Study | None, positions: int) -> str:
    """Everything about one study."""
    levels = levels_part(study, positions) if has_levels(study) else ["The other levels were left out of this study."]
    return "\n\n".join([*methods_part(title, study, beside), *levels])


def has_levels(study: Study) -> bool:
    """Whether more than methods was looked at."""
    return (study.path("evaluate") / "stage.json").exists()


def methods_part(title: str, study: Study, beside: Study | None) -> list[str]:
    """What was made, how good the extractors are, and what the methods are worth."""
    return [
        f"## {title}",
        commands(study),
        " ".join(
            f"`{name}`: top-1 {one['top1']:.1%} on {one['images']:,.0f} test images, ECE {one['ece_calibrated']:.3f}."
            for name, one in members_of(study).items()
        ),
        "### Methods",
        "Mean drop of both judges' probability when 6 and 10 % of the positions are hidden, and at 10 % alone.",
        method_table(study, (*COMPARED, *CONTROLS)),
        f"Over 6 and 10 % the default's drop is\n\n{ratio_lines(study)}",
        *(["The four extractors, trained on the same tokens:", method_table(beside, BY_EXTRACTOR)] if beside else []),
    ]


def levels_part(study: Study, positions: int) -> list[str]:
    """Image, concept and codebook level, traversal and clusters."""
    image = study.table("image_level")
    judges = sorted({row["judge"] for row in image.rows})
    counts = sorted({row["n"] for row in image.rows if row["n"]})
    shown = [n for n in counts if n in (2, 5, 10)] or counts[:2]
    errors = study.table("traversal_error").rows
    scratch = study.table("scratch").rows
    clusters, called = study.table("clusters").rows, spoken(study)
    return [
        "### Image level",
        (f"Drop of the judge's probability of the concept when n of {positions} positions are hidden; higher is "
        "better; 95 % bootstrap intervals over test images."),
        *(image_table(image, n, judge) for n in shown for judge in judges),
        "Verdicts of paired differences (all judges, all n, pooled and per concept; one comparison at a time):",
        verdict_counts(study, "image", "probability_drop"),
        "### Concept level",
        "Mean-code fill. `by_id` hides every cell with a listed code; `area_matched` the same number per image.",
        concept_table(study.table("concept_level")),
        "### Codebook level",
        "Target probability after searching a 3×3 window, judged by classifiers that took no part; mean over restarts.",
        codebook_table(study.table("codebook_level")),
        *(f"Whole grids searched from scratch, {strategy}: judges' mean probability of the concept "
          f"{np.mean([row['probability'] for row in scratch if row['strategy'] == strategy]):.3f}."
          for strategy in dict.fromkeys(row["strategy"] for row in scratch)),
        "### Editability",
        ("A concept's tokens taken out of its images, put into others, swapped for those of the image's own concept, "
        "and as many frequent or random ones instead; p of the paired difference to the concept tokens "
        "([how](editing.md))."),
        editability_table(study),
        "### Traversal and clusters",
        markdown(
            ["concept", "cells", "Pearson", "Spearman", "mean absolute error, logits", "slope"],
            [
                [called.get(row["concept"], row["concept"]), str(row["cells"]), *(f"{row[key]:.2f}" for key in
                 ("pearson", "spearman", "mean_absolute_error", "slope"))]
                for row in errors
            ],
        ),
        (f"{len(clusters)} token clusters; stability {min(r['stability'] for r in clusters):.2f} to "
        f"{max(r['stability'] for r in clusters):.2f}, {sum(r['stability'] > 0.75 for r in clusters)} above 0.75."),
    ]  # fmt: skip


def editability_table(study: Study) -> str:
    """Share of images in which each judge follows, by kind of edit, size of the list and whose tokens they are."""
    table = study.table("editability")
    judges = sorted({row["judge"] for row in table.rows})
    heads = ["", "tokens of the list", "cells changed", "judge", "concept tokens", "token frequency", "random codes"]
    rows = []
    for kind, label in EDITS.items():
        for tokens in (20, 5):
            for judge in judges:
                ours, *others = (
                    table.where(concept="all", kind=kind, tokens=tokens, judge=judge, arm=arm)[0]
                    for arm in ("concept_tokens", "token_frequency", "random_codes")
                )
                rows.append([
                    f"{label}, {ours['images']} images", str(tokens), f"{ours['changed_tokens']:.1f}", judge,
                    f"{ours['success']:.1%} [{ours['low']:.1%}, {ours['high']:.1%}]",
                    *(f"{one['success']:.1%}, p = {one['p']:.4f}" for one in others),
                ])  # fmt: skip
    return markdown(heads, rows)


def members_of(study: Study) -> dict[str, dict[str, Any]]:
    """Held-out figures of the study's extractor and of its companions."""
    from vqcortex.extractors.checkpoint import load_trained

    folders = [study.path("train"), *sorted((study.path("train") / "companions").iterdir())]
    return {one.extractor: dict(one.metrics) for one in map(load_trained, folders)}


def picture(study: Study, shown: Sequence[str], path: Path) -> None:
    """A study at a glance: examples with importance, top tokens in context, and the evidence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    exhibit, called = gather(study, 4, "cpu", 250), spoken(study)
    figure = pyplot.figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    axes = left.subplots(len(shown), 9, gridspec_kw={"width_ratios": [1.3] * 3 + [0.25] + [1] * 5})
    for line, name in zip(axes, shown, strict=True):
        concept = next(one for one in exhibit.concepts if called.get(one.name, one.name) == name)
        for axis in line:
            axis.axis("off")
        line[0].set_title(name, loc="left", fontsize=11, fontweight="bold")
        for axis, image, heat in zip(line[:3], concept.images, concept.importance, strict=False):
            axis.imshow(image)
            spread = np.kron(heat, np.ones((image.shape[0] // len(heat),) * 2))
            axis.imshow(np.clip(spread, 0, 1), cmap="Oranges", alpha=np.clip(spread, 0, 1) * 0.75, vmin=0, vmax=1)
        for axis, code in zip(line[4:], concept.codes, strict=False):
            axis.imshow(code.patches[0])
            third = len(code.patches[0]) // 3  # a patch shows the code and its neighbours
            axis.add_patch(pyplot.Rectangle((third - 0.5,) * 2, third, third, fill=False, color="#d1481c", lw=1.5))
            axis.set_title(f"#{code.code}: {code.numbers['share']:.0%}", fontsize=8)
    left.suptitle(
        "Where the concept sits; the tokens that make it, in context, with their share of images", fontsize=10
    )
    axis = right.subplots()
    table = study.table("image_level")
    judge = sorted({row["judge"] for row in table.rows})[0]
    for arm, label in ARMS.items():
        rows = table.where(concept="all", arm=arm, fill="mean_code", judge=judge, metric="probability_drop")
        n, value = [row["n"] for row in rows], [row["value"] for row in rows]
        style = {"lw": 2.6, "color": "#d1481c"} if label == "default" else {"lw": 1.3}
        line = axis.plot(n, value, label=label, **style)
        axis.fill_between(n, [r["low"] for r in rows], [r["high"] for r in rows], alpha=0.15, color=line[0].get_color())
    axis.set(
        xlabel=f"positions hidden, of {math.prod(read_manifest(study.path('tokens')).grid)}",
        ylabel=f"drop of probability, judge {judge}",
        title="Evidence (mean-code fill)",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def is_made(folder: Path) -> bool:
    """Whether the last stage of a study is finished."""
    return (folder / "compare/stage.json").exists()


def commands(study: Study) -> str:
    """How a study is made by hand, one command per stage; SOURCE and NAMES.json stand for places on a machine."""
    stages = ("tokens", "train", "score", "concepts", "traverse", "search", "evaluate", "compare")
    lines = []
    for stage in stages:
        if (study.path(stage) / "stage.json").exists():
            settings = dict(study.record(stage)["key"]["settings"])
            for name, place in (("images", "SOURCE"), ("judge_concepts", "NAMES.json")):
                if settings.get(name):
                    settings[name] = place
            lines.append(f"    {command_of(stage, settings)} --out STUDY")
    return "Made by\n\n" + "\n".join(lines)


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a study's section on the page."""
    return f"<!-- study: {name} -->", f"<!-- end of {name} -->"


def page_with(page: str, sections: dict[str, str]) -> str:
    """The page with some sections replaced, or appended where it has none of that name."""
    for name, text in sections.items():
        begin, end = marks(name)
        block = f"{begin}\n{text}\n{end}"
        if begin in page:
            before, rest = page.split(begin)
            page = before + block + rest.split(end)[1]
        else:
            page = f"{page.rstrip()}\n\n{block}\n"
    return page


def sections_of(work: Path, made: Sequence[str]) -> dict[str, str]:
    """The sections of the studies that are finished."""
    found = {}
    for name in made:
        study, beside = Study(work / name), beside_of(work / name)
        h, w = read_manifest(study.path("tokens")).grid
        found[name] = section(STUDIES[name].title, study, Study(beside) if is_made(beside) else None, h * w)
        if has_levels(study):
            title, rest = found[name].split("\n\n", 1)
            alt = "Importance over examples, concept tokens in context, and the evidence"
            found[name] = f"{title}\n\n![{alt}]({picture_of(name)})\n\n{rest}"
    return found


def picture_of(name: str) -> str:
    """Its picture's file in docs; that of the first study is the README's."""
    return "demo.png" if name == next(iter(STUDIES)) else f"results-{name}.png"


def main() -> None:
    """Run the studies asked for, write the document and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", default="torchvision:FashionMNIST", help="source of Fashion-MNIST")
    parser.add_argument("--cifar10", default="torchvision:CIFAR10", help="source of CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("out/results"))
    parser.add_argument("--only", nargs="*", choices=sorted(STUDIES), default=list(STUDIES))
    parser.add_argument("--methods-only", action="store_true", help="compare methods, and leave the other levels out")
    chosen = parser.parse_args()
    for name in chosen.only:
        sources = {"fashion": chosen.fashion, "cifar10": chosen.cifar10}
        make(name, chosen.work, sources, methods_only=chosen.methods_only)
    made = [name for name in STUDIES if is_made(chosen.work / name)]
    page = ROOT / "docs/results.md"
    page.write_text(page_with(page.read_text(), sections_of(chosen.work, made)))
    for name in made:
        if has_levels(study := Study(chosen.work / name)):
            picture(study, STUDIES[name].shown, ROOT / "docs" / picture_of(name))


if __name__ == "__main__":
    main()
