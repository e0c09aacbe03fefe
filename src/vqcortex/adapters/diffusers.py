"""diffusers VQModel: the first stages of latent diffusion, VQ-Diffusion, aMUSEd and Kandinsky (movq).

The forward path is the library's own class. Its `encode` gives latents before they are quantized and its `decode`
quantizes again, or takes integer ids, by two flags that contradict each other; so its parts are called here one by one.

Source:
    github.com/huggingface/diffusers, models/autoencoders/vq_model.py; the pixel range of aMUSEd is that of its
    pipelines, whose image processor does not normalise.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.family import Family, Files, Spec, expanded
from vqcortex.adapters.hub import locate, locate_first, pinned
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.official import SIGNED, PixelRange, built, codes_of, official, read_json, read_parts, recorded
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.checkpoints import fill
from vqcortex.errors import ConfigError, ModelError

CLASS = "VQModel"
STEM = "diffusion_pytorch_model"
_WEIGHTS = re.compile(rf"{STEM}(?:\.(?P<variant>[^.]+))?\.(?P<format>safetensors|bin)")
# What a variant's name says about its precision; a name that is not here comes between the full and the half ones.
_HALF = {"fp16": 2, "bf16": 3}
# Attention layers had other names until 2023.
_OLD = re.compile(r"(?P<layer>.*\.attentions\.\d+)\.(?P<part>query|key|value|proj_attn)\.(?P<what>weight|bias)")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Settings that the tensors do not show.
_FACTS = ("act_fn", "norm_num_groups", "norm_type", "down_block_types", "up_block_types")
_UNSAID = 32  # the class's default of `sample_size`, which most models leave as it is whatever their images are
RANGES = {"signed": (SIGNED, SIGNED), "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


@final
class DiffusersNetwork(nn.Module):
    """A VQModel behind the protocol of networks.

    Args:
        model: The library's module, used as it is.
        pixels: "signed" for [-1, 1], "unit" for [0, 1].
    """

    def __init__(self, model: Any, pixels: str) -> None:
        super().__init__()
        self.model = model
        self.codes = codes_of(model.quantize.embedding.weight, TableCodes)
        self.abilities = frozenset({ENCODE, DECODE})
        self.pixels = PixelRange(*RANGES[pixels])
        self._is_spatial = model.config["norm_type"] == "spatial"
        self.register_buffer("settings", recorded({name: model.config[name] for name in _FACTS}))

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.enter(pixels)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Latents before they are quantized."""
        return self.model.quant_conv(self.model.encoder(images))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        # The norms of movq are modulated by the codes themselves, as they are before post_quant_conv.
        return self.model.decoder(self.model.post_quant_conv(embedded), embedded if self._is_spatial else None)

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return self.pixels.leave(decoded)


def open_diffusers(spec: Spec) -> Adapter:
    """Open a folder that `save_pretrained` wrote, or a pipeline's folder, or either on the hub.

    Options beside the common ones: `variant=fp16` for a certain file (otherwise the most precise one there is),
    `pixels=unit` or `pixels=signed` for the range of pixels (otherwise as its pipeline has it).

    Raises:
        ModelError: Files are absent, broken, or of another model.
        MissingExtra: diffusers is not installed.
    """
    spec.check("variant", "pixels")
    # Of a repository only the small files are fetched before it is clear which weights are wanted.
    root = locate(replace(spec, subfolder=""), "model_index.json", "config.json", "*/config.json")
    spec = pinned(spec, root)
    if root.is_file():
        folder, weights = root.parent, root
    else:
        component = spec.subfolder or _component(root)
        folder = root / component
        if not folder.is_dir():
            raise ModelError(f"{spec.place!r} has no folder {component!r}; it holds {_inside(root)}")
        if not expanded(spec.place).exists():
            locate_first(replace(spec, subfolder=component), *_wanted(spec))
        weights = _weights(folder, spec.options.get("variant"))
    config = _config(folder)
    model = _filled(config, folder / "config.json", weights, spec)
    return _adapter(
        spec.text, model, _pixels(spec, config, folder), spec.size(_natural_size(config, folder)), spec.recognised
    )


