"""Measure every figure of the two cards on the files that are shipped, and write the cards.

python recipes/cifar10_vqgan/measure.py --data torchvision:CIFAR10
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from string import Template
from typing import Any

import torch
from data import Images, read_images
from torch import Tensor

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Adapter, Likely
from vqcortex.audit.cost import frechet_distance
from vqcortex.calibration import expected_calibration_error
from vqcortex.files import write_bytes, write_json
from vqcortex.judges import CalibratedJudge, load_judges
from vqcortex.judges.features import features_of

ZOO = Path(__file__).parents[2] / "src/vqcortex/zoo"
HERE = Path(__file__).parent
MODELS = ("cifar10", "cifar10-vqvae")
BATCH = 250


def in_parts(function: Any, *tensors: Tensor) -> Tensor:
    """A function over images or grids, a few at a time."""
    with torch.no_grad():
        return torch.cat([function(*parts) for parts in zip(*(one.split(BATCH) for one in tensors), strict=True)])


def share_right(judge: CalibratedJudge, pixels: Tensor, labels: Tensor) -> float:
    """Share of images recognised as their class."""
    return (in_parts(judge, pixels).argmax(1) == labels).double().mean().item()


def first_stage_figures(model: Adapter, test: Images, judges: tuple[CalibratedJudge, ...]) -> dict[str, Any]:
    """How well images survive, and how the codebook is used, on all test images."""
    pixels = test.pixels.float() / 255
    grids = in_parts(model.encode, pixels)
    rebuilt = in_parts(lambda part: model.decode(model.embed(part)), grids)
    use = grids.flatten().bincount(minlength=model.k).double()
    errors = (rebuilt - pixels).square().flatten(1).mean(1)
    return {
        "psnr": -10 * math.log10(errors.mean().item()),
        "codes": model.k,
        "codes_alive": int((use > 0).sum()),
        "perplexity": torch.special.entr(use / use.sum()).sum().exp().item(),
        "judges": {
            judge.name: {
                "on_reconstructions": share_right(judge, rebuilt, test.labels),
                "frechet_reconstructions": frechet_distance(
                    in_parts(lambda part, judge=judge: features_of(judge, part), rebuilt),
                    in_parts(lambda part, judge=judge: features_of(judge, part), pixels),
                ),
            }
            for judge in judges
        },
    }


def drawn_figures(model: Likely, test: Images, judges: tuple[CalibratedJudge, ...], per_class: int) -> dict[str, Any]:
    """How drawn images look to the judges; seconds are of this machine."""
    classes = torch.arange(len(model.concepts)).repeat_interleave(per_class)
    names = [f"{model.concepts[c]}/{i:06d}" for i, c in enumerate(classes.tolist())]
    began = time.monotonic()
    grids = torch.cat(
        [model.generate(classes[i : i + BATCH], names[i : i + BATCH], 0) for i in range(0, len(names), BATCH)]
    )
    seconds = time.monotonic() - began
    made = in_parts(lambda part: model.decode(model.embed(part)), grids)
    pixels = test.pixels.float() / 255
    some = slice(None, None, max(1, len(test) // 1000))  # not the first ones: the source may be sorted by class
    real = in_parts(model.encode, pixels[some])
    logs = in_parts(model.log_probabilities, real, test.labels[some])
    return {
        "drawn": len(names),
        "seconds_per_1000": seconds / len(names) * 1000,
        "threads": torch.get_num_threads(),
        "bits_per_token": -logs.gather(1, real[:, None]).mean().item() / math.log(2),
        "judges": {
            judge.name: {
                "recognised": share_right(judge, made, classes),
                "recognised_by_class": [
                    share_right(judge, made[classes == c], classes[classes == c]) for c in range(len(model.concepts))
                ],
                "frechet_drawn": frechet_distance(
                    in_parts(lambda part, judge=judge: features_of(judge, part), made),
                    in_parts(lambda part, judge=judge: features_of(judge, part), pixels),
                ),
            }
            for judge in judges
        },
    }


def judge_figures(judge: CalibratedJudge, test: Images) -> dict[str, Any]:
    """Accuracy and calibration on real test images."""
    logs = in_parts(judge, test.pixels.float() / 255)
    raw = (logs * judge.temperature).log_softmax(1)
    return {
        "accuracy": (logs.argmax(1) == test.labels).double().mean().item(),
        "temperature": judge.temperature,
        "ece_raw": expected_calibration_error(raw.exp(), test.labels),
        "ece": expected_calibration_error(logs.exp(), test.labels),
        "parameters": sum(p.numel() for p in judge.network.parameters()),
    }


def measure_all(data: str, per_class: int = 100) -> None:
    """Measure both models, write figures.json and README.md beside each."""
    test = read_images(data, "test")
    judges = load_judges("zoo:cifar10")
    about = {judge.name: judge_figures(judge, test) for judge in judges}
    for name in MODELS:
        model = load_model(f"zoo:{name}")
        figures = {"judges": about, "first_stage": first_stage_figures(model, test, judges)}
        figures["bytes"] = sum(path.stat().st_size for path in (ZOO / name).rglob("*") if path.suffix in WEIGHTS)
        if model.concepts:
            assert isinstance(model, Likely)
            figures["drawn"] = drawn_figures(model, test, judges, per_class)
        write_json(ZOO / name / "figures.json", figures)
        write_card(name)


WEIGHTS = (".ckpt", ".safetensors")


def write_card(name: str) -> None:
    """Fill the card's form with the figures and with how the steps were made."""
    figures, model = (json.loads((ZOO / name / file).read_text()) for file in ("figures.json", "model.json"))
    made = json.loads((ZOO / "cifar10/made.json").read_text())
    first, drawn = figures["first_stage"], figures.get("drawn")
    text = Template((HERE / f"{name}.md.in").read_text()).substitute(
        megabytes=f"{figures['bytes'] / 1e6:.2f}", seed=model["seed"], budget=model["budget"], **_sampling(model),
        psnr=f"{first['psnr']:.2f}", alive=first["codes_alive"], codes=first["codes"],
        perplexity=f"{first['perplexity']:.0f}", judges=_judge_rows(figures), steps=_step_rows(name, made["steps"]),
        **_drawn(drawn, model["concepts"]),
    )  # fmt: skip
    write_bytes(ZOO / name / "README.md", text.encode())


