"""Measure every figure of the card of `zoo:fashion`, on the files that are shipped, and write the card.

python recipes/fashion/measure.py --data idx:/usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters import load_model
from vqcortex.adapters.zoo import ZooModel
from vqcortex.calibration import expected_calibration_error
from vqcortex.files import write_bytes, write_json
from vqcortex.judges import CalibratedJudge, load_judges

ZOO = Path(__file__).parents[2] / "src/vqcortex/zoo/fashion"


def encoded(model: ZooModel, pixels: Tensor) -> Tensor:
    """Token grids (n, h, w) of images (n, 3, H, W)."""
    return torch.cat([model.encode(part) for part in pixels.split(500)])


@torch.no_grad()
def decoded(model: ZooModel, grids: Tensor) -> Tensor:
    """Images (n, 3, H, W) of token grids."""
    return torch.cat([model.decode(model.embed(part)) for part in grids.split(500)])


def hit_rate(judge: CalibratedJudge, pixels: Tensor, labels: Tensor) -> float:
    """Share of images recognised as their class."""
    said = torch.cat([judge(part).argmax(1) for part in pixels.split(500)])
    return (said == labels).double().mean().item()


def measure(data: str, generated: int) -> dict[str, Any]:
    """All figures; `generated` images per class are drawn with seed 0."""
    from make import load_data

    model = load_model("zoo:fashion")
    assert isinstance(model, ZooModel)
    images, labels = load_data(data, "test", "cpu")
    pixels = (images.expand(-1, 3, -1, -1) + 1) / 2
    grids = encoded(model, pixels)
    rebuilt = decoded(model, grids)
    usage = grids.flatten().bincount(minlength=len(model.codebook)).double()
    share = usage / usage.sum()
    classes = torch.arange(len(model.concepts)).repeat_interleave(generated)
    names = [f"{model.concepts[c]}/{i:06d}" for i, c in enumerate(classes.tolist())]
    drawn = torch.cat([model.generate(c, n, 0) for c, n in zip(classes.split(250), batched(names, 250), strict=True)])
    made = decoded(model, drawn)
    figures: dict[str, Any] = {
        "test_mse": F.mse_loss(rebuilt * 2 - 1, pixels * 2 - 1).item(),
        "psnr": -10 * math.log10(F.mse_loss(rebuilt, pixels).item()),
        "codes_alive": int((usage > 0).sum()),
        "codes": len(model.codebook),
        "perplexity": torch.special.entr(share).sum().exp().item(),
        "prior_bits": prior_bits(model, grids, labels),
        "generated": generated * len(model.concepts),
        "bytes": sum(path.stat().st_size for path in ZOO.glob("*.safetensors")),
        "judges": {},
    }
    for judge in load_judges("zoo:fashion"):
        logs = torch.cat([judge(part) for part in pixels.split(500)])
        raw = (logs * judge.temperature).log_softmax(1)
        figures["judges"][judge.name] = {
            "accuracy": (logs.argmax(1) == labels).double().mean().item(),
            "temperature": judge.temperature,
            "ece_raw": expected_calibration_error(raw.exp(), labels),
            "ece": expected_calibration_error(logs.exp(), labels),
            "on_reconstructions": hit_rate(judge, rebuilt, labels),
            "on_generated": hit_rate(judge, made, classes),
            "on_generated_by_class": [
                hit_rate(judge, made[classes == c], classes[classes == c]) for c in range(len(model.concepts))
            ],
            "parameters": sum(p.numel() for p in judge.network.parameters()),
        }
    write_json(ZOO / "figures.json", figures)
    return figures


def batched(items: list[str], size: int) -> list[list[str]]:
    """Cut a list into pieces of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@torch.no_grad()
def prior_bits(model: ZooModel, grids: Tensor, labels: Tensor) -> float:
    """Bits per token that the prior needs for real test images."""
    total = 0.0
    for part, concept in zip(grids.flatten(1).split(500), labels.split(500), strict=True):
        total += F.cross_entropy(model.prior(concept, part).flatten(0, 1), part.flatten(), reduction="sum").item()
    return total / grids.numel() / math.log(2)


def write_card(figures: dict[str, Any]) -> None:
    """Fill card.md.in with the figures and write the zoo's README.md."""
    made = json.loads((ZOO / "made.json").read_text())
    model = json.loads((ZOO / "model.json").read_text())
    rows = [
        f"| {name} | {one['parameters']:,} | {one['accuracy']:.2%} | {one['temperature']:.3f} | {one['ece_raw']:.4f} | "
        f"{one['ece']:.4f} | {one['on_reconstructions']:.2%} | {one['on_generated']:.2%} |"
        for name, one in figures["judges"].items()
    ]
    by_class = [
        f"| {concept} | "
        + " | ".join(f"{one['on_generated_by_class'][c]:.1%}" for one in figures["judges"].values())
        + " |"
        for c, concept in enumerate(model["concepts"])
    ]
    steps = [
        f"| {name} | {one['epochs']} | {one['seconds'] / 60:.0f} | "
        f"{one['device']}, {one['cores']} threads, torch {one['torch']} |"
        for name, one in made["steps"].items()
    ]
    text = Template((Path(__file__).parent / "card.md.in").read_text()).substitute(
        mse=f"{figures['test_mse']:.4f}", psnr=f"{figures['psnr']:.1f}",
        alive=figures["codes_alive"], codes=figures["codes"],
        alive_share=f"{figures['codes_alive'] / figures['codes']:.1%}", perplexity=f"{figures['perplexity']:.0f}",
        bits=f"{figures['prior_bits']:.2f}", generated=f"{figures['generated']:,}",
        megabytes=f"{figures['bytes'] / 1e6:.2f}", judges="\n".join(rows), by_class="\n".join(by_class),
        steps="\n".join(steps), seed=made["seed"], temperature=model["sampling"]["temperature"],
        top_k=model["sampling"]["top_k"],
        judge_heads=" | ".join(figures["judges"]),
    )  # fmt: skip
    write_bytes(ZOO / "README.md", text.encode())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="torchvision:FashionMNIST")
    parser.add_argument("--generated", type=int, default=200, help="images per class")
    chosen = parser.parse_args()
    figures = measure(chosen.data, chosen.generated)
    write_card(figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
