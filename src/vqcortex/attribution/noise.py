"""Standard normal noise that belongs to an image: plain, in opposite pairs, or stratified.

All three have the same mean. Opposite pairs cancel every odd term of a gradient's expansion in the noise exactly and
count the even ones double; a Latin hypercube cancels most of what is additive in the coordinates and is never worse
than plain draws by more than the factor s / (s - 1). At little noise either gains much. At the published scale, which
is more than one standard deviation of the codes, half of the error is even and most of it not additive: expect little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from vqcortex.seeds import generator_for

SAMPLINGS = ("plain", "antithetic", "quasi")
WORTH_THREADS = 2**14  # numbers per image and draw from which on starting threads costs less than it brings


def unit_noises(
    like: Float[Tensor, "b ..."], image_ids: Sequence[str], draws: int, sampling: str, seed: int
) -> Iterator[Tensor]:
    """Yield `draws` standard normal tensors shaped as `like`, the same numbers for every dtype and device.

    Args:
        like: Gives shape, dtype and device.
        image_ids: One name per row; with the seed, it decides the row's numbers.
        draws: How many, at least 1.
        sampling: "plain": independent draws. "antithetic": each followed by its negative; an odd last one stands
            alone. "quasi": a Latin hypercube: among an image's draws every coordinate visits each of `draws` equally
            probable slices of the normal distribution once; needs two bytes per number and draw.
        seed: Any whole number.

    Source:
        Hammersley and Morton 1956 (antithetic); McKay, Beckman and Conover 1979 (Latin hypercube); Owen 1997 (at most
        s / (s - 1) times the variance of plain draws). Not Sobol points: they end at 21,201 dimensions (a 256x16x16
        grid has 65,536), scrambling them for one image costs more than its gradients, and at 20 draws or fewer they
        came no nearer to the mean of 1,000 draws.
    """
    generators = [generator_for(seed, name, "noise") for name in image_ids]
    if sampling == "quasi":
        yield from _stratified(like, generators, draws)
        return
    step = 2 if sampling == "antithetic" else 1
    for first in range(0, draws, step):
        unit = _drawn(like, generators, _fill_normal)
        yield unit
        if step == 2 and first + 1 < draws:
            yield -unit


def sampling_problems(sampling: str) -> Iterator[str]:
    """What is wrong with the way of drawing, if anything."""
    if sampling not in SAMPLINGS:
        yield f"sampling={sampling!r} must be one of {', '.join(SAMPLINGS)}"


def _stratified(like: Tensor, generators: Sequence[torch.Generator], draws: int) -> Iterator[Tensor]:
    size = like[0].numel()
    kind = torch.int16 if draws < 2**15 else torch.int32
    slices = {one: torch.rand(size, draws, generator=one).argsort(1).to(kind) for one in generators}
    for draw in range(draws):

        def fill(row: Tensor, generator: torch.Generator, draw: int = draw) -> None:
            inside = torch.rand(size, dtype=torch.float64, generator=generator)
            share = (slices[generator][:, draw] + inside) / draws
            row.copy_(torch.special.ndtri(share.clamp(1e-12, 1 - 1e-12)).view_as(row))

        yield _drawn(like, generators, fill)


def _fill_normal(row: Tensor, generator: torch.Generator) -> None:
    row.normal_(generator=generator)


def _drawn(
    like: Tensor, generators: Sequence[torch.Generator], fill: Callable[[Tensor, torch.Generator], None]
) -> Tensor:
    """One draw, filled row by row on the CPU."""
    on_gpu = like.device.type == "cuda"
    # Pinned memory lets the copy wait in the GPU's queue, so the next draw is made while the GPU computes.
    drawn = torch.empty(like.shape, dtype=torch.float32, pin_memory=on_gpu)
    _fill_rows(drawn, generators, fill)
    return drawn.to(like.device, like.dtype, non_blocking=on_gpu)


def _fill_rows(
    drawn: Tensor, generators: Sequence[torch.Generator], fill: Callable[[Tensor, torch.Generator], None]
) -> None:
    """Fill every row from its own generator, on as many threads as torch may use: a fast GPU waits for one."""
    rows = list(zip(drawn, generators, strict=True))
    threads = min(torch.get_num_threads(), len(rows)) if len(rows) and drawn[0].numel() >= WORTH_THREADS else 1

    def fill_some(first: int) -> None:
        with torch.inference_mode(drawn.is_inference()):  # a thread's own, and else off
            for row, generator in rows[first::threads]:
                fill(row, generator)

    if threads == 1:
        fill_some(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill_some, range(threads)))
