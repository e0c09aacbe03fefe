"""Re-make docs/results.md and the README's picture: two studies of `zoo:fashion`, generated and real images.

    python recipes/fashion/results.py --data idx:/usr/share/datasets/fashion-mnist --work out/results

The studies are ordinary `vqcortex run` folders under --work; stages that are done are not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqcortex.cli.show import Bars
from vqcortex.pipelines.exhibit import gather
from vqcortex.pipelines.run import run
from vqcortex.pipelines.settings import RunSettings
from vqcortex.pipelines.study import Study, command_of
from vqcortex.results import Table

ROOT = Path(__file__).parents[2]
SAME: dict[str, Any] = {
    "epochs": 20, "step_every": 8, "minibatch": 128, "region": "2:5,2:5", "evaluate_images": 300, "steps": 200,
    "search_images": 6, "shares": (1.0, 3.0, 5.0, 10.0, 20.0, 40.0),
}  # fmt: skip
STUDIES: dict[str, dict[str, Any]] = {
    "generated": {"per_concept": 300},
    "real": {"per_concept": 300, "images_split": "test"},
}
ARMS = {
    RunSettings.method: "default", "tis": "published TIS", "random": "random", "centre": "centre",
    "brightness": "brightness", "token_frequency": "token frequency",
}  # fmt: skip
FILLS = ("black", "grey", "mean_code", "resampled_codes")


def settings_for(name: str, data: str, work: Path) -> RunSettings:
    """One of the two studies."""
    own = {**SAME, **STUDIES[name]}
    if name == "real":
        own["images"] = data
    return RunSettings(out=work / name, **own)


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


def section(name: str, study: Study) -> str:
    """Everything about one study."""
    image = study.table("image_level")
    judges = sorted({row["judge"] for row in image.rows})
    counts = sorted({row["n"] for row in image.rows if row["n"]})
    shown = [n for n in counts if n in (2, 5, 10)] or counts[:2]
    metrics = study_metrics(study)
    errors = study.table("traversal_error").rows
    scratch = study.table("scratch").rows
    clusters = study.table("clusters").rows
    parts = [
        f"## {name.capitalize()} images",
        (f"Extractor `{metrics['extractor']}`: top-1 {metrics['top1']:.1%} on {metrics['images']:,.0f} test images, "
        f"ECE {metrics['ece_calibrated']:.3f} after temperature scaling."),
        "### Image level",
        ("Drop of the judge's probability of the concept when n of 49 positions are hidden; higher is better; 95 % "
        "bootstrap intervals over test images."),
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
        "### Traversal and clusters",
        markdown(
            ["concept", "cells", "Pearson", "Spearman", "mean absolute error, logits", "slope"],
            [
                [row["concept"], str(row["cells"]), *(f"{row[key]:.2f}" for key in
                 ("pearson", "spearman", "mean_absolute_error", "slope"))]
                for row in errors
            ],
        ),
        (f"{len(clusters)} token clusters; stability {min(r['stability'] for r in clusters):.2f} to "
        f"{max(r['stability'] for r in clusters):.2f}, {sum(r['stability'] > 0.75 for r in clusters)} above 0.75."),
    ]  # fmt: skip
    return "\n\n".join(parts)


def study_metrics(study: Study) -> dict[str, Any]:
    """The extractor's held-out figures."""
    from vqcortex.extractors.checkpoint import load_trained

    trained = load_trained(study.path("train"))
    return {**trained.metrics, "extractor": trained.extractor}


def picture(study: Study, path: Path) -> None:
    """The README's picture: examples with importance, top tokens, and the evidence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    exhibit = gather(study, 4, "cpu", 250)
    names = ("Sneaker", "Bag", "Dress")
    figure = pyplot.figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    axes = left.subplots(len(names), 9, gridspec_kw={"width_ratios": [1.3] * 3 + [0.25] + [1] * 5})
    for line, name in zip(axes, names, strict=True):
        concept = next(one for one in exhibit.concepts if one.name == name)
        for axis in line:
            axis.axis("off")
        line[0].set_title(name, loc="left", fontsize=11, fontweight="bold")
        for axis, image, heat in zip(line[:3], concept.images, concept.importance, strict=False):
            axis.imshow(image)
            spread = np.kron(heat, np.ones((4, 4)))
            axis.imshow(np.clip(spread, 0, 1), cmap="Oranges", alpha=np.clip(spread, 0, 1) * 0.75, vmin=0, vmax=1)
        for axis, code in zip(line[4:], concept.codes, strict=False):
            axis.imshow(code.patches[0])
            axis.add_patch(pyplot.Rectangle((3.5, 3.5), 4, 4, fill=False, color="#d1481c", lw=1.5))
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
        xlabel="positions hidden, of 49",
        ylabel=f"drop of probability, judge {judge}",
        title="Evidence (mean-code fill)",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run both studies, write the document and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="torchvision:FashionMNIST")
    parser.add_argument("--work", type=Path, default=Path("out/results"))
    chosen = parser.parse_args()
    studies = {name: run(settings_for(name, chosen.data, chosen.work), progress=Bars()) for name in STUDIES}
    lines = [
        "# Results on `zoo:fashion`",
        "Made by `python recipes/fashion/results.py --data SOURCE`, where SOURCE holds Fashion-MNIST. "
        "The generated study is\n\n"
        + "".join(
            f"    {command_of(stage, studies['generated'].record(stage)['key']['settings'])} --out STUDY\n"
            for stage in ("tokens", "train", "score", "concepts", "traverse", "search", "evaluate")
        )
        + "\nand the real one encodes the test images (`--images SOURCE --images-split test`). "
        "The judges were trained on the training images and took no part in any explanation. "
        "What follows is what came out, won or lost.",
        *(section(name, study) for name, study in studies.items()),
    ]
    (ROOT / "docs/results.md").write_text("\n\n".join(lines) + "\n")
    picture(studies["generated"], ROOT / "docs/demo.png")


if __name__ == "__main__":
    main()
