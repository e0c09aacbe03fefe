"""Is a model what it says it is? Each check is a function of a model and some pictures; together they are a diagnosis.

A check says pass, warn or fail with the number it measured and the reason. Fail means that explanations made with the
model would be wrong; warn means that something is unusual and worth a look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter, join_levels
from vqcortex.errors import VqCortexError
from vqcortex.seeds import generator_for

Verdict = Literal["pass", "warn", "fail", "skip"]
TOLERANCE = 1e-3  # what decoded pixels may differ by when only the company in the batch changes, in [0, 1]
SATURATED = 0.5  # share of pixels at exactly 0 or 1 above which a pixel range was probably read wrongly
FAITHFUL = 20.0  # PSNR in dB below which reconstructions deserve a look
WRONG = 8.0  # PSNR in dB that even a grey picture reaches: below it, range or channel order is wrong
AGREEING = 0.5  # share of tokens that should come back from a picture of themselves


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Args:
        check: Its name.
        verdict: "pass", "warn", "fail", or "skip" where the model lacks the ability.
        value: What was measured, in words with units.
        reason: Why the verdict is what it is, and what to look at; empty for a pass.
    """

    check: str
    verdict: Verdict
    value: str
    reason: str = ""


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """What the checks look at.

    Args:
        pixels: Pictures in [0, 1].
        tokens: Random legal grids.
        are_real: Whether the pictures are real ones; otherwise they are smooth random patterns.
    """

    pixels: Float[Tensor, "b 3 H W"]
    tokens: Int[Tensor, "n h w"]
    are_real: bool


def random_grids(model: Adapter, count: int, seed: int) -> Int[Tensor, "b h w"]:
    """Grids of random codes, each level from its own."""
    rows = []
    for number in range(count):
        rng = generator_for(seed, f"doctor/{number}", "grid")
        parts = [torch.randint(*level.codes, level.grid, generator=rng) for level in model.levels]
        rows.append(parts[0] if len(parts) == 1 else join_levels(parts))
    return torch.stack(rows)


