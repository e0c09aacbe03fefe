"""Token importance scores: time and memory of ours, of the published algorithm, of Captum, and of a plain product."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

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
from torch.utils.flop_counter import FlopCounterMode

from vqcortex.attribution.reference import published_tis
from vqcortex.attribution.tis import Tis
from vqcortex.extractors.protocol import build_extractor, look_up

NOISE = 0.2  # of the value range, as published


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the extractor and of the batch."""

    d: int = 256
    grid: tuple[int, int] = (16, 16)
    k: int = 16_384
    concepts: int = 1_000
    batch: int = 25
    draws: tuple[int, ...] = (1, 2)  # for memory; time is taken with the first


FULL = Sizes()
SMALL = Sizes(d=4, grid=(4, 4), k=16, concepts=5, batch=3)


@final
@dataclass(frozen=True, slots=True)
class Case:
    """One extractor and one batch, the same for everybody.

    Args:
        extractor: Random weights; the work does not depend on them.
        embedded: In channels-last memory, as codes are looked up.
        concept: A concept per image.
    """

    extractor: nn.Module
    embedded: Tensor
    concept: Tensor

    def first(self, images: int) -> Case:
        """The same with fewer images."""
        return Case(self.extractor, self.embedded[:images], self.concept[:images])


def case_of(sizes: Sizes) -> Case:
    """Build the extractor and embed the batch."""
    extractor = build_extractor("conv8", sizes.d, sizes.grid, sizes.concepts, 0).eval()
    tokens = random_tokens(sizes.batch, sizes.grid, sizes.k)
    embedded = look_up(random_codebook(sizes.k, sizes.d), tokens)
    return Case(extractor, embedded, torch.arange(sizes.batch) % sizes.concepts)


def ours(case: Case, draws: int, noise: float = NOISE) -> Tensor:
    """Ours, as it stands in the package."""
    names = [str(image) for image in range(len(case.embedded))]
    return Tis(draws=draws, noise=noise)(case.extractor, case.embedded, case.concept, names)


def published(case: Case, draws: int, noise: float = NOISE) -> Tensor:
    """The published algorithm: a backward per image over the whole batch; plain memory order, as it reads its files."""
    embedded = case.embedded.contiguous()
    return published_tis(
        case.extractor, embedded, case.concept, draws=draws, spread=noise, one_backward_per_sample=True
    )


def captum(case: Case, draws: int, noise: float = NOISE, *, plain: bool = False) -> Tensor:
    """Captum's SmoothGrad, reduced to scores as published.

    Args:
        plain: The batch in plain memory order instead of channels-last.
    """
    from captum.attr import NoiseTunnel, Saliency

    embedded = (case.embedded.contiguous() if plain else case.embedded).detach().requires_grad_()
    scale = noise * float(embedded.detach().max() - embedded.detach().min())
    gradient = NoiseTunnel(Saliency(case.extractor)).attribute(
        embedded, nt_type="smoothgrad", nt_samples=draws, stdevs=scale, target=case.concept, abs=False
    )
    return gradient.amax(1)


VARIANTS: Mapping[str, Callable[..., Tensor]] = {
    "ours": ours,
    "published": published,
    "Captum": captum,
    "Captum, plain memory order": partial(captum, plain=True),
}


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Every comparison of this file."""
    return [*measure_memory(sizes, sizes.draws), *measure_time(sizes, repeats)]


def measure_time(sizes: Sizes, repeats: int) -> list[Comparison]:
    """Seconds of one draw for the whole batch, and those of a plain matrix product of as many operations."""
    case, draws = case_of(sizes), sizes.draws[0]
    work = operations_of(case.first(1), draws) * sizes.batch
    works = {name: partial(variant, case, draws) for name, variant in VARIANTS.items()}
    works["product"] = product_of(work)
    for name, one in works.items():  # the published algorithm warms up on two images: all of them take half a minute
        published(case.first(2), draws) if name == "published" else one()
    found = in_turns(works, repeats, once=["published"])
    compared = partial(Comparison, work=f"TIS, batch {sizes.batch}, {draws} draw", unit="s", ours=found["ours"])
    return [
        compared(
            rival="the published algorithm",
            theirs=found["published"],
            at_least=13,
            note="a backward per image over the whole batch; one repetition, because it takes so long",
        ),
        compared(
            rival="Captum, NoiseTunnel of Saliency", theirs=found["Captum"], at_least=1.0, note="the same tensors"
        ),
        compared(rival="Captum, in plain memory order", theirs=found["Captum, plain memory order"]),
        compared(
            rival="a plain matrix product",
            theirs=found["product"],
            note=f"square, float32, with as many operations, {work / 1e9:.4g} GFLOP: ours runs at "
            f"{_pace(work, found['ours'])}, the product at {_pace(work, found['product'])}",
        ),
    ]


def operations_of(case: Case, draws: int) -> int:
    """Floating-point operations of ours on a case: products and convolutions, forward and back to the input."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.extractor(case.embedded)
    return 2 * draws * counter.get_total_flops()  # the way back to the input multiplies by the same weights once more


def product_of(work: int) -> Callable[[], Tensor]:
    """A product of two square matrices that takes so many operations."""
    side = max(1, round((work / 2) ** (1 / 3)))
    one, other = torch.randn(2, side, side, generator=torch.Generator().manual_seed(3))
    return lambda: one @ other


def _pace(work: int, seconds: Spread) -> str:
    return f"{work / seconds.median / 1e9:.4g} GFLOP/s"


def measure_memory(sizes: Sizes, draws: tuple[int, ...]) -> list[Comparison]:
    """MB by which a call lifts the peak, each variant in a process of its own, with the model built and warm."""
    found: list[Comparison] = []
    for one in draws:
        grown = {name: grown_apart(sizes, name, one) for name in ("ours", "published", "Captum")}
        compared = partial(
            Comparison,
            work=f"TIS, batch {sizes.batch}, {one} draw{'s' if one > 1 else ''}, growth of peak memory",
            unit="MB",
            ours=spread_of([grown["ours"]]),
        )
        found.append(compared(rival="the published algorithm", theirs=spread_of([grown["published"]]), at_least=10))
        found.append(compared(rival="Captum, NoiseTunnel of Saliency", theirs=spread_of([grown["Captum"]])))
    return found


def grown_apart(sizes: Sizes, variant: str, draws: int) -> float:
    """`grown` in a fresh process."""
    size = "full" if sizes == FULL else "small"
    return in_fresh_process(__file__, "--variant", variant, "--draws", str(draws), "--size", size)


def grown(sizes: Sizes, variant: str, draws: int) -> float:
    """MB by which one call on the whole batch lifts the peak, after a call on one image."""
    case = case_of(sizes)
    VARIANTS[variant](case.first(1), 1)
    return growth_of(lambda: VARIANTS[variant](case, draws))


def main() -> None:
    """Measure memory in this process and print MB: how `grown_apart` gets a fresh one."""
    flags = argparse.ArgumentParser(description=main.__doc__)
    flags.add_argument("--variant", choices=VARIANTS, required=True)
    flags.add_argument("--draws", type=int, default=1)
    flags.add_argument("--size", choices=("full", "small"), default="full")
    flags.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = flags.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(grown(FULL if given.size == "full" else SMALL, given.variant, given.draws)))


if __name__ == "__main__":
    main()
