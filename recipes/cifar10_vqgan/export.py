"""From checkpoints to the two embedded models: taming-transformers folders, judges, and how to draw."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from classifiers import scaled
from data import CONCEPTS, Images
from first_stage import FirstStageSettings, new_network
from loop import finished
from networks import Eye
from torch import Tensor, nn
from transformer import PriorSettings, new_transformer

from vqcortex.adapters.net2net import Condition, Net2NetModel
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.prior import Sampling
from vqcortex.audit.cost import frechet_distance
from vqcortex.calibration import fit_temperature
from vqcortex.files import hash_of_file, write_bytes, write_json
from vqcortex.judges.cct import CCT
from vqcortex.judges.cnn import CNN
from vqcortex.weights import halved, save_training_state, save_weights

ZOO = Path(__file__).parents[2] / "src/vqcortex/zoo"
SIDE = 32
# Sampling is chosen among these by the eye, which is no judge: the least Fréchet distance in its features.
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
TEMPERATURE = 1.0
TOP_K = 250
DRAWN = 60  # images per class for that choice


def first_stage_config(settings: FirstStageSettings) -> dict[str, Any]:
    """The `model` part of a config for taming.models.vqgan.VQModel."""
    return {
        "target": "taming.models.vqgan.VQModel",
        "params": {
            "embed_dim": settings.d,
            "n_embed": settings.codes,
            "ddconfig": {
                "double_z": False,
                "z_channels": settings.z_channels,
                "resolution": SIDE,
                "in_channels": 3,
                "out_ch": 3,
                "ch": settings.widths[0],
                "ch_mult": [width // settings.widths[0] for width in settings.widths],
                "num_res_blocks": settings.blocks,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
            "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
        },
    }


def transformer_config(first: dict[str, Any], settings: PriorSettings, positions: int, classes: int) -> dict[str, Any]:
    """The `model` part of a config for taming.models.cond_transformer.Net2NetTransformer."""
    return {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "first_stage_key": "image",
            "cond_stage_key": "class_label",
            "pkeep": settings.keep,
            "transformer_config": {
                "target": "taming.modules.transformer.mingpt.GPT",
                "params": {
                    "vocab_size": first["params"]["n_embed"],
                    "block_size": positions,
                    "n_layer": settings.layers,
                    "n_head": settings.heads,
                    "n_embd": settings.width,
                },
            },
            "first_stage_config": first,
            "cond_stage_config": {"target": "taming.modules.util.Labelator", "params": {"n_classes": classes}},
        },
    }


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Write checkpoints/last.ckpt and configs/project.yaml; return what model.json says of them."""
    weights, settings = Path("checkpoints/last.ckpt"), Path("configs/project.yaml")
    save_training_state({"state_dict": halved(tensors)}, folder / weights)
    write_bytes(folder / settings, yaml.safe_dump({"model": config}, sort_keys=False).encode())
    return {
        part: {"file": str(file), "sha256": hash_of_file(folder / file)}
        for part, file in (("weights", weights), ("config", settings))
    }


