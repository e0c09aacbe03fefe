"""The vector-quantized models of transformers: Chameleon, Emu3 and Janus, alone or inside their language model.

The forward path is the library's own class. Of a whole language model only the tensors of its image tokenizer are read,
and of a hub repository only the files that hold them are fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vqcortex.adapters import hf_chameleon, hf_emu3, hf_janus
from vqcortex.adapters.family import Family, Files, Spec, expanded
from vqcortex.adapters.hub import locate, locate_first, pinned
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.official import HfKind, PixelRange, built, official, read_index, read_json, read_parts
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.checkpoints import fill, under, without
from vqcortex.errors import ModelError

KINDS = (hf_chameleon.KIND, hf_emu3.KIND, hf_janus.KIND)
_CODES = "quantize.embedding.weight"  # the one tensor that all of them have
_FILES = ("model.safetensors", "pytorch_model.bin")  # best first
_INDICES = tuple(f"{one}.index.json" for one in _FILES)
_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")


def open_transformers(spec: Spec) -> Adapter:
    """Open a folder that `save_pretrained` wrote, of the image tokenizer or of the whole model, or either on the hub.

    Raises:
        ModelError: Files are absent, broken, or of another model.
        MissingExtra: transformers is not installed, or too old.
    """
    spec.check()
    root = locate(spec, *_SETTINGS, *_INDICES)
    spec = pinned(spec, root)
    folder = root.parent if root.is_file() else root
    settings = read_json(folder / "config.json")
    kind = _kind(settings, folder / "config.json")
    (make,) = official("transformers", kind.model)
    config = _part_config(kind, settings, folder / "config.json")
    model: Any = built(partial(make, config), folder / "config.json")
    path, tensors = _tensors(spec, folder, root if root.is_file() else None)
    fill(model, without(tensors, *kind.left_out), path=path, dtype=spec.dtype())
    pixels = _range(folder) if kind.reads_range else None
    return _adapter(spec.text, kind, model, pixels or kind.pixels(), spec)


def _adapter(name: str, kind: HfKind, model: Any, pixels: PixelRange, spec: Spec | None = None) -> Adapter:
    side = kind.side(model.config)
    return NetworkAdapter(
        name=name,
        family="transformers",
        network=kind.network(model, pixels),
        size=spec.size((side, side)) if spec else (side, side),
        stride=2 ** (len(model.config.channel_multiplier) - 1),
        recognised=spec.recognised if spec else "",
    )


def _kind(settings: Mapping[str, Any], path: Path) -> HfKind:
    found = settings.get("model_type")
    for kind in KINDS:
        if found in (kind.whole, kind.part):
            return kind
    known = ", ".join(f"{kind.whole!r} or {kind.part!r}" for kind in KINDS)
    raise ModelError(
        f"{str(path)!r} has model_type {found!r}; known are {known}: name a copy in the layout of transformers, "
        "as Emu3-community/Emu3-Gen-hf is, not one that brings code of its own"
    )


def _part_config(kind: HfKind, settings: Mapping[str, Any], path: Path) -> Any:
    """The config of the vector-quantized part, checked by the library's own class."""
    is_whole = settings["model_type"] == kind.whole
    (make,) = official("transformers", kind.whole_config if is_whole else kind.config)
    try:
        config = make.from_dict(dict(settings))
        return config.vq_config if is_whole else config
    except Exception as error:  # the library checks values in several ways, each with its own exception
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{str(path)!r} is no config of {kind.name} ({reason}); restore it from where the model came from"
        ) from error