def _sampling(model: dict[str, Any]) -> dict[str, str]:
    return {key: f"{value:g}" for key, value in model.get("sampling", {}).items()}


def _judge_rows(figures: dict[str, Any]) -> str:
    first, drawn = figures["first_stage"]["judges"], figures.get("drawn", {}).get("judges")
    rows = []
    for name, one in figures["judges"].items():
        row = [
            name, f"{one['parameters']:,}", f"{one['accuracy']:.2%}", f"{one['temperature']:.3f}",
            f"{one['ece_raw']:.4f}", f"{one['ece']:.4f}", f"{first[name]['on_reconstructions']:.2%}",
            f"{first[name]['on_reconstructions'] / one['accuracy']:.1%}",
            f"{first[name]['frechet_reconstructions']:.2f}",
        ]  # fmt: skip
        if drawn:
            row += [f"{drawn[name]['recognised']:.2%}", f"{drawn[name]['frechet_drawn']:.2f}"]
        rows.append("| " + " | ".join(row) + " |")
    return "\n".join(rows)


def _drawn(drawn: dict[str, Any] | None, concepts: list[str]) -> dict[str, str]:
    if drawn is None:
        return {}
    rows = [
        f"| {concept} | "
        + " | ".join(f"{one['recognised_by_class'][c]:.0%}" for one in drawn["judges"].values())
        + " |"
        for c, concept in enumerate(concepts)
    ]
    return {
        "drawn": f"{drawn['drawn']:,}", "seconds": f"{drawn['seconds_per_1000']:.0f}", "threads": drawn["threads"],
        "bits": f"{drawn['bits_per_token']:.2f}", "by_class": "\n".join(rows),
        "judge_heads": " | ".join(drawn["judges"]),
    }  # fmt: skip


def _step_rows(name: str, steps: dict[str, dict[str, Any]]) -> str:
    wanted = ("vqvae",) if name == "cifar10-vqvae" else ("eye", "vqgan", "transformer", "cnn", "cct")
    return "\n".join(
        f"| {step} | {steps[step]['steps']:,} | {steps[step]['seconds'] / 60:.0f} | {steps[step]['devices']} × "
        f"{steps[step]['device']}, {steps[step]['threads']} threads, torch {steps[step]['torch']} |"
        for step in wanted
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="torchvision:CIFAR10")
    parser.add_argument("--per-class", type=int, default=100, help="images drawn per class")
    chosen = parser.parse_args()
    measure_all(chosen.data, chosen.per_class)


if __name__ == "__main__":
    main()