def masks_of(settings: PriorSettings, positions: int) -> dict[str, Tensor]:
    """What each position may look at: the official code holds it in its checkpoints, ours needs none."""
    mask = torch.ones(positions, positions).tril()[None, None]
    return {f"blocks.{number}.attn.mask": mask for number in range(settings.layers)}


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def export(work: Path, budget: Any, name: str, held_out: Images, *, seed: int) -> None:
    """Write both models.

    Args:
        work: Folder of the finished checkpoints.
        budget: Sizes.
        name: Of the budget.
        held_out: Images that trained neither judges nor transformer.
        seed: As in training.
    """
    settings, concepts = budget.first_stage, CONCEPTS
    first, positions = first_stage_config(settings), (SIDE // 2 ** (len(settings.widths) - 1)) ** 2
    vqgan, drawer = finished("vqgan", work), finished("transformer", work)
    sampling = chosen_sampling(work, budget, held_out, seed=seed)
    about = write_folder(
        ZOO / "cifar10",
        prefixed(vqgan, "first_stage_model.")
        | prefixed(drawer | masks_of(budget.transformer, positions), "transformer."),
        transformer_config(first, budget.transformer, positions, len(concepts) + 1),
    )
    common = {"concepts": list(concepts), "seed": seed, "budget": name}
    write_json(
        ZOO / "cifar10/model.json",
        {"family": "net2net", "sampling": sampling, "empty": len(concepts), **common, **about},
    )
    about = write_folder(ZOO / "cifar10-vqvae", finished("vqvae", work), first)
    write_json(ZOO / "cifar10-vqvae/model.json", {"family": "taming", "judges": "cifar10", **common, **about})
    write_judges(work, budget, held_out)


def write_judges(work: Path, budget: Any, held_out: Images) -> None:
    """Write the judges' weights and judges.json; temperatures are fitted on images that trained neither."""
    judges = []
    for name, fresh in (("cnn", CNN(budget.cnn_settings)), ("cct", CCT(budget.cct_settings))):
        fresh.load_state_dict(finished(name, work))
        logits = answers(fresh.eval(), held_out.pixels)
        file = f"judge_{name}.safetensors"
        judges.append(
            {
                "name": name,
                "architecture": name,
                "settings": asdict(fresh.settings),
                "file": file,
                "sha256": save_weights(halved(fresh.state_dict()), ZOO / "cifar10" / file),
                "temperature": round(fit_temperature(logits, held_out.labels), 6),
            }
        )
    write_json(ZOO / "cifar10/judges.json", {"concepts": list(CONCEPTS), "judges": judges})


@torch.no_grad()
def answers(judge: nn.Module, pixels: Tensor) -> Tensor:
    """Logits of images (n, 3, H, W), bytes."""
    return torch.cat([judge(part.float() / 255) for part in pixels.split(250)])


def chosen_sampling(work: Path, budget: Any, held_out: Images, *, seed: int) -> dict[str, float]:
    """How to draw: the guidance whose images the eye finds most like real ones."""
    network = new_network(budget.first_stage)
    network.load_state_dict(finished("vqgan", work))
    first = NetworkAdapter(
        name="cifar10", family="taming", network=network, size=(SIDE, SIDE), stride=network.sizes.encoder.stride
    )
    h, w = first.grid
    module = new_transformer(budget.transformer, codes=budget.first_stage.codes, positions=h * w, seed=seed)
    module.load_state_dict(finished("transformer", work))
    eye = Eye(len(CONCEPTS))
    eye.load_state_dict(finished("eye", work))
    real = seen_by(eye.eval(), scaled(held_out.pixels))
    classes = torch.arange(len(CONCEPTS)).repeat_interleave(DRAWN)
    names = [f"{concept}/{number}" for number, concept in enumerate(classes.tolist())]
    condition = Condition(concepts=CONCEPTS, tokens=tuple(range(len(CONCEPTS))), empty=len(CONCEPTS))
    distances = {}
    for guidance in GUIDANCE:
        sampling = Sampling(temperature=TEMPERATURE, top_k=TOP_K, guidance=guidance)
        model = Net2NetModel(first=first, transformer=module, condition=condition, sampling=sampling)
        with torch.no_grad():
            made = model.decode(model.embed(model.generate(classes, names, seed)))
        distances[guidance] = frechet_distance(seen_by(eye, made * 2 - 1), real)
    write_json(work / "sampling.json", {str(guidance): distance for guidance, distance in distances.items()})
    return {"temperature": TEMPERATURE, "top_k": TOP_K, "guidance": min(distances, key=distances.__getitem__)}


@torch.no_grad()
def seen_by(eye: Eye, images: Tensor) -> Tensor:
    """The eye's last features, (n, f), of images in [-1, 1]."""
    return torch.cat([eye.features(part)[-1].mean((2, 3)) for part in images.split(250)])