def _adapter(name: str, model: Any, pixels: str, size: tuple[int, int], recognised: str = "") -> Adapter:
    network = DiffusersNetwork(model, pixels)
    stride = _stride(model.config)
    return NetworkAdapter(
        name=name, family="diffusers", network=network, size=size, stride=stride, recognised=recognised
    )


def _component(root: Path) -> str:
    """The folder of the VQModel inside a pipeline's folder; empty if the folder is the model's own."""
    if (root / "config.json").is_file():
        return ""
    found = _components(root)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(
            f"{str(root)!r} holds no VQModel, neither a config.json nor a part of that class: {_inside(root)}"
        )
    raise ModelError(f"{str(root)!r} holds {len(found)} VQModels; write one of {', '.join('#' + one for one in found)}")


def _components(root: Path) -> list[str]:
    """Folders of VQModels in a pipeline's folder, by its index or, without one, by the usual names."""
    if (root / "model_index.json").is_file():
        parts = read_json(root / "model_index.json")
        return sorted(name for name, part in parts.items() if isinstance(part, list) and part[-1:] == [CLASS])
    usual = [root / name for name in ("movq", "vqvae") if (root / name / "config.json").is_file()]
    return [one.name for one in usual if Files(one).config.get("_class_name") == CLASS]


def _inside(folder: Path) -> str:
    return ", ".join(sorted(one.name for one in folder.iterdir())[:8]) or "nothing"


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config.get("_class_name") != CLASS:
        raise ModelError(
            f"{str(folder / 'config.json')!r} is of class {config.get('_class_name')!r} where {CLASS!r} is needed; "
            "name the folder of the vector-quantized part, say #vqvae or #movq"
        )
    return config


def _wanted(spec: Spec) -> list[tuple[str]]:
    """Patterns of weights, best first."""
    variant = spec.options.get("variant")
    infixes = [f".{variant}"] if variant is not None else ["", ".*"]
    return [(f"{STEM}{infix}.{kind}",) for infix in infixes for kind in ("safetensors", "bin")]


def _weights(folder: Path, variant: str | None) -> Path:
    """The file to read: of the variant asked for, else the most precise; safetensors before pickles."""
    matches = [(match, one) for one in sorted(folder.iterdir()) if (match := _WEIGHTS.fullmatch(one.name))]
    if not matches:
        raise ModelError(f"{str(folder)!r} holds no {STEM}.safetensors or .bin: {_inside(folder)}; fetch the weights")
    fitting = [(match, one) for match, one in matches if variant is None or match["variant"] == variant]
    if not fitting:
        known = ", ".join(sorted({match["variant"] or "the one without a name" for match, _ in matches}))
        raise ModelError(f"{str(folder)!r} has no variant {variant!r}; it has: {known}")

    def rank(found: tuple[re.Match[str], Path]) -> tuple[int, str]:
        infix, kind = found[0]["variant"], found[0]["format"]
        return (0 if infix is None else _HALF.get(infix, 1), "" if kind == "safetensors" else kind)

    return min(fitting, key=rank)[1]


def _filled(config: Mapping[str, Any], path: Path, weights: Path, spec: Spec) -> Any:
    (kind,) = official("diffusers", CLASS)
    known = inspect.signature(kind.__init__).parameters
    model: Any = built(partial(kind, **{name: value for name, value in config.items() if name in known}), path)
    tensors = {_new_name(key): tensor for key, tensor in read_parts({weights: None}, spec.ignore).items()}
    fill(model, tensors, path=weights, dtype=spec.dtype())
    # `force_upcast` asks for float32 arithmetic whatever the weights were rounded to.
    return model.float() if model.config["force_upcast"] else model


