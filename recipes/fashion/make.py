"""Make the embedded model `zoo:fashion`: one command, seeded, resumable, any device.

    python recipes/fashion/make.py --data idx:/usr/share/datasets/fashion-mnist --work out/fashion

Steps, in order: first stage, judge A (cnn), prior, judge B (patch, two rounds), export, measure. Kill it anywhere; the
same command goes on from the last checkpoint. `--only` runs some of the steps.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from first_stage import train_first_stage
from judges_and_prior import cnn_judge, patch_judge, tokenize, train_judge, train_prior
from torch import Tensor, nn

from vqcortex.adapters.prior import PriorSettings, TokenPrior
from vqcortex.adapters.vqvae import VQVAE, VQVAESettings
from vqcortex.calibration import fit_temperature
from vqcortex.files import hash_of_file, write_json
from vqcortex.images import read_idx
from vqcortex.weights import halved, save_weights

CONCEPTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
STEPS = ("vqvae", "cnn", "prior", "patch", "patch_again", "export", "measure")
# The last 5,000 training images train neither judges nor prior; the judges' temperatures are fitted on them.
HELD_OUT = 5_000
# Fixed before any judge saw a generated image: sharper than 1, so that fewer draws fall off the manifold.
SAMPLING = {"temperature": 0.8, "top_k": 100}
CHECKPOINTS = {"model": "vqvae", "prior": "prior"}
ZOO = Path(__file__).parents[2] / "src/vqcortex/zoo/fashion"
EPOCHS = {"vqvae": 8, "cnn": 5, "prior": 4, "patch": 8, "patch_again": 4}


def load_data(source: str, split: str, device: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) in [-1, 1] and labels (n,), of `idx:FOLDER` or any other image source."""
    scheme, _, where = source.partition(":")
    if scheme == "idx":
        images, labels = read_idx(Path(where), split)
    else:
        from vqcortex.images import open_images

        records = list(open_images(source, split))
        images = np.stack([np.asarray(record.image.convert("L")) for record in records])
        labels = np.array([record.concept for record in records])
    pixels = torch.from_numpy(images.copy()).float()[:, None] / 127.5 - 1
    return pixels.to(device), torch.from_numpy(labels.copy()).long().to(device)


def saved_model(module: nn.Module, path: Path) -> nn.Module:
    """Put a finished checkpoint's weights into `module`."""
    module.load_state_dict(torch.load(path, weights_only=True)["modules"]["model"])
    return module.eval()


def export_model(work: Path, seed: int) -> None:
    """Write the weights of first stage and prior, and model.json, into the zoo."""
    about = {"concepts": CONCEPTS, "sampling": SAMPLING, "seed": seed}
    for part, fresh in (("model", VQVAE(VQVAESettings())), ("prior", TokenPrior(PriorSettings()))):
        module = saved_model(fresh, work / f"{CHECKPOINTS[part]}.pt")
        name = f"{part}.safetensors"
        sha256 = save_weights(halved(module.state_dict()), ZOO / name)
        about[part] = {"file": name, "sha256": sha256, "settings": asdict(module.settings)}
    write_json(ZOO / "model.json", about)


def export_judges(work: Path, images: Tensor, labels: Tensor, seed: int) -> None:
    """Write the judges' weights and judges.json; temperatures are fitted on `images`, which trained neither."""
    judges = []
    for name, fresh, last in (("cnn", cnn_judge(seed), "cnn"), ("patch", patch_judge(seed), "patch_again")):
        judge = saved_model(fresh, work / f"{last}.pt")
        with torch.no_grad():
            logits = torch.cat([judge((part.cpu().expand(-1, 3, -1, -1) + 1) / 2) for part in images.split(500)])
        file = f"judge_{name}.safetensors"
        judges.append(
            {
                "name": name,
                "architecture": name,
                "settings": asdict(judge.settings),
                "file": file,
                "sha256": save_weights(halved(judge.state_dict()), ZOO / file),
                "temperature": round(fit_temperature(logits, labels.cpu()), 6),
            }
        )
    write_json(ZOO / "judges.json", {"concepts": CONCEPTS, "judges": judges})


def main() -> None:
    """Run the steps asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="torchvision:FashionMNIST", help="idx:FOLDER, torchvision:NAME, hf:NAME, parquet:PATH"
    )
    parser.add_argument("--work", type=Path, default=Path("out/fashion"), help="checkpoints; kept between runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=STEPS, default=STEPS)
    chosen = parser.parse_args()
    images, labels = load_data(chosen.data, "train", chosen.device)
    seen, seen_labels, work, seed = images[:-HELD_OUT], labels[:-HELD_OUT], chosen.work, chosen.seed
    seconds: dict[str, float] = {}
    if "vqvae" in chosen.only:
        _, seconds["vqvae"] = train_first_stage(images, work, seed=seed, epochs=EPOCHS["vqvae"])
    if "cnn" in chosen.only:
        judge = cnn_judge(seed).to(chosen.device)
        seconds["cnn"] = train_judge("cnn", judge, seen, seen_labels, work, seed=seed, epochs=EPOCHS["cnn"], rate=2e-3)
    if "prior" in chosen.only:
        first = saved_model(VQVAE(VQVAESettings()), work / "vqvae.pt").to(chosen.device)
        grids = tokenize(first, seen)
        _, seconds["prior"] = train_prior(grids, seen_labels, work, seed=seed, epochs=EPOCHS["prior"])
    if "patch" in chosen.only:
        judge = patch_judge(seed).to(chosen.device)
        rate = 1.5e-3
        seconds["patch"] = train_judge(
            "patch", judge, seen, seen_labels, work, seed=seed, epochs=EPOCHS["patch"], rate=rate
        )
    if "patch_again" in chosen.only:  # one round left it short of what a second judge should know
        judge = saved_model(patch_judge(seed), work / "patch.pt").to(chosen.device)
        epochs, rate = EPOCHS["patch_again"], 1e-3
        seconds["patch_again"] = train_judge(
            "patch_again", judge, seen, seen_labels, work, seed=seed, epochs=epochs, rate=rate
        )
    for name, spent in seconds.items():
        about = {
            "seconds": round(spent),
            "device": chosen.device,
            "cores": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_json(work / f"{name}.json", about | {"epochs": EPOCHS[name], "machine": platform.machine()})
    if "export" in chosen.only:
        export_model(work, seed)
        export_judges(work, images[-HELD_OUT:], labels[-HELD_OUT:], seed)
    if "measure" in chosen.only:
        from measure import measure, write_card

        made = {name: json.loads((work / f"{name}.json").read_text()) for name in EPOCHS}
        hashes = {path.name: hash_of_file(path) for path in sorted(ZOO.glob("*.safetensors"))}
        write_json(ZOO / "made.json", {"data": chosen.data.split(":")[0], "seed": seed, "steps": made, "files": hashes})
        write_card(measure(chosen.data, generated=200))


if __name__ == "__main__":
    main()
