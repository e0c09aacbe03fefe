"""Make the embedded models `zoo:cifar10` and `zoo:cifar10-vqvae`: seeded, resumable, on one CPU or several GPUs.

    python recipes/cifar10_vqgan/make.py --data torchvision:CIFAR10 --work out/cifar10
    python recipes/cifar10_vqgan/make.py --data parquet:DIR --work out/cifar10 --budget gpu --devices 2

Steps: `eye` (the classifier of the perceptual loss), `vqgan`, `vqvae` (the same without eye and adversary),
`transformer` (after `vqgan`), `cnn` and `cct` (the judges), `export`, `measure`. Kill it anywhere; the same command
goes on from the last checkpoint. `--only STEP` runs one of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from classifiers import train_classifier
from data import CONCEPTS, Images, read_images
from first_stage import FirstStageSettings, new_network, train_first_stage
from lightning.fabric import Fabric
from loop import Trained, finished
from networks import Eye
from torch import nn
from transformer import PriorSettings, tokenize, train_transformer

from vqcortex.errors import VqCortexError
from vqcortex.files import write_json
from vqcortex.judges.cct import CCT, CCTSettings
from vqcortex.judges.cnn import CNN, CNNSettings

# Of every class; these training images train neither judges nor transformer, and the judges' temperatures are fitted on
# them.
HELD_OUT = 0.1
TRAINED = ("eye", "vqgan", "vqvae", "cnn", "cct", "transformer")
STEPS = (*TRAINED, "export", "measure")


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """Training of a classifier: passes, images per step, peak learning rate."""

    epochs: float
    batch: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Sizes and lengths of every step."""

    eye: ClassifierSettings
    first_stage: FirstStageSettings
    vqvae_epochs: float
    transformer: PriorSettings
    cnn: ClassifierSettings
    cct: ClassifierSettings
    cnn_settings: CNNSettings
    cct_settings: CCTSettings


