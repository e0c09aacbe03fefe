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
from vqcortex.judges.quality import WEAK, Quality
from vqcortex.registry import Registry
from vqcortex.weights import load_weights

ZOO = Path(vqcortex.__file__).parent / "zoo"

ARCHITECTURES: Registry[Any] = Registry("judge architecture")
ARCHITECTURES.add("cct", "vqcortex.judges.cct:build")
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
        quality: What it was measured to do on test images; None: its files do not say, the model's card may. A judge
            that is hardly better than chance carries that in its name, and so into everything that its figures enter.
    """

    def __init__(
        self,
        *,
        name: str,
        concepts: tuple[str, ...],
        temperature: float,
        network: nn.Module,
        quality: Quality | None = None,
    ) -> None:
        self.name = name + WEAK if quality is not None and quality.is_weak else name
        self.concepts, self.temperature, self.quality = concepts, temperature, quality
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Calibrated log-probabilities of images in [0, 1]."""
        return (self.network(pixels) / self.temperature).log_softmax(1)

    def to(self, device: str) -> CalibratedJudge:
        """Move to a device and return self."""
        self.network.to(device)
        return self


def has_judges(name: str) -> bool:
    """Whether `load_judges` finds any under this name."""
    return name.partition(":")[0] == "toy" or listing(name).is_file()


def load_judges(name: str, device: str = "cpu") -> tuple[CalibratedJudge, ...]:
    """Open the judges that lie with a model.

    Args:
        name: A model's name ("zoo:fashion"), or a folder with a judges.json of the same form.
        device: Where their weights live.
    Raises:
        ModelError: There are none, or their files are altered.
    """
    if name.partition(":")[0] == "toy":
        from vqcortex.judges.toy import toy_judges

        return tuple(judge.to(device) for judge in toy_judges())
    listed = listing(name)
    if not listed.is_file():
        raise ModelError(f"no judges lie with {name!r}: {str(listed)!r} does not exist; name a folder with --judges")
    try:
        about = json.loads(listed.read_text())
        return tuple(_open(listed, tuple(about["concepts"]), one).to(device) for one in about["judges"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ModelError(
            f"{str(listed)!r} does not describe judges whose weights lie beside it ({type(error).__name__}: {why}); "
            "restore both, or train judges again"
        ) from error


def listing(name: str) -> Path:
    """Where the judges.json of a model or a folder lies, or would lie.

    An embedded model can have the judges of another: its model.json says which ("judges": "cifar10").
    """
    family, _, which = name.partition(":")
    if family != "zoo":
        return Path(name) / "judges.json"
    which = which.partition("?")[0]
    about = ZOO / which / "model.json"
    try:
        return ZOO / json.loads(about.read_text(encoding="utf-8")).get("judges", which) / "judges.json"
    except FileNotFoundError:
        return ZOO / which / "judges.json"
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{str(about)!r} does not describe a model ({error}); restore it") from error


def _open(listed: Path, concepts: tuple[str, ...], one: dict[str, Any]) -> CalibratedJudge:
    network = ARCHITECTURES[one["architecture"]](one["settings"])
    network.load_state_dict(load_weights(listed.parent / one["file"], one["sha256"]))
    quality = Quality.read(one["measured"], str(listed)) if "measured" in one else None
    return CalibratedJudge(
        name=one["name"], concepts=concepts, temperature=one["temperature"], network=network, quality=quality
    )
