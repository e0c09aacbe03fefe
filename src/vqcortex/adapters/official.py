"""What the families share whose forward path is an official library's own class: diffusers and transformers.

The library brings the class; reading its config and weights is ours, so that no file of a model is ever executed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import TableCodes, UnitCodes
from vqcortex.adapters.network import Network
from vqcortex.checkpoints import read_checkpoint, state_dict_of
from vqcortex.errors import MissingExtra, ModelError

AnyCodes = TypeVar("AnyCodes", TableCodes, UnitCodes)

SIGNED = (0.5, 0.5, 0.5)  # mean and spread of the range [-1, 1]


def official(package: str, *names: str) -> tuple[Any, ...]:
    """Objects of an optional library, imported only now.

    Args:
        package: Its name, which is also that of the extra.
        names: What it exports.
    Raises:
        MissingExtra: It is not installed, cannot be imported, or is too old to have one of them.
    """
    try:
        library = import_module(package)
        return tuple(getattr(library, name) for name in names)
    except (
        ImportError,
        AttributeError,
        RuntimeError,
    ) as error:  # its lazy import makes RuntimeErrors of failures inside
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            reason, step = f"this model needs {package}", "install it"
        else:
            version = getattr(sys.modules.get(package), "__version__", "as installed")
            reason = f"{package} {version} cannot give {', '.join(names)} ({str(error).splitlines()[0]})"
            step = "bring it up to date"
        raise MissingExtra(f"{reason}; {step} with: pip install --upgrade 'vqcortex[{package}]'") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ModelError: There is no such file, or it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{str(path.parent)!r} has no {path.name}; name the model's own folder, on the hub as owner/name#FOLDER"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} is not JSON ({error}); restore it from where the model came from") from error
    if not isinstance(value, dict):
        raise ModelError(f"{str(path)!r} holds a {type(value).__name__} where an object of settings is needed")
    return value


def built(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """A module without numbers, ready for `fill`.

    Args:
        make: Builds it from its config.
        path: The config, for messages.
    Raises:
        ModelError: The config does not describe such a module.
    """
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # whatever a wrong setting runs into inside the library
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"{str(path)!r} describes no model that can be built ({reason}); restore it from where the model came from"
        ) from error


def read_index(path: Path) -> dict[str, str]:
    """In which file each tensor of a model in several parts is: tensor name to file name.

    Raises:
        ModelError: The index is not of the form that both libraries write, or names a file outside its own folder.
    """
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict):
        raise ModelError(f"{str(path)!r} has no weight_map; restore it from where the model came from")
    for file in places.values():
        if not isinstance(file, str) or Path(file).name != file or file == "..":
            raise ModelError(f"{str(path)!r} names the file {file!r}, which is not beside it; do not use this model")
    return places


def read_parts(files: Mapping[Path, Sequence[str] | None], ignore: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of several files together, memory-mapped: what is not asked for is not read from the disk.

    Args:
        files: Names of the tensors wanted of each; None: all.
        ignore: As in `read_checkpoint`.
    Raises:
        ModelError: A file is absent or broken, or lacks a tensor.
    """
    found: dict[str, Tensor] = {}
    for path, wanted in files.items():
        tensors = state_dict_of(read_checkpoint(path, ignore=ignore), path)
        absent = [key for key in wanted or () if key not in tensors]
        if absent:
            raise ModelError(f"{str(path)!r} lacks {absent[0]!r}, which the index beside it promises; restore both")
        found.update({key: tensors[key] for key in (tensors if wanted is None else wanted)})
    return found


def codes_of(weight: Tensor, kind: type[AnyCodes]) -> AnyCodes:
    """A codebook that is the module's own table, not a copy."""
    with torch.device("meta"):
        codes = kind(*weight.shape)
    codes.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    return codes


def recorded(settings: Mapping[str, Any]) -> Tensor:
    """Settings that decide numbers and leave no trace in the weights, as bytes.

    As a buffer of a network they become part of its identity.
    """
    return torch.tensor(list(json.dumps(settings, sort_keys=True).encode()), dtype=torch.uint8)


@final
class PixelRange(nn.Module):
    """From [0, 1] to what a network is fed, and back: (scale · x - mean) / spread per channel.

    Args:
        mean: Per channel, on the scaled image.
        spread: Per channel, above 0.
        scale: Factor before the mean is taken off.
    Raises:
        ModelError: There are not three numbers of each, or one is not finite, or a spread or the scale is not above 0.
    """

    def __init__(self, mean: Sequence[float], spread: Sequence[float], scale: float = 1.0) -> None:
        super().__init__()
        numbers = torch.tensor([*mean, *spread, scale], dtype=torch.float32)
        if len(mean) != 3 or len(spread) != 3 or not numbers.isfinite().all() or not (numbers[3:] > 0).all():
            raise ModelError(
                f"mean {[*mean]}, spread {[*spread]} and scale {scale} of the pixels are wrong; wanted are three "
                "numbers each, and spread and scale above 0"
            )
        # Buffers, so that two models that differ in nothing else have two identities.
        self.register_buffer("range", torch.tensor([[*mean], [*spread], [scale] * 3]))

    def enter(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [0, 1] to the network's range."""
        mean, spread, scale = self._columns()
        return (pixels * scale - mean) / spread

    def leave(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """The network's range to [0, 1], clamped."""
        mean, spread, scale = self._columns()
        return ((decoded * spread + mean) / scale).clamp(0, 1)

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread, scale = self.get_buffer("range")[:, :, None, None]
        return mean, spread, scale


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HfKind:
    """What sets one vector-quantized model of transformers apart from the others.

    Args:
        name: Of the project.
        whole: `model_type` of the language model that it is a part of.
        part: `model_type` of the vector-quantized part alone.
        model: Its class.
        config: The class of its config.
        whole_config: The class of the language model's config, whose `vq_config` is the part's.
        network: Makes a network of the module.
        pixels: Its range of pixels where the files do not say.
        reads_range: Whether the repository's image preprocessor is the one of this part.
        side: Height and width of its usual images in pixels, from its config.
        left_out: Beginnings of tensor names that checkpoints hold and the class has no place for.
    """

    name: str
    whole: str
    part: str
    model: str
    config: str
    whole_config: str
    network: Callable[[Any, PixelRange], Network]
    pixels: Callable[[], PixelRange]
    reads_range: bool
    side: Callable[[Any], int]
    left_out: tuple[str, ...] = ()