def smooth_patterns(size: tuple[int, int], count: int, seed: int) -> Float[Tensor, "b 3 H W"]:
    """Colour patterns without an edge, in [0, 1]: pictures where none are given."""
    draws = [torch.rand(3, 4, 4, generator=generator_for(seed, f"doctor/{one}", "pattern")) for one in range(count)]
    return F.interpolate(torch.stack(draws), size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def take_sample(model: Adapter, pixels: Float[Tensor, "b 3 H W"] | None, count: int, seed: int) -> Sample:
    """What to examine a model with.

    Args:
        model: On its device.
        pixels: Real pictures of the model's size; None draws smooth random patterns.
        count: Patterns and grids drawn, at least 2.
        seed: Of the draws.
    """
    are_real = pixels is not None
    shown = smooth_patterns(model.size, count, seed) if pixels is None else pixels
    return Sample(shown.to(model.device), random_grids(model, count, seed).to(model.device), are_real)


def examine(model: Adapter, sample: Sample, *, batch: int = 8) -> Iterator[Finding]:
    """Every check in turn, as it is done.

    Args:
        model: Any adapter.
        sample: From `take_sample`.
        batch: Images per step when speed is measured.
    """
    for name, (needs, check) in CHECKS.items():
        lacking = [one for one in needs if one not in model.abilities]
        if lacking:
            yield Finding(check=name, verdict="skip", value="", reason=f"the model cannot {' or '.join(lacking)}")
            continue
        try:
            verdict, value, reason = check(model, sample, batch)
        except (VqCortexError, RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0][:200]
            verdict, value, reason = "fail", "no result", f"it raised {type(error).__name__}: {first}"
        yield Finding(check=name, verdict=verdict, value=value, reason=reason)


def verdict_of(findings: list[Finding]) -> Verdict:
    """The worst verdict of all: "pass" only if nothing failed or warned."""
    found = {one.verdict for one in findings}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


Answer = tuple[Verdict, str, str]


def _shapes(model: Adapter, sample: Sample, batch: int) -> Answer:
    h, w = model.grid
    lengths = [one.length for one in model.levels]
    highest = max(one.codes[1] for one in model.levels)
    if sum(lengths) != h * w:
        return "fail", f"{h}x{w} grid", f"its levels hold {sum(lengths)} positions, the grid {h * w}"
    if highest > model.k:
        return "fail", f"k={model.k}", f"a level claims codes up to {highest - 1}; the codebook ends at {model.k - 1}"
    embedded = model.embed(sample.tokens)
    if embedded.shape != (len(sample.tokens), model.d, h, w):
        return "fail", str(tuple(embedded.shape)), f"embed must return (b, d, h, w) = (b, {model.d}, {h}, {w})"
    return "pass", f"k={model.k}, d={model.d}, {h}x{w}", ""


def _round_trip(model: Adapter, sample: Sample, batch: int) -> Answer:
    same = model.nearest(model.embed(sample.tokens)) == sample.tokens
    share = float(same.double().mean())
    value = f"{share:.2%} of tokens"
    if share == 1:
        return "pass", value, ""
    twins = _twin_rows(model)
    if twins and bool((same | torch.isin(sample.tokens, twins_of(model))).all()):
        return "warn", value, f"{twins} codes have an identical twin in the codebook; tokens of twins mean the same"
    return "fail", value, "ids → embed → nearest must give the ids back; embed and nearest use different tables"


def twins_of(model: Adapter) -> Int[Tensor, " t"]:
    """Codes that equal another code exactly."""
    _, group, count = model.codebook.unique(dim=0, return_inverse=True, return_counts=True)
    return (count[group] > 1).nonzero()[:, 0]


def _twin_rows(model: Adapter) -> int:
    return len(twins_of(model)) if model.k * model.d <= 2**26 else 0


def _finite_codes(model: Adapter, sample: Sample, batch: int) -> Answer:
    embedded = model.embed(sample.tokens)
    broken = int((~torch.isfinite(embedded)).sum())
    if broken:
        return "fail", f"{broken} numbers", "codes hold NaN or infinity; the checkpoint is broken"
    spread = float(embedded.std())
    if spread == 0:
        return "fail", "spread 0", "all codes are alike; the codebook was not loaded"
    return "pass", f"spread {spread:.3g}", ""


@torch.no_grad()
def _range(model: Adapter, sample: Sample, batch: int) -> Answer:
    pixels = model.decode(model.embed(_familiar(model, sample)))
    low, high = float(pixels.min()), float(pixels.max())
    value = f"[{low:.3f}, {high:.3f}]"
    if not bool(torch.isfinite(pixels).all()):
        return "fail", value, "decoded pictures hold NaN or infinity"
    if low < 0 or high > 1:
        return "fail", value, "decoded pixels must lie in [0, 1]; the family's own range leaks out"
    if high - low < 1 / 255:
        return "fail", value, "decoded pictures are flat: decode ignores its codes, or the weights were not loaded"
    edge = float(((pixels == 0) | (pixels == 1)).double().mean())
    if edge > SATURATED:
        return "warn", f"{value}, {edge:.0%} at the edge", "most pixels are clipped; was the pixel range read right?"
    return "pass", value, ""


def _familiar(model: Adapter, sample: Sample) -> Int[Tensor, "b h w"]:
    """Grids of pictures where the model encodes, random ones elsewhere: random grids are unlike any picture."""
    return model.encode(sample.pixels) if ENCODE in model.abilities else sample.tokens


@torch.no_grad()
def _agreement(model: Adapter, sample: Sample, batch: int) -> Answer:
    tokens = model.encode(sample.pixels)
    again = model.encode(model.decode(model.embed(tokens)))
    share = float((again == tokens).double().mean())
    value = f"{share:.1%} of tokens"
    if share < AGREEING:
        return (
            "warn",
            value,
            "few tokens survive decode → encode: the model is untrained, or encoder and decoder differ in pixel range",
        )
    return "pass", value, ""


def _gradient(model: Adapter, sample: Sample, batch: int) -> Answer:
    # Towards the mean code: pictures of random codes are clipped, and a clipped pixel passes no gradient on.
    embedded = model.embed(sample.tokens[:2]).detach()
    embedded = (
        embedded.mean((2, 3), keepdim=True) + (embedded - embedded.mean((2, 3), keepdim=True)) * 0.5
    ).requires_grad_()
    (gradient,) = torch.autograd.grad(model.decode(embedded).square().sum(), embedded)
    if not bool(torch.isfinite(gradient).all()):
        return "fail", "not finite", "the gradient of the picture in the codes holds NaN or infinity"
    reached = float((gradient.abs().sum(1) > 0).double().mean())
    value = f"{reached:.1%} of positions"
    if reached == 0:
        return "fail", value, "no gradient reaches the codes: decode rounds, detaches or ignores them"
    if reached < 1:
        return "warn", value, "some positions get no gradient: their pixels are clipped, or decode ignores them"
    return "pass", value, ""


@torch.no_grad()
def _determinism(model: Adapter, sample: Sample, batch: int) -> Answer:
    if ENCODE in model.abilities and not torch.equal(model.encode(sample.pixels), model.encode(sample.pixels)):
        return "fail", "tokens differ", "the same pictures got other tokens the second time: noise or dropout is on"
    if DECODE in model.abilities:
        embedded = model.embed(sample.tokens)
        apart = float((model.decode(embedded) - model.decode(embedded)).abs().max())
        if apart > TOLERANCE:
            return "fail", f"{apart:.3g}", "the same codes got another picture the second time: noise or dropout is on"
        return "pass", f"pictures within {apart:.1g}", ""
    return "pass", "tokens equal", ""


@torch.no_grad()
def _company(model: Adapter, sample: Sample, batch: int) -> Answer:
    if ENCODE in model.abilities:
        together = model.encode(sample.pixels)
        alone = torch.cat([model.encode(one[None]) for one in sample.pixels])
        changed = int((together != alone).sum())
        if changed:
            return (
                "fail",
                f"{changed} tokens",
                "tokens depend on the other images of the batch: batch norm in training mode?",
            )
    if DECODE not in model.abilities:
        return "pass", "0 tokens", ""
    embedded = model.embed(sample.tokens)
    apart = float((model.decode(embedded) - torch.cat([model.decode(one[None]) for one in embedded])).abs().max())
    if apart > TOLERANCE:
        return "fail", f"{apart:.3g}", "pictures depend on the other images of the batch: batch norm in training mode?"
    return "pass", f"0 tokens, pictures within {apart:.1g}", ""


def _liveness(model: Adapter, sample: Sample, batch: int) -> Answer:
    tokens = model.encode(sample.pixels)
    live = len(tokens.unique())
    value = f"{live} of {model.k} in {len(tokens)} images"
    if live < 2:
        return "fail", value, "every position gets one code: the codebook was not loaded, or the pixel range is wrong"
    if live < min(8, model.k, tokens.numel()):
        return "warn", value, "hardly any code is used on these pictures; see `vqcortex usage` on a whole data set"
    return "pass", value, ""


def psnr(one: Float[Tensor, "b 3 H W"], other: Float[Tensor, "b 3 H W"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of pictures in [0, 1], in dB; infinite where they are equal."""
    return -10 * (one - other).square().flatten(1).mean(1).log10()


@torch.no_grad()
def reconstructed(model: Adapter, pixels: Float[Tensor, "b 3 H W"], batch: int) -> Float[Tensor, "b 3 H W"]:
    """Pictures after encode and decode."""
    return torch.cat([model.decode(model.embed(model.encode(part))) for part in pixels.split(batch)])


def _fidelity(model: Adapter, sample: Sample, batch: int) -> Answer:
    if not sample.are_real:
        return "skip", "", "give real pictures with --images to measure it"
    found = psnr(reconstructed(model, sample.pixels, batch), sample.pixels)
    middle = float(found.median())
    value = f"{middle:.1f} dB (median of {len(found)})"
    if middle < WRONG:
        return (
            "fail",
            value,
            f"below {WRONG:g} dB reconstructions are worse than a grey picture: pixel range or weights are wrong",
        )
    if middle < FAITHFUL:
        return "warn", value, f"below {FAITHFUL:g} dB; look at the picture strip: the model may not know such images"
    return "pass", value, ""


def _per_second(work: Callable[[], object], images: int, device: torch.device) -> float:
    work()  # the first call pays for allocations
    times = []
    for _ in range(2):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return images / min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _speed(model: Adapter, sample: Sample, batch: int) -> Answer:
    rows = torch.arange(batch) % len(sample.tokens)
    said = []
    if ENCODE in model.abilities:
        pixels = sample.pixels[torch.arange(batch) % len(sample.pixels)]
        said.append(f"encode {_per_second(lambda: model.encode(pixels), batch, model.device):.3g}")
    if DECODE in model.abilities:
        embedded = model.embed(sample.tokens[rows])
        said.append(f"decode {_per_second(lambda: model.decode(embedded), batch, model.device):.3g}")
    return "pass", f"{', '.join(said)} images/s at batch {batch}", ""


def _memory(model: Adapter, sample: Sample, batch: int) -> Answer:
    if model.device.type == "cuda":
        return "pass", f"{torch.cuda.max_memory_allocated(model.device) / 2**20:.0f} MiB of GPU memory at most", ""
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return "pass", f"{peak / 2**20:.0f} MiB of memory at most, the program itself included", ""


# In order: what a check needs the model to be able to do, and the check.
CHECKS: dict[str, tuple[tuple[str, ...], Callable[[Adapter, Sample, int], Answer]]] = {
    "shapes": ((), _shapes),
    "codes are finite": ((), _finite_codes),
    "ids → embed → nearest": ((), _round_trip),
    "pixel range": ((DECODE,), _range),
    "encode → decode → encode": ((ENCODE, DECODE), _agreement),
    "gradient to the codes": ((DECODE,), _gradient),
    "same twice": ((), _determinism),
    "alone as in company": ((), _company),
    "live codes": ((ENCODE,), _liveness),
    "reconstruction": ((ENCODE, DECODE), _fidelity),
    "throughput": ((), _speed),
    "memory": ((), _memory),
}