BUDGETS = {
    # About two and a half hours of one core.
    "cpu": Budget(
        eye=ClassifierSettings(epochs=2, batch=64, rate=3e-3),
        first_stage=FirstStageSettings(widths=(32, 32, 96), blocks=1, epochs=3, batch=64, rate=1e-3),
        vqvae_epochs=3,
        transformer=PriorSettings(width=192, layers=4, heads=6, epochs=4, batch=64, rate=2e-3),
        cnn=ClassifierSettings(epochs=14, batch=128, rate=3e-3),
        cct=ClassifierSettings(epochs=10, batch=128, rate=1.5e-3),
        cnn_settings=CNNSettings(channels=3, width=32),
        cct_settings=CCTSettings(mirrors=True),
    ),
    # About an hour of one large GPU.
    "gpu": Budget(
        eye=ClassifierSettings(epochs=20, batch=256, rate=3e-3),
        first_stage=FirstStageSettings(
            widths=(64, 64, 128), blocks=1, epochs=60, batch=128, rate=6e-4, adversary_from=0.4, average=0.999
        ),
        vqvae_epochs=40,
        transformer=PriorSettings(
            width=256, layers=8, heads=8, epochs=60, batch=256, rate=1e-3, keep=0.9, decay=0.1, average=0.999
        ),
        cnn=ClassifierSettings(epochs=60, batch=128, rate=3e-3),
        cct=ClassifierSettings(epochs=120, batch=128, rate=1.5e-3),
        cnn_settings=CNNSettings(channels=3, width=64),
        cct_settings=CCTSettings(mirrors=True),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every step needs.

    Args:
        images: All training images.
        budget: Sizes and lengths.
        work: Folder of the checkpoints.
        fabric: Devices and number types.
        seed: Of everything.
        compiled: Whether the operations of the first stages are fused first.
    """

    images: Images
    budget: Budget
    work: Path
    fabric: Fabric
    seed: int
    compiled: bool

    @property
    def seen(self) -> Images:
        """Those that judges and transformer may see."""
        return self.images.apart(HELD_OUT, self.seed)[0]

    @property
    def held_out(self) -> Images:
        """Those that neither may see."""
        return self.images.apart(HELD_OUT, self.seed)[1]

    def classifier(self, name: str, module: nn.Module, settings: ClassifierSettings, images: Images) -> Trained:
        """Train a classifier; judges take images in [0, 1], the eye in [-1, 1]."""
        see = module if name == "eye" else lambda x: module((x + 1) / 2)
        return train_classifier(name, module, see, images, self.work, self.fabric, seed=self.seed, **asdict(settings))


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(seed)
    return build().to(memory_format=torch.channels_last)


def _eye(run: Run) -> Trained:
    return run.classifier("eye", _seeded(run.seed + 4, lambda: Eye(len(CONCEPTS))), run.budget.eye, run.images)


def _vqgan(run: Run) -> Trained:
    eye = Eye(len(CONCEPTS))
    eye.load_state_dict(finished("eye", run.work))
    return train_first_stage(
        "vqgan", run.budget.first_stage, run.images.pixels, eye, run.work, run.fabric,
        seed=run.seed, compiled=run.compiled,
    )  # fmt: skip


def _vqvae(run: Run) -> Trained:
    plain = asdict(run.budget.first_stage) | {"adversary": 0.0, "epochs": run.budget.vqvae_epochs}
    return train_first_stage(
        "vqvae", FirstStageSettings(**plain), run.images.pixels, None, run.work, run.fabric,
        seed=run.seed, compiled=run.compiled,
    )  # fmt: skip


def _cnn(run: Run) -> Trained:
    build = _seeded(run.seed + 1, lambda: CNN(run.budget.cnn_settings))
    return run.classifier("cnn", build, run.budget.cnn, run.seen)


def _cct(run: Run) -> Trained:
    build = _seeded(run.seed + 2, lambda: CCT(run.budget.cct_settings))
    return run.classifier("cct", build, run.budget.cct, run.seen)


def _transformer(run: Run) -> Trained:
    settings = run.budget.first_stage
    network = new_network(settings).eval()
    network.load_state_dict(finished("vqgan", run.work))
    seen = run.seen
    tokens = tokenize(network.to(run.fabric.device), seen.pixels, run.fabric.device)
    return train_transformer(
        run.budget.transformer, tokens, seen.labels, run.work, run.fabric,
        codes=settings.codes, empty=len(CONCEPTS), seed=run.seed,
    )  # fmt: skip


TRAINERS = {"eye": _eye, "vqgan": _vqgan, "vqvae": _vqvae, "cnn": _cnn, "cct": _cct, "transformer": _transformer}


def note(name: str, trained: Trained, run: Run) -> None:
    """Write down how a step was made, for the card."""
    if run.fabric.global_rank == 0:
        about = {
            "seconds": round(trained.seconds), "steps": trained.steps, "device": run.fabric.device.type,
            "devices": run.fabric.world_size, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "machine": platform.machine(),
        }  # fmt: skip
        path = run.work / f"{name}.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        # Equal seconds: it was finished already, maybe on another machine, of which the note must go on telling.
        if any(before.get(key) != about[key] for key in ("seconds", "steps")):
            write_json(path, about)


def notes_of(work: Path) -> dict[str, Any]:
    """What `note` wrote down of every step.

    Raises:
        FileNotFoundError: A step is not finished.
    """
    if missing := [name for name in TRAINED if not (work / f"{name}.json").is_file()]:
        raise FileNotFoundError(
            f"in {str(work)!r} the step {missing[0]!r} is not finished; run it first: --only {missing[0]}"
        )
    return {name: json.loads((work / f"{name}.json").read_text()) for name in TRAINED}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="torchvision:CIFAR10", help="torchvision:CIFAR10, hf:NAME, parquet:PATH, …")
    parser.add_argument("--work", type=Path, default=Path("out/cifar10"), help="checkpoints; kept between runs")
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--devices", type=int, default=1, help="GPUs")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="bf16-mixed")
    parser.add_argument(
        "--compile", action="store_true", help="fuse the first stages' operations; needs a C++ compiler"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=STEPS, default=STEPS)
    return parser.parse_args()


def main() -> None:
    """Run the steps asked for."""
    chosen = parsed()
    fabric = Fabric(accelerator="auto", devices=chosen.devices, precision=chosen.precision)
    fabric.launch()
    run = Run(
        images=read_images(chosen.data, "train"), budget=BUDGETS[chosen.budget], work=chosen.work, fabric=fabric,
        seed=chosen.seed, compiled=chosen.compile,
    )  # fmt: skip
    for name in (one for one in TRAINED if one in chosen.only):
        note(name, TRAINERS[name](run), run)
    if fabric.global_rank == 0 and {"export", "measure"} & set(chosen.only):
        from export import ZOO, export
        from measure import measure_all

        if "export" in chosen.only:
            about = {"data": chosen.data.partition(":")[0], "seed": chosen.seed, "steps": notes_of(chosen.work)}
            write_json(ZOO / "cifar10/made.json", about)
            export(chosen.work, run.budget, chosen.budget, run.held_out, seed=chosen.seed)
        if "measure" in chosen.only:
            measure_all(chosen.data)


if __name__ == "__main__":
    try:
        main()
    except (VqCortexError, FloatingPointError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
