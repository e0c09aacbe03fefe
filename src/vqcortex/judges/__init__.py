"""Independent image classifiers that check an explanation; they never help to make one.

A new architecture is a file here and one line below; weights and temperatures lie with the model they judge.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

import vqcortex
from vqcortex.errors import ModelError
from vqcortex.registry import Registry
from vqcortex.weights import load_weights

ARCHITECTURES: Registry[Any] = Registry("judge architecture")
ARCHITECTURES.add("cnn", "vqcortex.judges.cnn:build")
ARCHITECTURES.add("patch", "vqcortex.judges.patch:build")
ARCHITECTURES.add("toy", "vqcortex.judges.toy:build")


@final
class CalibratedJudge:
    """A classifier of images with its temperature.

    Args:
        name: "cnn", "patch": unique among the judges of one model.
        concepts: What its outputs stand for, in order.
        temperature: Divides the logits, > 0, fitted on held-out real images.
        network: Images in [0, 1] to logits.
    """

    def __init__(self, *, name: str, concepts: tuple[str, ...], temperature: float, network: nn.Module) -> None:
        self.name, self.concepts, self.temperature = name, concepts, temperature
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Calibrated log-probabilities of images in [0, 1]."""
        return (self.network(pixels) / self.temperature).log_softmax(1)

    def to(self, device: str) -> CalibratedJudge:
        """Move to a device and return self."""
        self.network.to(device)
        return self


def load_judges(name: str, device: str = "cpu") -> tuple[CalibratedJudge, ...]:
    """Open the judges that lie with a model.

    Args:
        name: A model's name ("zoo:fashion"), or a folder with a judges.json of the same form.
        device: Where their weights live.
    Raises:
        ModelError: There are none, or their files are altered.
    """
    family, _, which = name.partition(":")
    if family == "toy":
        from vqcortex.judges.toy import toy_judges

        return tuple(judge.to(device) for judge in toy_judges())
    folder = Path(vqcortex.__file__).parent / "zoo" / which if family == "zoo" else Path(name)
    listed = folder / "judges.json"
    if not listed.is_file():
        raise ModelError(f"no judges lie with {name!r}: {str(listed)!r} does not exist; name a folder with --judges")
    about = json.loads(listed.read_text())
    return tuple(_open(folder, tuple(about["concepts"]), one).to(device) for one in about["judges"])


def _open(folder: Path, concepts: tuple[str, ...], one: dict[str, Any]) -> CalibratedJudge:
    network = ARCHITECTURES[one["architecture"]](one["settings"])
    network.load_state_dict(load_weights(folder / one["file"], one["sha256"]))
    return CalibratedJudge(name=one["name"], concepts=concepts, temperature=one["temperature"], network=network)
