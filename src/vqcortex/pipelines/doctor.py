"""Examine a model before anything is explained with it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.errors import DataError
from vqcortex.evaluation.doctor import (
    CHECKS,
    Finding,
    Sample,
    Verdict,
    examine,
    reconstructed,
    take_sample,
    verdict_of,
)
from vqcortex.files import write_bytes, write_json
from vqcortex.images import SOURCES, load_pixels, open_images
from vqcortex.images.folder import SUFFIXES
from vqcortex.images.source import decoded, decoding
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import DoctorSettings

STRIP = 8  # pictures in the strip: originals above, reconstructions below


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found out about a model.

    Args:
        facts: What it is: name to value, in words.
        findings: One per check, in order.
        verdict: The worst of them: "pass", "warn" or "fail".
        strip: Originals above their reconstructions, RGB; None without real pictures.
    """

    facts: dict[str, str]
    findings: tuple[Finding, ...]
    verdict: Verdict
    strip: Image.Image | None = None


def diagnose(settings: DoctorSettings, *, progress: Progress = QUIET) -> Diagnosis:
    """Open a model and examine it.

    Args:
        settings: What to examine, and with which pictures.
        progress: Told how far it is.
    Raises:
        ModelError: The model cannot be opened at all.
        DataError: The pictures cannot be read.
    """
    settings.check()
    model = load_model(settings.model, settings.device)
    pixels = None if settings.images is None else _pixels(settings, model)
    sample = take_sample(model, pixels, settings.limit, settings.seed)
    found = tuple(progress.track(examine(model, sample, batch=settings.batch), "doctor: checks", len(CHECKS)))
    diagnosis = Diagnosis(
        facts=facts_of(model), findings=found, verdict=verdict_of(list(found)), strip=_strip(model, sample)
    )
    if settings.out is not None:
        _write(settings.out, settings, diagnosis)
    return diagnosis


def facts_of(model: Adapter) -> dict[str, str]:
    """What a model is, in words."""
    recognised = getattr(model, "recognised", "")
    facts = {"model": model.name, "family": model.family + (f" (recognised: {recognised})" if recognised else "")}
    facts["codebook"] = f"{model.k} codes of {model.d} numbers"
    facts["grid"] = f"{model.grid[0]}x{model.grid[1]} for {model.size[0]}x{model.size[1]} pixels"
    if len(model.levels) > 1:
        facts["levels"] = ", ".join(f"{one.name} {one.grid[0]}x{one.grid[1]}" for one in model.levels)
    facts["abilities"] = ", ".join(sorted(model.abilities))
    if model.concepts:
        facts["concepts"] = str(len(model.concepts))
    module = getattr(model, "module", None)
    if isinstance(module, nn.Module):
        weights = list(module.parameters())
        facts["parameters"] = f"{sum(one.numel() for one in weights):,}"
        facts["dtype"] = ", ".join(sorted({str(one.dtype).removeprefix("torch.") for one in weights}))
    facts["identity"] = model.identity
    return facts


def _pixels(settings: DoctorSettings, model: Adapter) -> Float[Tensor, "b 3 H W"]:
    """The first pictures of a source, at the model's size."""
    assert settings.images is not None
    shown = [
        load_pixels(one, model.size) for one in islice(_shown(settings.images, settings.images_split), settings.limit)
    ]
    if len(shown) < 2:
        raise DataError(f"{settings.images!r} holds {len(shown)} picture(s), at least 2 are needed; add some")
    return torch.stack(shown)


def _shown(images: str, split: str) -> Iterator[Image.Image]:
    """Pictures of a source, or anywhere below a folder."""
    if images.partition(":")[0] in SOURCES:
        return (one.image for one in open_images(images, split))
    return _pictures(Path(images).expanduser())


def _pictures(folder: Path) -> Iterator[Image.Image]:
    """Pictures anywhere below a folder, by path."""
    if not folder.is_dir():
        raise DataError(
            f"{str(folder)!r} is neither a folder of pictures nor a source; "
            f"name a folder, or write {', '.join(f'{name}:...' for name in SOURCES)}"
        )
    for path in sorted(one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES):
        with decoding(str(path)):
            yield decoded(path)


def _strip(model: Adapter, sample: Sample) -> Image.Image | None:
    """Originals above, reconstructions below."""
    if not sample.are_real or not {ENCODE, DECODE} <= model.abilities:
        return None
    shown = sample.pixels[:STRIP]
    rows = [torch.cat(list(one), dim=2) for one in (shown, reconstructed(model, shown, STRIP))]
    picture = (torch.cat(rows, dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(picture)


def _write(folder: Path, settings: DoctorSettings, diagnosis: Diagnosis) -> None:
    about: dict[str, Any] = {
        "verdict": diagnosis.verdict,
        "model": diagnosis.facts,
        "images": settings.images,
        "findings": [asdict(one) for one in diagnosis.findings],
    }
    write_json(folder / "doctor.json", about)
    if diagnosis.strip is not None:
        buffer = io.BytesIO()
        diagnosis.strip.save(buffer, "PNG")
        write_bytes(folder / "strip.png", buffer.getvalue())
