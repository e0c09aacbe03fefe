"""What every benchmark shares: timing in turns, memory growth, and how a comparison is written down.

A comparison holds ours and one rival, measured in the same run and in the same unit, less being better; `times` says
how many times less ours takes, by the medians.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

import torch

NOTHING = 1e-9  # seconds or MB that stand for a measurement of zero, so that a ratio exists


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Repeated measurements of one thing.

    Args:
        median: In the unit of the comparison.
        low: The least of them.
        high: The most.
        repeats: How many there are; 1: there is no spread to see.
    """

    median: float
    low: float
    high: float
    repeats: int

    def times(self, factor: float) -> Spread:
        """The same measurements in another unit."""
        return Spread(median=self.median * factor, low=self.low * factor, high=self.high * factor, repeats=self.repeats)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours beside one rival.

    Args:
        work: What both do.
        rival: Who the other is.
        unit: Of both measurements; less is better.
        ours: Measurements of ours.
        theirs: Measurements of the rival.
        at_least: What `times` should reach; None: a figure for the record, without a target.
        note: What a reader has to know to judge it, or "".
    """

    work: str
    rival: str
    unit: str
    ours: Spread
    theirs: Spread
    at_least: float | None = None
    note: str = ""

    @property
    def times(self) -> float:
        """How many times less ours takes."""
        return max(self.theirs.median, NOTHING) / max(self.ours.median, NOTHING)

    @property
    def is_met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.at_least is None else self.times >= self.at_least

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values, with what follows from them."""
        return {**asdict(self), "times": self.times, "is_met": self.is_met}


def spread_of(values: Sequence[float]) -> Spread:
    """Median and ends of at least one measurement."""
    return Spread(median=median(values), low=min(values), high=max(values), repeats=len(values))


def in_turns(works: Mapping[str, Callable[[], object]], repeats: int, once: Collection[str] = ()) -> dict[str, Spread]:
    """Seconds per call, taken A B A B ..., so that a change of the machine's pace meets all of them alike.

    Args:
        works: What to time, by name; all warmed up already.
        repeats: Rounds, at least 1.
        once: Names that run in the first round only, because they take very long.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats):
        for name, work in works.items():
            if not turn or name not in once:
                seconds[name].append(seconds_of(work))
    return {name: spread_of(found) for name, found in seconds.items()}


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_fresh_process(file: str, *words: str) -> float:
    """The number that a script prints last, run in a process of its own with as many threads as this one."""
    command = [sys.executable, file, *words, "--threads", str(torch.get_num_threads())]
    # glibc would keep what the warm-up frees, and growth would hide in it; with this limit it gives tensors back.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(done.stdout.split()[-1])


def growth_of(work: Callable[[], object]) -> float:
    """MB by which one call lifts the peak of this process's memory above what it holds before the call.

    Meant for a fresh process: what earlier work has left free inside the allocator does not count as growth.
    """
    _forget_peak()
    before = peak()
    work()
    return (peak() - before) / 2**20


def _forget_peak() -> None:
    """Let the peak begin at what is held now, where the system can (Linux); elsewhere it stays."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """Most bytes this process has held.

    The kernel's count of this process, where there is one: the count that getrusage gives starts, after a fork, from
    that of the parent.
    """
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        **({} if device == "cpu" else {"card": torch.cuda.get_device_name(device)}),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def random_tokens(images: int, grid: tuple[int, int], k: int) -> torch.Tensor:
    """Grids of codes drawn evenly, (b, h, w), always the same."""
    return torch.randint(k, (images, *grid), generator=torch.Generator().manual_seed(1))


def random_codebook(k: int, d: int) -> torch.Tensor:
    """Normal codes, (k, d), always the same."""
    return torch.randn(k, d, generator=torch.Generator().manual_seed(2))
