"""Opening a large checkpoint: peak memory of ours and of plain code, for both formats of a 1 GB file.

python benchmarks/opening.py    # needs 1 GB of disk and 3 GB of memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
from common import Comparison, growth_of, peak, spread_of
from safetensors.torch import load_file, save_file
from torch import nn

from vqcortex.checkpoints import fill, read_checkpoint, state_dict_of

ALLOWED = 1.5  # times the size of the file


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A stack of 5×5 convolutions in float32."""

    layers: int = 10
    channels: int = 1024


FULL = Sizes()
SMALL = Sizes(layers=2, channels=8)


def network(sizes: Sizes) -> nn.Module:
    """The model that the checkpoint belongs to."""
    return nn.Sequential(*(nn.Conv2d(sizes.channels, sizes.channels, 5) for _ in range(sizes.layers)))


def write(sizes: Sizes, path: Path) -> None:
    """A checkpoint of the model, in the format that the path's ending names."""
    tensors = network(sizes).state_dict()
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)


def ours(sizes: Sizes, path: Path) -> nn.Module:
    """A module built of nothing, then filled."""
    with torch.device("meta"):
        module = network(sizes)
    fill(module, state_dict_of(read_checkpoint(path), path), path=path)
    return module


def plain(sizes: Sizes, path: Path) -> nn.Module:
    """As most code does it: the module is built, the file read into memory, and copied over."""
    module = network(sizes)
    is_torch = path.suffix != ".safetensors"
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"] if is_torch else load_file(path))
    return module.eval()


OPENERS: Mapping[str, Callable[[Sizes, Path], nn.Module]] = {"ours": ours, "plain": plain}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What opening cost a process, in MB.

    Args:
        growth: Above what was resident before, with torch imported.
        whole: With everything, Python and torch included.
    """

    growth: float
    whole: float


def peak_apart(sizes: Sizes, opener: str, path: Path) -> Peak:
    """`peak_here` in a fresh process."""
    size = "full" if sizes == FULL else "small"
    command = [sys.executable, __file__, "--opener", opener, "--path", str(path), "--size", size]
    return Peak(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def peak_here(sizes: Sizes, opener: str, path: Path) -> Peak:
    """What this process holds at most while it opens the file and uses every weight once."""
    growth = growth_of(lambda: [one.sum() for one in OPENERS[opener](sizes, path).parameters()])
    return Peak(growth=growth, whole=peak() / 2**20)


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file; memory is measured once, whatever `repeats` says."""
    with tempfile.TemporaryDirectory() as folder:
        return [one for ending in (".pt", ".safetensors") for one in compared(sizes, Path(folder) / f"model{ending}")]


def compared(sizes: Sizes, path: Path) -> list[Comparison]:
    """Ours beside what is allowed and beside plain code, for one format."""
    write(sizes, path)
    megabytes = path.stat().st_size / 2**20
    found = {opener: peak_apart(sizes, opener, path) for opener in OPENERS}
    path.unlink()
    note = "ours {ours:,.0f} MB and plain code {plain:,.0f} MB with all that Python and torch hold by themselves"
    return [
        Comparison(
            work=f"opening {megabytes:,.0f} MB of {path.suffix}, growth of peak memory",
            rival=rival,
            unit="MB",
            ours=spread_of([found["ours"].growth]),
            theirs=spread_of([theirs]),
            at_least=at_least,
            note=note.format(**{opener: one.whole for opener, one in found.items()}),
        )
        for rival, theirs, at_least in (
            (f"{ALLOWED} times the file", ALLOWED * megabytes, 1),
            ("torch.load or load_file, then load_state_dict", found["plain"].growth, None),
        )
    ]


def main() -> None:
    """Print all comparisons; with a path, one peak of this process: how `peak_apart` gets a fresh one."""
    flags = argparse.ArgumentParser(description=main.__doc__)
    flags.add_argument("--opener", choices=OPENERS)
    flags.add_argument("--path", type=Path)
    flags.add_argument("--size", choices=("full", "small"), default="full")
    given = flags.parse_args()
    sizes = FULL if given.size == "full" else SMALL
    if given.path:
        print(json.dumps(asdict(peak_here(sizes, given.opener, given.path))))
        return
    for one in measure(sizes, 1):
        print(f"{one.work}: {one.ours.median:,.0f} MB; {one.rival}: {one.theirs.median:,.0f} MB ({one.note})")
        if one.at_least:
            print(f"  that is {ALLOWED / one.times:.2f} times the file")


if __name__ == "__main__":
    main()
