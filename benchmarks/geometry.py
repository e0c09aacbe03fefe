"""The published geometry at its real size: what a million images would take, and how near to the device's limit.

k = 16,384 codes of 256 numbers on 16x16 grids, 1,000 concepts, the four published extractors at full width. Weights are
random, with batch-norms that have seen random grids once, so that signals keep their size: the work is that of trained
ones. Time is taken from tokens on the CPU to importance on the CPU.

A graphics card runs it with `python benchmarks/run.py --only geometry --device cuda`; it needs torch, jaxtyping,
pyarrow, safetensors and scipy, and nothing of the `dev` extra.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, final

import pooling
import search
import tis
import torch
from common import (
    Comparison,
    Spread,
    growth_of,
    in_fresh_process,
    in_turns,
    random_codebook,
    random_tokens,
    spread_of,
)
from torch import Tensor, nn

from vqcortex.adapters.network import exact_kernels
from vqcortex.attribution.integrated import IntegratedGradients
from vqcortex.attribution.protocol import Method
from vqcortex.attribution.tis import Tis
from vqcortex.evaluation.rank_agreement import rank_correlation
from vqcortex.extractors.fast import fast_twin
from vqcortex.extractors.protocol import build_extractor, look_up

PUBLISHED = {"extractor 1": "conv8", "extractor 2": "conv10", "extractor 3": "se_resnet", "extractor 4": "transformer"}
EXACT = "float32"
TYPES = {"float32": torch.float32, "TF32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CARD_ONLY = ("TF32", "float16")  # a CPU multiplies float16 twenty times more slowly
MILLION, ALLOWED = 1_000_000, 0.01  # images, and how far from 1 a rank agreement with float32 may be
Scoring = Callable[[], Tensor]
Made = TypeVar("Made")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the problem.

    Args:
        draws: Noisy copies per image of the published score.
        nodes: Points per path of integrated gradients.
        timed: Of either, as many are taken; the time of all is in proportion.
        images: In a batch.
        rivals: Images in a batch of the published algorithm, whose cost per image grows with it.
        batches: For memory against batch.
        side: Of the square matrices whose product tells the device's peak.
        device: "cpu" or "cuda".
    """

    d: int = 256
    grid: tuple[int, int] = (16, 16)
    k: int = 16_384
    concepts: int = 1_000
    draws: int = 20
    nodes: int = 16
    timed: int = 2
    images: int = 4
    rivals: int = 4
    batches: tuple[int, ...] = (2, 4, 8)
    side: int = 2_048
    device: str = "cpu"
    is_toy: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether a graphics card does the work."""
        return self.device != "cpu"


FULL = Sizes()
SMALL = Sizes(
    d=4, grid=(4, 4), k=16, concepts=5, draws=4, nodes=4, images=3, rivals=2, batches=(1, 2), side=64, is_toy=True
)


def on(sizes: Sizes, device: str, images: int | None) -> Sizes:
    """The sizes for another device or batch; a graphics card is asked for all draws and larger batches."""
    if device != "cpu" and not sizes.is_toy:
        sizes = replace(sizes, timed=sizes.draws, images=256, rivals=25, batches=(32, 64, 128, 256, 512), side=8_192)
    return replace(sizes, device=device, images=images or sizes.images)


@final
@dataclass(frozen=True, slots=True)
class Case:
    """Tokens on the CPU and the codebook on the device, the same for every extractor."""

    tokens: Tensor
    concept: Tensor
    names: list[str]
    codebook: Tensor

    def embedded(self) -> Tensor:
        """Codes of all tokens, on the device."""
        return look_up(self.codebook, self.tokens)


def case_of(sizes: Sizes, images: int) -> Case:
    """Random tokens of so many images."""
    return Case(
        random_tokens(images, sizes.grid, sizes.k),
        torch.arange(images) % sizes.concepts,
        [str(image) for image in range(images)],
        random_codebook(sizes.k, sizes.d).to(sizes.device),
    )


def extractor_of(name: str, sizes: Sizes) -> nn.Module:
    """A published extractor with random weights whose norms have seen random grids."""
    extractor = build_extractor(name, sizes.d, sizes.grid, sizes.concepts, 0).eval().to(sizes.device)
    norms = [part for part in extractor.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        extractor(case_of(sizes, 8).embedded())
    return extractor.eval().requires_grad_(False)


def networks_of(extractor: nn.Module, case: Case, sizes: Sizes) -> dict[str, tuple[str, nn.Module]]:
    """Arithmetic and network of every way to run an extractor, by name, the plainest first."""

    def compiled() -> nn.Module:
        twin = fast_twin(extractor, torch.float16)
        twin.compile()
        return twin

    def graphed() -> nn.Module:
        codes = case.embedded().requires_grad_()
        return torch.cuda.make_graphed_callables(fast_twin(extractor, torch.float16), (codes,))

    makers: dict[str, tuple[str, Callable[[], nn.Module]]] = {
        EXACT: (EXACT, lambda: extractor),
        "float32 folded": (EXACT, lambda: fast_twin(extractor, torch.float32)),
        "bfloat16 folded": ("bfloat16", lambda: fast_twin(extractor, torch.bfloat16)),
    }
    if sizes.on_gpu:
        makers["TF32 folded"] = ("TF32", lambda: fast_twin(extractor, torch.float32))
        makers["float16 folded"] = ("float16", lambda: fast_twin(extractor, torch.float16))
        makers["float16 compiled"] = ("float16", compiled)
        makers["float16 in a CUDA graph"] = ("float16", graphed)
    made = {name: (arithmetic, tried(make)) for name, (arithmetic, make) in makers.items()}
    return {name: (arithmetic, network) for name, (arithmetic, network) in made.items() if network is not None}


def tried(work: Callable[[], Made]) -> Made | None:
    """What the work gives; None, with the reason printed, if it fails.

    A card is at hand for minutes: a compiler that is not there must not cost the figures that need none.
    """
    try:
        return work()
    except Exception:
        traceback.print_exc()
        return None


def scoring(network: nn.Module, arithmetic: str, method: Method, case: Case) -> Scoring:
    """From tokens to importance, on the CPU at both ends."""

    def score() -> Tensor:
        # Only float32 itself is spared TF32, which torch takes for convolutions unless told otherwise.
        with exact_kernels() if arithmetic == EXACT else nullcontext():
            return method(network, case.embedded(), case.concept, case.names).cpu()

    return score


def published(extractor: nn.Module, case: Case, draws: int) -> None:
    """The published algorithm: a backward per image over the whole batch."""
    tis.published(tis.Case(extractor, case.embedded(), case.concept.to(case.codebook.device)), draws)
    if case.codebook.is_cuda:
        torch.cuda.synchronize()


def peaks_of(sizes: Sizes) -> dict[str, float]:
    """Floating-point operations per second of a large matrix product, by arithmetic."""
    found = {}
    for name, dtype in TYPES.items():
        if name in CARD_ONLY and not sizes.on_gpu:
            continue
        one, other = torch.randn(2, sizes.side, sizes.side, generator=torch.Generator().manual_seed(3)).to(
            sizes.device, dtype
        )
        found[name] = _peak(one, other, name == "TF32")
    return found


def _peak(one: Tensor, other: Tensor, is_tf32: bool) -> float:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = is_tf32
    try:

        def products() -> None:
            for _ in range(10 if one.is_cuda else 1):
                found = one @ other
            found[0, 0].item()  # a wait for the device

        products()
        seconds = in_turns({"product": products}, 5)["product"].low
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * len(one) ** 3 * (10 if one.is_cuda else 1) / seconds


@final
@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a method: seconds per image with all draws, and the mean rank agreement with float32."""

    arithmetic: str
    seconds: Spread
    agreement: float

    @property
    def is_faithful(self) -> bool:
        """Whether it orders positions as float32 does."""
        return 1 - self.agreement <= ALLOWED