def _tensors(spec: Spec, folder: Path, file: Path | None) -> tuple[Path, dict[str, Tensor]]:
    """The tensors of the vector-quantized part by their names in its class, and the file that lists them."""
    is_remote = not expanded(spec.place).exists()
    index = next((folder / one for one in _INDICES if (folder / one).is_file()), None)
    if file is None and index is not None and not any((folder / one).is_file() for one in _FILES):
        places = read_index(index)
        prefix = _prefix(list(places), index)
        parts: dict[Path, list[str]] = {}
        for key, name in places.items():
            if key.startswith(prefix):
                parts.setdefault(folder / name, []).append(key)
        if is_remote:
            locate(spec, *(part.name for part in parts))
        return index, under(read_parts(parts, spec.ignore), prefix)
    if file is None and is_remote:
        locate_first(spec, *((one,) for one in _FILES))
    path = file or next((folder / one for one in _FILES if (folder / one).is_file()), None)
    if path is None:
        inside = ", ".join(sorted(one.name for one in folder.iterdir())[:8])
        raise ModelError(f"{str(folder)!r} holds none of {', '.join(_FILES)} but {inside}; fetch the weights")
    tensors = read_parts({path: None}, spec.ignore)
    return path, under(tensors, _prefix(list(tensors), path))


def _prefix(keys: Sequence[str], path: Path) -> str:
    """What stands before the names of the vector-quantized part: nothing, or "model.vqmodel." and the like."""
    found = [key.removesuffix(_CODES) for key in keys if key == _CODES or key.endswith(f".{_CODES}")]
    if len(found) == 1:
        return found[0]
    raise ModelError(
        f"{str(path)!r} has {len(found)} keys {_CODES!r} where the image tokenizer has one; "
        "it is of another model, or its image tokenizer was left out"
    )


def _range(folder: Path) -> PixelRange | None:
    """The range of pixels that the repository's image preprocessor makes; None if it has none."""
    for name in _SETTINGS[1:]:
        path = folder / name
        found = read_json(path) if path.is_file() else {}
        found = found.get("image_processor", found)
        if not isinstance(found, dict) or "image_mean" not in found:
            continue
        if not found.get("do_normalize", True):
            return PixelRange((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 255 * _number(found, "rescale_factor", 1 / 255, path))
        scale = 255 * _number(found, "rescale_factor", 1 / 255, path)
        return PixelRange(_three(found, "image_mean", path), _three(found, "image_std", path), scale)
    return None


def _number(settings: Mapping[str, Any], name: str, default: float, path: Path) -> float:
    value = settings.get(name, default)
    if not isinstance(value, (int, float)):
        raise ModelError(f"{str(path)!r} has {name} {value!r} where a number is needed; restore it")
    return float(value)


def _three(settings: Mapping[str, Any], name: str, path: Path) -> list[float]:
    value = settings.get(name)
    if not isinstance(value, list) or not all(isinstance(one, (int, float)) for one in value):
        raise ModelError(f"{str(path)!r} has {name} {value!r} where a list of three numbers is needed; restore it")
    return [float(one) for one in value]


def recognise(files: Files) -> str | None:
    """Known by the `model_type` of the config."""
    is_weights = files.path.is_file() and files.path.name in _FILES
    folder = files if files.path.is_dir() else Files(files.path.parent) if is_weights else None
    found = folder.config.get("model_type") if folder else None
    for kind in KINDS:
        if found in (kind.whole, kind.part):
            return f"a config.json of model_type {found!r}: {kind.name} of transformers"
    return None


def wrap(model: Any) -> Adapter | None:
    """A live image tokenizer, or the one inside a live language model; used as it is, in the precision it has."""
    if not isinstance(model, nn.Module) or not _is_of_transformers(model):
        return None
    for part in model.modules():
        kind = next((one for one in KINDS if _is_of_transformers(part, one.model)), None)
        if kind is not None:
            return _adapter(f"live:{type(model).__qualname__}", kind, part, kind.pixels())
    return None


def _is_of_transformers(model: Any, name: str | None = None) -> bool:
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.models.")]
    return any(name in (None, kind.__qualname__) for kind in kinds)


FAMILY = Family(
    name="transformers",
    title="transformers image tokenizers (Chameleon, Emu3, Janus)",
    formats="a folder with config.json and model.safetensors, of the tokenizer or of the whole model, or owner/name",
    abilities=(ENCODE, DECODE),
    open=open_transformers,
    recognise=recognise,
    wrap=wrap,
)
