"""Measure edits on a finished study: who accepts them, how small they are, how far they leak, what they cost.

python benchmarks/edits.py --study STUDY                  # all pairs of concepts, the whole grid, extractors choose
python benchmarks/edits.py --study STUDY --side 3 --every 3    # every third pair, each in its best square of 3x3
python benchmarks/edits.py --study STUDY --chosen-by conv8 --chosen-by judge:cnn

Needs the stages tokens and train, and concepts and traverse for the strategies that ask them. The same test images
serve every pair, region and strategy. Seconds are of the processor, all threads together, so that other work on the
machine does not count; and by the clock, which says something on an idle machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqcortex.editing import STRATEGIES as EVERY
from vqcortex.editing import make_strategy
from vqcortex.editing.measure import changed_tokens, measure_leak, measure_success
from vqcortex.editing.protocol import Means, Task
from vqcortex.editing.smallest import Smallest
from vqcortex.editing.swaps import best_window
from vqcortex.evaluation.judge import ask
from vqcortex.files import write_json
from vqcortex.judges import load_judges
from vqcortex.judges.quality import wilson
from vqcortex.pipelines.edit import inside_of
from vqcortex.pipelines.evaluate import ordered
from vqcortex.pipelines.judges import judges_place
from vqcortex.pipelines.loaded import REPORTED, Loaded, load_all
from vqcortex.pipelines.means import JUDGE, choosers_of, footprint_of, live_codes, open_means, place_of
from vqcortex.pipelines.study import Study

STRATEGIES = ("smallest", "search", "frequency_codes", "random_codes")


def pairs_of(loaded: Loaded, every: int) -> Iterator[tuple[int, int, Any, str]]:
    """Source, target, grid and name: a test image of its own for every pair of a source."""
    count, number = len(loaded.concepts), -1
    for source in range(count):
        images = next(loaded.store.batches(count - 1, split=REPORTED, concept=source, pictures=False))
        for turn, target in enumerate(one for one in range(count) if one != source):
            number += 1
            if number % every == 0:
                yield source, target, images.tokens[turn % len(images)], images.image_ids[turn % len(images)]


def task_of(loaded: Loaded, means: Means, side: int, every: int, sureness: float, radius: int) -> Task:
    """All pairs as one task, each in its best square."""
    source, target, grids, names = zip(*pairs_of(loaded, every), strict=True)
    tokens = torch.stack(grids)
    task = Task(
        tokens=tokens, free=torch.ones_like(tokens, dtype=torch.bool), source=torch.tensor(source),
        target=torch.tensor(target), image_ids=names,
    )  # fmt: skip
    gain = torch.cat([Smallest(sureness=sureness).estimates(one, one.tokens, means).amax(1) for one in task.parts(32)])
    free = best_window(gain, side)
    return replace(task, free=free, inside=inside_of(free, radius, place_of(loaded.model)))


def edited(name: str, task: Task, means: Means, settings: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    """Grids, and seconds per image; images are edited alone, as a user would wait for them."""
    found, began, clock = [], time.process_time(), time.perf_counter()
    for row in range(len(task)):
        found.append(make_strategy(name, **settings)(task.take([row]), means))
    spent, waited = time.process_time() - began, time.perf_counter() - clock
    return torch.cat(found), {"seconds": spent / len(task), "seconds_by_clock": waited / len(task)}


@torch.no_grad()
def measured(
    task: Task, grids: Tensor, loaded: Loaded, judges: Any, seconds: dict[str, float], radius: int
) -> dict[str, Any]:
    """What one strategy came to."""
    model = loaded.model
    before, after = (model.decode(model.embed(one)) for one in (task.tokens, grids))
    assert task.inside is not None
    leak, size = measure_leak(before, after, task.inside), changed_tokens(task.tokens, grids)
    beyond = measure_leak(before, after, inside_of(grids != task.tokens, radius, place_of(model))).mean_absolute
    known = ~leak.mean_absolute.isnan()
    row: dict[str, Any] = {
        "edits": len(task), "tokens": float(size.double().mean()), **seconds,
        "leak": float(leak.mean_absolute[known].mean() * 255) if known.any() else None,
        "leak_most": float(leak.mean_absolute[known].max() * 255) if known.any() else None,
        "leak_of_changed": None if beyond.isnan().all() else float(beyond.nanmean() * 255),
        "leak_images": int(known.sum()), "ssim": float(leak.ssim[known].mean()) if known.any() else None,
    }  # fmt: skip
    for judge in judges:
        said = measure_success(ask(judge, before), ask(judge, after), task.source, task.target)
        won = int(said.accepted.sum())
        row[judge.name] = {
            "accepted": won / len(task), "interval": wilson(won, len(task)), "named": float(said.named.double().mean()),
            "tokens": float(size[said.accepted].double().mean()) if won else None,
        }  # fmt: skip
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--side", type=int, default=7)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--chosen-by", action="append", default=[])
    parser.add_argument("--strategy", action="append", default=[], choices=sorted(EVERY))
    parser.add_argument("--sureness", type=float, default=5.0)
    parser.add_argument("--over", default="source")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--radius", type=int, default=-1, help="of the footprint; -1: measured")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    study = Study(asked.study)
    loaded = load_all(study, "cpu")
    judges = load_judges(judges_place(study, "", loaded.model), "cpu")
    choosers = choosers_of(asked.chosen_by, loaded, judges, loaded.concepts)
    alive = live_codes(loaded)
    footprint = footprint_of(loaded, alive, 0)
    radius = asked.radius if asked.radius >= 0 else footprint.radius()
    concepts = range(len(loaded.concepts))
    means = open_means(study, loaded, concepts, alive, tuple(choosers.values()), budget=300)
    task = task_of(loaded, means, asked.side, asked.every, asked.sureness, radius)
    settings = {"sureness": asked.sureness, "over": asked.over, "candidates": asked.candidates, "budget": 2 / 255}
    print(f"footprint radius {radius}; within 0, 1, 2, ...: swapped {footprint.swapped.tolist()}, "
          f"derivative {footprint.derivative.tolist()}")  # fmt: skip
    print(f"chosen by {', '.join(choosers)}; {len(task)} edits in squares of {asked.side}x{asked.side}")
    rows, small = {}, None
    for name in asked.strategy or STRATEGIES:
        # Controls change as many tokens in the same places as the smallest edit did, if it was made.
        where = task if small is None or name in ("smallest", "search") else _where_changed(task, small)
        grids, seconds = edited(name, where, means, settings)
        small = grids if name == "smallest" else small
        rows[name] = measured(task, grids, loaded, ordered(judges, loaded.concepts), seconds, radius)
        print(_line(name, rows[name], asked.chosen_by), flush=True)
    if asked.json is not None:
        about = {"side": asked.side, "every": asked.every, "chosen_by": list(choosers), "radius": radius}
        write_json(asked.json, {**about, "settings": settings, "rows": rows})


def _where_changed(task: Task, small: Tensor) -> Task:
    """Where the smallest edit changed something; the whole square where it changed nothing."""
    changed = small != task.tokens
    return replace(task, free=torch.where(changed.flatten(1).any(1)[:, None, None], changed, task.free))


def _line(name: str, row: dict[str, Any], chose: list[str]) -> str:
    said = []
    for judge, one in row.items():
        if isinstance(one, dict):
            low, high = one["interval"]
            role = "chose" if JUDGE + judge in chose else "held out"
            size = "" if one["tokens"] is None else f", {one['tokens']:.1f} tokens where accepted"
            said.append(
                f"{judge} ({role}) {one['accepted']:.3f} [{low:.3f}, {high:.3f}], named {one['named']:.3f}{size}"
            )
    beyond = f"beyond the changed {row['leak_of_changed'] or 0:.2f}/255"
    leak = "none possible" if row["leak"] is None else f"{row['leak']:.2f}/255, most {row['leak_most']:.2f}"
    cost = f"{row['tokens']:.2f} tokens; leak {leak} ({row['leak_images']} images); {beyond}; {row['seconds']:.2f} s"
    cost += f", {row['seconds_by_clock']:.2f} s by the clock"
    return f"{name}: {'; '.join(said)}; {cost}"


if __name__ == "__main__":
    main()