def ways_of(
    networks: Mapping[str, tuple[str, nn.Module]], method: Method, case: Case, scale: float, repeats: int
) -> dict[str, Way]:
    """Every way to run a method, timed in turns and compared with float32.

    Args:
        networks: As from `networks_of`.
        scale: Seconds of all draws over those of the draws that are timed.
    """
    works = {name: scoring(network, kind, method, case) for name, (kind, network) in networks.items()}
    maps = {name: tried(work) for name, work in works.items()}  # which also warms them up
    exact = maps[EXACT]
    assert exact is not None
    seconds = in_turns({name: work for name, work in works.items() if maps[name] is not None}, repeats)
    return {
        name: Way(
            networks[name][0],
            spread.times(scale / len(case.names)),
            1.0 if name == EXACT else float(rank_correlation(maps[name], exact).rho.mean()),
        )
        for name, spread in seconds.items()
    }


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file."""
    peaks = peaks_of(sizes)
    parts: list[Callable[[], list[Comparison]]] = [
        *(partial(measure_extractor, number, name, sizes, repeats, peaks) for number, name in PUBLISHED.items()),
        partial(measure_memory, sizes),
        partial(measure_search, sizes, repeats),
        partial(measure_pooling, sizes, repeats),
    ]
    found: list[Comparison] = []
    for number, part in enumerate(parts, 1):
        print(f"  part {number} of {len(parts)} ...", flush=True)
        found += part() if sizes.is_toy else tried(part) or []
    return found


def measure_extractor(
    number: str, name: str, sizes: Sizes, repeats: int, peaks: Mapping[str, float]
) -> list[Comparison]:
    """The published score and the default method of one extractor, beside the published algorithm and the device."""
    extractor, case = extractor_of(name, sizes), case_of(sizes, sizes.images)
    once = tis.operations_of(tis.Case(extractor, case.embedded()[:1], case.concept[:1]), 1)
    draws, nodes = min(sizes.draws, sizes.timed), min(sizes.nodes, sizes.timed)
    path = IntegratedGradients(nodes=nodes, baseline=case.codebook.mean(0))
    networks, found = networks_of(extractor, case, sizes), list[Comparison]()
    for title, method, passes, scale in (
        (f"TIS, {sizes.draws} draws", Tis(draws=draws), sizes.draws, sizes.draws / draws),
        (f"integrated gradients, {sizes.nodes} nodes", path, sizes.nodes, sizes.nodes / nodes),
    ):
        ways = ways_of(networks, method, case, scale, repeats)
        rival = published_seconds(extractor, sizes) if isinstance(method, Tis) else None
        found += list(_compared(f"{title}, {number} ({name})", ways, rival, passes * once, peaks, sizes))
    return found


def published_seconds(extractor: nn.Module, sizes: Sizes) -> tuple[int, float] | None:
    """Batch, and seconds per image and all draws, of the published algorithm; None where memory ends.

    One draw is timed, because memory grows with every one; a smaller batch where not even that fits.
    """

    def timed(batch: int) -> tuple[int, float]:
        case = case_of(sizes, batch)
        published(extractor, case_of(sizes, 1), 1)
        seconds = in_turns({"published": partial(published, extractor, case, 1)}, 1)["published"].median
        return batch, seconds * sizes.draws / batch

    for batch in (sizes.rivals, max(1, sizes.rivals // 4)):
        if (found := tried(partial(timed, batch))) is not None:
            return found
        if sizes.on_gpu:
            torch.cuda.empty_cache()
    return None


def _compared(
    work: str,
    ways: Mapping[str, Way],
    rival: tuple[int, float] | None,
    operations: float,
    peaks: Mapping[str, float],
    sizes: Sizes,
) -> Iterator[Comparison]:
    """The fastest faithful way beside the rivals.

    Args:
        rival: As from `published_seconds`.
        operations: Floating-point operations per image.
        peaks: As from `peaks_of`.
    """
    best = min((name for name, way in ways.items() if way.is_faithful), key=lambda name: ways[name].seconds.median)
    way, is_first = ways[best], "extractor 1" in work and "TIS" in work and sizes.on_gpu
    compared = partial(
        Comparison, work=f"{work}, batch {sizes.images}", unit="ms per image", ours=way.seconds.times(1e3)
    )
    if rival is not None:
        batch, seconds = rival
        yield compared(
            rival=f"the published algorithm, batch {batch}",
            theirs=spread_of([seconds * 1e3]),
            at_least=13 if batch >= 25 else None,
            note=f"{work}: one repetition of one draw; {MILLION:,} images would take {_span(seconds * MILLION)}, "
            f"ours {_span(way.seconds.median * MILLION)}",
        )
    yield compared(
        rival="the same in float32",
        theirs=ways[EXACT].seconds.times(1e3),
        note=f"{work}: "
        + "; ".join(
            f"{name} {1 / one.seconds.median:.4g} images/s, {operations / one.seconds.median / 1e12:.3g} TFLOP/s, "
            f"rank agreement {one.agreement:.4f}"
            for name, one in ways.items()
        ),
    )
    peak = peaks[way.arithmetic]
    yield compared(
        rival="a matrix product of as many operations",
        theirs=spread_of([1e3 * operations / peak]),
        at_least=0.4 if is_first else None,
        note=f"{work}: {operations / 1e9:.4g} GFLOP per image by {best}; the product, {sizes.side} square, runs at "
        f"{peak / 1e12:.4g} TFLOP/s in {way.arithmetic}",
    )
    if is_first:
        yield compared(rival="1,000 images a second", theirs=spread_of([1.0]), at_least=1)
    for half in ("bfloat16", "float16"):
        agreements = [one.agreement for one in ways.values() if one.arithmetic == half]
        if agreements:
            yield Comparison(
                work=f"{work}, rank agreement of {half} with float32, short of 1",
                rival="what is allowed",
                unit="",
                ours=spread_of([1 - min(agreements)]),
                theirs=spread_of([ALLOWED]),
                at_least=1,
            )


def _span(seconds: float) -> str:
    """A time in words; an extrapolation has no more digits."""
    for name, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.3g} seconds"


def measure_memory(sizes: Sizes) -> list[Comparison]:
    """Memory that one draw takes, by batch, each in a process of its own, beside the published algorithm."""
    grown = {batch: grown_apart(sizes, "ours", batch) for batch in sizes.batches}
    least = sizes.batches[0]
    return [
        Comparison(
            work=f"TIS, 1 draw, extractor 1 (conv8), batch {least}, growth of peak memory",
            rival="the published algorithm, as many images",
            unit="MB",
            ours=spread_of([grown[least]]),
            theirs=spread_of([grown_apart(sizes, "published", least)]),
            note="ours in float16 on a graphics card and in float32 elsewhere; MB by batch: "
            + ", ".join(f"{batch}: {found:.4g}" for batch, found in grown.items()),
        )
    ]


def grown_apart(sizes: Sizes, variant: str, batch: int) -> float:
    """`grown` in a fresh process."""
    words = ["--variant", variant, "--batch", str(batch), "--device", sizes.device]
    return in_fresh_process(__file__, *words, *(["--small"] if sizes.is_toy else []))


def grown(sizes: Sizes, variant: str, batch: int) -> float:
    """MB by which a call lifts the peak, after a call on fewer images; of the card's memory where there is one."""
    extractor = extractor_of("conv8", sizes)
    network = fast_twin(extractor, torch.float16) if sizes.on_gpu else extractor
    calls = {
        "ours": lambda case: scoring(network, "float16", Tis(draws=1), case)(),
        "published": lambda case: published(extractor, case, 1),
    }
    calls[variant](case_of(sizes, 1))
    case = case_of(sizes, batch)
    if not sizes.on_gpu:
        return growth_of(lambda: calls[variant](case))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    calls[variant](case)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure_search(sizes: Sizes, repeats: int) -> list[Comparison]:
    """One step of token selection on this device, ours with many images at once."""
    small = search.Sizes(
        d=sizes.d, grid=sizes.grid, k=sizes.k, concepts=sizes.concepts, device=sizes.device,
        images=8 if sizes.on_gpu else 2, steps=16 if sizes.on_gpu else 2,
    )  # fmt: skip
    return search.measure(small, min(repeats, 3))


