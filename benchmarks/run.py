"""Measure what vqcortex costs beside what it replaces, and write results.json and the table of README.md.

python benchmarks/run.py                    # about an hour on two cores that do nothing else
python benchmarks/run.py --only search      # one of them; the others keep the results they have
python benchmarks/run.py --small            # toy sizes, seconds; shows that it runs and nothing else
python benchmarks/run.py --only geometry --device cuda --repeats 3    # on a graphics card, whose results have a name
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import adapters
import draws
import evaluation
import geometry
import pooling
import search
import swaps
import tis
import torch
from common import Comparison, machine

from vqcortex.files import write_bytes, write_json

HERE = Path(__file__).parent
RESULTS, PAGE = "results.json", "README.md"
BEGIN, END = "<!-- results: written by run.py -->", "<!-- end of results -->"
BENCHMARKS: Mapping[str, ModuleType] = {
    "tis": tis,
    "search": search,
    "swaps": swaps,
    "pooling": pooling,
    "adapters": adapters,
    "draws": draws,
    "evaluation": evaluation,
    "geometry": geometry,
}


def measure(name: str, *, small: bool, repeats: int, device: str = "cpu", images: int | None = None) -> dict[str, Any]:
    """One benchmark with the facts it depends on, as plain values.

    Args:
        device: Of `geometry`; the others know the CPU alone.
        images: In a batch of `geometry`; None: as many as suit the device.
    """
    benchmark = BENCHMARKS[name]
    sizes = benchmark.SMALL if small else benchmark.FULL
    if benchmark is geometry:
        sizes = geometry.on(sizes, device, images)
    compared: list[Comparison] = benchmark.measure(sizes, repeats)
    return {
        "machine": machine(device),
        "size": "toy" if small else "full",
        "comparisons": [one.as_json() for one in compared],
    }


def key_of(name: str, device: str) -> str:
    """Where results of a benchmark are kept: a graphics card's beside those of the CPU."""
    return name if device == "cpu" else f"{name} on {machine(device)['card']}"


def table_of(results: Mapping[str, Any]) -> str:
    """All results as Markdown."""
    keys = [key for name in BENCHMARKS for key in sorted(results) if key == name or key.startswith(f"{name} on ")]
    return "\n\n".join(_section(key, results[key]) for key in keys)


def _section(name: str, result: Mapping[str, Any]) -> str:
    facts, is_toy, compared = result["machine"], result["size"] == "toy", result["comparisons"]
    where = (*filter(None, [facts.get("card")]), facts["processor"], f"{facts['threads']} threads", facts["system"])
    lines = [
        f"### {name}{' at toy size: its ratios mean nothing' if is_toy else ''}",
        "",
        f"{', '.join(where)}, Python {facts['python']}, torch {facts['torch']}.",
        "",
        "| work | rival | ours | rival's | times less | target |",
        "|---|---|---|---|---|---|",
        *(_row(one, is_toy) for one in compared),
    ]
    notes = dict.fromkeys(f"- {one['rival']}: {one['note']}." for one in compared if one["note"])
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _row(one: Mapping[str, Any], is_toy: bool) -> str:
    target = (
        "" if is_toy or one["at_least"] is None else f"{one['at_least']:g}: {'met' if one['is_met'] else '**missed**'}"
    )
    cells = (one["work"], one["rival"], _cell(one, "ours"), _cell(one, "theirs"), f"**{one['times']:.3g}**", target)
    return f"| {' | '.join(cells)} |"


def _cell(one: Mapping[str, Any], who: str) -> str:
    found = one[who]
    middle = f"{found['median']:.3g} {one['unit']}"
    return middle if found["repeats"] == 1 else f"{middle} ({found['low']:.3g} to {found['high']:.3g})"


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """Write results.json, and README.md with the table in its place."""
    write_json(folder / RESULTS, dict(results))
    before, rest = (HERE / PAGE).read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    write_bytes(folder / PAGE, f"{before}{BEGIN}\n\n{table_of(results)}\n\n{END}{after}".encode())


def read_results(folder: Path) -> dict[str, Any]:
    """What an earlier run left, or nothing."""
    path = folder / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="benchmarks to run")
    found.add_argument("--small", action="store_true", help="toy sizes; nothing is written unless --out is given")
    found.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads; default: all")
    found.add_argument("--repeats", type=int, default=7, help="measurements of everything that is not very slow")
    found.add_argument("--device", default="cpu", help="of geometry: cpu or cuda")
    found.add_argument("--images", type=int, help="in a batch of geometry; default: as many as suit the device")
    found.add_argument("--out", type=Path, help="folder for results.json and README.md; default: this one")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Run the chosen benchmarks one after the other; results are written after each."""
    parser = flags()
    given = parser.parse_args(words)
    if given.threads < 1 or given.repeats < 1:
        parser.error(f"--threads {given.threads} and --repeats {given.repeats} must be at least 1")
    if given.device != "cpu" and given.only != ["geometry"]:
        parser.error(f"--device {given.device} is for --only geometry; the others measure the CPU")
    if given.images is not None and given.images < 1:
        parser.error(f"--images {given.images} must be at least 1")
    torch.set_num_threads(given.threads)
    out = given.out or (None if given.small else HERE)
    results = read_results(out) if out else {}
    for name in given.only:
        print(f"measuring {name} ...", flush=True)
        key = key_of(name, given.device)
        results[key] = measure(name, small=given.small, repeats=given.repeats, device=given.device, images=given.images)
        print(_section(key, results[key]), flush=True)
        if out:
            write_results(results, out)
    print(f"written: {out / RESULTS} and {out / PAGE}" if out else "toy sizes: nothing was written")


if __name__ == "__main__":
    main()
