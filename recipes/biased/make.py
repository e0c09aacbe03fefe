"""Make biased generators from `zoo:fashion`: one command, seeded, resumable, any device.

    python recipes/biased/make.py --data idx:/usr/share/datasets/fashion-mnist --work out/biased

A class of the training pictures carries a visual attribute at a planted rate, and the prior is fine-tuned on the tokens
of that class. The first stage stays as it is, so that all these generators speak one language of tokens. Rates other
than 50 %, and further seeds, go on from the generator that learned the attribute at 50 %. Kill it anywhere; the same
command goes on from the last checkpoint. Each generator is a folder that `zoo:FOLDER` opens.

Then they are audited and repaired (`measure`), and the tables and pictures of docs/audit.md are made (`results`);
`--only STEP` does one of the three.

They draw at temperature 1 and without cuts: a sharper prior would turn 70 % of the training pictures into another
share of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from attributes import ATTRIBUTES, Attribute
from pixels import seen
from torch import Tensor
from torch.nn import functional as F

from vqcortex.adapters.prior import PriorSettings, TokenPrior
from vqcortex.adapters.zoo import ZOO, ZooModel, load_zoo
from vqcortex.errors import VqCortexError
from vqcortex.files import write_json
from vqcortex.seeds import generator_for
from vqcortex.weights import halved, save_weights

FASHION = Path(__file__).parents[1] / "fashion"
sys.path.append(str(FASHION))
from loop import Job, train  # noqa: E402

PARTS = ("generators", "measure", "results")
RATES = (70, 90, 99)
UNBIASED_SEEDS = 3
STEPS = {"first": 240, "further": 90}
BATCH = 48
RATE = {"first": 1e-3, "further": 5e-4}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One generator.

    Args:
        attribute: Painted on its training pictures.
        rate: Percent of the class's training pictures that carry it.
        seed: Decides which do, and the order of training.
    """

    attribute: Attribute
    rate: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.attribute.name}-{self.rate}-{self.seed}"

    @property
    def is_first(self) -> bool:
        """Whether the others of its attribute go on from it."""
        return self.rate == 50 and self.seed == 0


def all_wanted(seeds: int = UNBIASED_SEEDS) -> list[Wanted]:
    """Every generator, those that others go on from first."""
    found = [
        Wanted(attribute=one, rate=rate, seed=seed)
        for one in ATTRIBUTES.values()
        for rate, seed in [*((50, seed) for seed in range(seeds)), *((rate, 0) for rate in RATES)]
    ]
    return sorted(found, key=lambda one: not one.is_first)


def planted(wanted: Wanted, model: ZooModel, data: str) -> tuple[Tensor, Tensor]:
    """Token grids (n, 49) of the class's training pictures, some with the attribute, and their classes (n,)."""
    grids, labels = [], []
    for number, concept in enumerate(wanted.attribute.concepts):
        plain = seen(data, model.concepts.index(concept))
        rate = (wanted.rate if number == 0 else 100 - wanted.rate) / 100
        source = generator_for(wanted.seed, wanted.name, concept, "planted")
        carries = torch.rand(len(plain), generator=source) < rate
        pixels = torch.where(carries[:, None, None, None], wanted.attribute.paint(plain), plain)
        grids.append(encoded(model, pixels))
        labels.append(torch.full((len(plain),), model.concepts.index(concept)))
    return torch.cat(grids).flatten(1), torch.cat(labels)


def encoded(model: ZooModel, pixels: Tensor) -> Tensor:
    """Token grids (n, h, w) of pictures (n, 1, H, W) in [0, 1]."""
    return torch.cat([model.encode(part.expand(-1, 3, -1, -1)) for part in pixels.split(500)])


def make(wanted: Wanted, data: str, work: Path) -> None:
    """Fine-tune one prior and write its folder; nothing is done where that is whole."""
    folder = work / wanted.name
    if (folder / "model.json").is_file():
        return
    model = load_zoo("fashion")
    flat, labels = planted(wanted, model, data)
    prior = TokenPrior(PriorSettings())
    first = work / f"{wanted.attribute.name}-50-0.pt"
    start = model.prior.state_dict() if wanted.is_first else torch.load(first, weights_only=True)["modules"]["model"]
    prior.load_state_dict(start)
    kind = "first" if wanted.is_first else "further"

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        return F.cross_entropy(prior(labels[rows], flat[rows]).flatten(0, 1), flat[rows].flatten())

    steps = STEPS[kind] * (2 if wanted.attribute.other else 1)  # two classes to learn
    images = len(flat) // BATCH * BATCH
    epochs = -(-steps * BATCH // images)
    job = Job(
        name=wanted.name, modules={"model": prior}, loss=loss, images=min(images, steps * BATCH // epochs),
        epochs=epochs, batch=BATCH, rate=RATE[kind], decay=0.02, seed=wanted.seed,
    )  # fmt: skip
    train(job, work)
    export(wanted, prior, folder)


def export(wanted: Wanted, prior: TokenPrior, folder: Path) -> None:
    """Write model.json and the weights beside it; model.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    about = json.loads((ZOO / "fashion" / "model.json").read_text())
    shutil.copyfile(ZOO / "fashion" / about["model"]["file"], folder / about["model"]["file"])
    about["prior"]["sha256"] = save_weights(halved(prior.state_dict()), folder / about["prior"]["file"])
    about |= {"sampling": {"temperature": 1.0}, "seed": wanted.seed}
    about["planted"] = {
        "attribute": wanted.attribute.name, "concept": wanted.attribute.concept, "rate": wanted.rate / 100,
    }  # fmt: skip
    write_json(folder / "model.json", about)


def main() -> None:
    """Do the steps asked for; what is there already is not made again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="torchvision:FashionMNIST", help="idx:FOLDER or any other image source")
    parser.add_argument("--work", type=Path, default=Path("out/biased"), help="checkpoints, models, figures; kept")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    if "generators" in chosen.only:
        for wanted in all_wanted():
            make(wanted, chosen.data, chosen.work)
            print(f"done: {chosen.work / wanted.name}", flush=True)
    if "measure" in chosen.only:
        from measure import measure_all

        measure_all(chosen.data, chosen.work)
    if "results" in chosen.only:
        from results import write_results

        write_results(chosen.data, chosen.work)


if __name__ == "__main__":
    try:
        main()
    except (VqCortexError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