def measure_pooling(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Concept pooling of a million images, in proportion to fewer, beside the scores that it reads."""
    few = pooling.SMALL if sizes.is_toy else pooling.Sizes(images=20_000)
    case = pooling.case_of(few)
    pooling.pool(case, few)
    seconds = in_turns({"pool": partial(pooling.pool, case, few)}, min(repeats, 3))["pool"]
    looped = pooling.loops(case.first(few.looped))["lists"]
    looped()
    rival = in_turns({"loop": looped}, 1)["loop"].times(MILLION / few.looped)
    return [
        Comparison(
            work=f"pooling {MILLION:,} images x {few.grid[0] * few.grid[1]} positions, scores in memory, on the CPU",
            rival="a loop over lists in memory",
            unit="s",
            ours=seconds.times(MILLION / few.images),
            theirs=rival,
            note=f"{few.images:,} and {few.looped:,} images timed and scaled up",
        )
    ]


def main() -> None:
    """Measure memory in this process and print MB: how `grown_apart` gets a fresh one."""
    flags = argparse.ArgumentParser(description=main.__doc__)
    flags.add_argument("--variant", choices=("ours", "published"), required=True)
    flags.add_argument("--batch", type=int, default=1)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--small", action="store_true")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = flags.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(grown(on(SMALL if given.small else FULL, given.device, None), given.variant, given.batch)))


if __name__ == "__main__":
    main()