def _new_name(key: str) -> str:
    match = _OLD.fullmatch(key)
    return f"{match['layer']}.{_NEW[match['part']]}.{match['what']}" if match else key


def _stride(config: Mapping[str, Any]) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


def _pixels(spec: Spec, config: Mapping[str, Any], folder: Path) -> str:
    """The range of its pixels.

    The model's own config says nothing of it. aMUSEd and what was made of it are the ones with [0, 1]; they are known
    by their pipeline, or by having no attention in the middle.
    """
    asked = spec.options.get("pixels")
    if asked is not None and asked not in RANGES:
        raise ConfigError(f"pixels={asked!r} of model {spec.text!r} is unknown; known: {', '.join(RANGES)}")
    pipeline = str(_pipeline(folder).get("_class_name", ""))
    return asked or _usual_pixels(config, pipeline)


def _usual_pixels(config: Mapping[str, Any], pipeline: str) -> str:
    return "unit" if pipeline.startswith("Amused") or not config.get("mid_block_add_attention", True) else "signed"


def _pipeline(folder: Path) -> dict[str, Any]:
    """The index of the pipeline that a model's folder belongs to; empty if there is none."""
    path = folder.parent / "model_index.json"
    return read_json(path) if path.is_file() else {}


def _natural_size(config: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    """Height and width of its pipeline's images; else what the config says; else 256."""
    stride = _stride(config)
    latents = [
        read_json(path).get("sample_size")
        for name in ("unet", "transformer")
        if _pipeline(folder) and (path := folder.parent / name / "config.json").is_file()
    ]
    return _square(config, next((one * stride for one in latents if isinstance(one, int)), None))


def _square(config: Mapping[str, Any], side: int | None = None) -> tuple[int, int]:
    said = config.get("sample_size", _UNSAID)
    side = side or (said if isinstance(said, int) and said != _UNSAID else 256)
    stride = _stride(config)
    side = max(stride, side // stride * stride)
    return side, side


def recognise(files: Files) -> str | None:
    """Known by the class that the config names."""
    folder = files.path if files.path.is_dir() else files.path.parent
    if files.path.is_file():
        is_ours = _WEIGHTS.fullmatch(files.path.name) and Files(folder).config.get("_class_name") == CLASS
        return "weights beside a config.json of class VQModel: diffusers" if is_ours else None
    if files.config:
        is_ours = files.config.get("_class_name") == CLASS
        return "a config.json of class VQModel: diffusers" if is_ours else None
    found = _components(folder)
    return f"a folder of pipeline parts of which {found[0]!r} is a VQModel: diffusers" if len(found) == 1 else None


def wrap(model: Any) -> Adapter | None:
    """A live VQModel, or the one inside a live pipeline; used as it is, in the precision it has, and held still."""
    if not any(kind.__module__.startswith("diffusers.") for kind in type(model).__mro__):
        return None
    pipeline = ""
    for name in ("vqvae", "movq"):
        part = getattr(model, name, None)
        if _is_vq_model(part):
            model, pipeline = part, type(model).__name__
    if not _is_vq_model(model):
        return None
    pixels = _usual_pixels(model.config, pipeline)
    return _adapter(f"live:{pipeline or CLASS}", model, pixels, _square(model.config))


def _is_vq_model(model: Any) -> bool:
    kinds = type(model).__mro__
    return any(kind.__qualname__ == CLASS and kind.__module__.startswith("diffusers.") for kind in kinds)


FAMILY = Family(
    name="diffusers",
    title="diffusers VQModel (latent diffusion, VQ-Diffusion, aMUSEd, Kandinsky movq)",
    formats="a folder with config.json and diffusion_pytorch_model.*, or a pipeline's folder, or owner/name#FOLDER",
    abilities=(ENCODE, DECODE),
    open=open_diffusers,
    recognise=recognise,
    wrap=wrap,
)
