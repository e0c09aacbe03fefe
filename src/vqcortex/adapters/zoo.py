"""The embedded models, shipped inside the package and opened without any download.

A folder's model.json says what it holds: a VQ-VAE of ours with its prior, or ("family": "net2net" or "taming") the
folder of a foreign project, which the adapter of that family opens as it opens anybody's. `zoo:FOLDER` opens any folder
of this form, such as the biased generators that recipes/biased makes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import vqcortex
from vqcortex.adapters import net2net, taming
from vqcortex.adapters.family import Family, Spec, expanded
from vqcortex.adapters.prior import PriorSettings, Sampling, TokenPrior
from vqcortex.adapters.protocol import (
    DECODE,
    ENCODE,
    GENERATE,
    LOGITS,
    Adapter,
    Level,
    one_level,
)
from vqcortex.adapters.steering import FixedBias, Steering, Steerings
from vqcortex.adapters.vqvae import VQVAE, VQVAESettings
from vqcortex.errors import ConfigError, ModelError, UnknownName
from vqcortex.files import hash_of_bytes, hash_of_file
from vqcortex.weights import load_weights

ZOO = Path(vqcortex.__file__).parent / "zoo"


def zoo_names() -> list[str]:
    """Names that `zoo:NAME` accepts."""
    return sorted(path.parent.name for path in ZOO.glob("*/model.json"))


def load_zoo(name: str) -> Adapter:
    """Open the embedded model `name`, or the folder of that path, on the CPU; options may follow: "NAME?top_k=50".

    Raises:
        UnknownName: There is no such model.
        ModelError: Its files are absent or altered.
        ConfigError: An option is wrong, or one that it does not know.
    """
    known, plain = zoo_names(), name.partition("?")[0]
    if plain not in known:
        if (expanded(plain) / "model.json").is_file():
            return open_model(expanded(plain), f"zoo:{name}")
        near = get_close_matches(plain, known, n=1)
        hint = f" Did you mean 'zoo:{near[0]}'?" if near else ""
        raise UnknownName(
            f"no embedded model named 'zoo:{plain}'; known: {', '.join(f'zoo:{one}' for one in known)}.{hint}"
        )
    return open_model(ZOO / plain, f"zoo:{name}")


def open_model(folder: Path, name: str) -> Adapter:
    """Open a folder with a model.json.

    Args:
        folder: Where it lies, whatever its name says.
        name: What the model is called, with options.
    Raises:
        ModelError, ConfigError: As `load_zoo`.
    """
    listed, spec = folder / "model.json", Spec.read(name)
    try:
        about = json.loads(listed.read_text(encoding="utf-8"))
        family = about.get("family", "vqvae")
        if family not in _OPENERS:
            raise ModelError(f"{str(listed)!r} says family={family!r}; known: {', '.join(sorted(_OPENERS))}")
        return _OPENERS[family](folder, about, spec)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise ModelError(
            f"{str(listed)!r} does not describe a model ({type(error).__name__}: {why}); "
            "restore it, or make the model again"
        ) from error


def _open_vqvae(folder: Path, about: Mapping[str, Any], spec: Spec) -> ZooModel:
    """model.safetensors and prior.safetensors."""
    if spec.options:
        raise ConfigError(f"model {spec.text!r} takes no options; leave out what follows the question mark")
    first = VQVAE(VQVAESettings(**about["model"]["settings"]))
    prior = TokenPrior(PriorSettings(**about["prior"]["settings"]))
    for part, module in (("model", first), ("prior", prior)):
        tensors = load_weights(folder / about[part]["file"], about[part]["sha256"])
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise ModelError(f"{about[part]['file']} of {spec.text!r} does not fit its settings: {error}") from error
    return ZooModel(name=spec.text, about=about, first=first.eval(), prior=prior.eval())


def _open_net2net(folder: Path, about: Mapping[str, Any], spec: Spec) -> Adapter:
    """A VQGAN with its transformer, in the layout of taming-transformers."""
    spec.check("temperature", "top_k", "top_p", "guidance")
    sampling = net2net.sampling_of(spec, Sampling(**about["sampling"]))
    return net2net.opened(_spec_of(folder, about, spec), sampling, tuple(about["concepts"]), about.get("empty"))


def _open_taming(folder: Path, about: Mapping[str, Any], spec: Spec) -> Adapter:
    """A VQGAN, or a VQ-VAE of that architecture, in the layout of taming-transformers: it encodes and decodes."""
    spec.check()
    return taming.open_taming(_spec_of(folder, about, spec))


def _spec_of(folder: Path, about: Mapping[str, Any], spec: Spec) -> Spec:
    """The very files that model.json lists, unaltered, as a name of their family."""
    files = {part: folder / about[part]["file"] for part in ("weights", "config")}
    for part, path in files.items():
        _check_file(path, about[part]["sha256"])
    options = {name: spec.options[name] for name in ("size", "dtype") if name in spec.options}
    return replace(
        spec, family=about["family"], place=str(files["weights"]), options={**options, "config": str(files["config"])}
    )


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise ModelError(f"{str(path)!r} does not exist; reinstall vqcortex")
    if (found := hash_of_file(path)) != sha256:
        raise ModelError(
            f"{str(path)!r} has SHA-256 {found[:12]}… where {sha256[:12]}… was recorded; "
            "the file was altered or cut short: reinstall vqcortex, or make the model again"
        )


_OPENERS: Mapping[str, Callable[[Path, Mapping[str, Any], Spec], Adapter]] = {
    "net2net": _open_net2net,
    "taming": _open_taming,
    "vqvae": _open_vqvae,
}


@final
class ZooModel:
    """An embedded VQ-VAE behind the adapter protocol.

    Args:
        name: As given to `load_model`.
        about: model.json: settings, hashes, concepts, sampling.
        first: The VQ-VAE.
        prior: Its class-conditional prior.
    """

    family = "zoo"

    def __init__(self, *, name: str, about: Mapping[str, Any], first: VQVAE, prior: TokenPrior) -> None:
        self.name, self.first, self.prior = name, first, prior
        self.concepts: tuple[str, ...] = tuple(about["concepts"])
        self.sampling = Sampling(**about["sampling"])
        self.size: tuple[int, int] = (first.settings.side, first.settings.side)
        self.grid: tuple[int, int] = (self.size[0] // 4, self.size[1] // 4)
        decides = {key: about[key] for key in ("model", "prior", "concepts", "sampling")}
        self.identity: str = hash_of_bytes(json.dumps(decides, sort_keys=True).encode())
        still_parts: tuple[nn.Module, nn.Module] = (first, prior)
        for part in still_parts:
            part.requires_grad_(False)
        self._exact_prior: TokenPrior | None = None
        self._steerings = Steerings()

    @property
    def module(self) -> nn.Module:
        """Both networks."""
        return nn.ModuleDict({"first": self.first, "prior": self.prior}).eval()

    @property
    def levels(self) -> tuple[Level, ...]:
        return one_level(self.grid, self.k)

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE, GENERATE})

    @property
    def k(self) -> int:
        return len(self.first.codes)

    @property
    def d(self) -> int:
        return self.first.codes.shape[1]

    @property
    def device(self) -> torch.device:
        return self.first.codes.device

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        return self.first.codes

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b h w"]:
        x = pixels.mean(1, keepdim=True) if self.first.settings.channels == 1 else pixels
        if not len(x):
            return torch.zeros(0, *self.grid, dtype=torch.long, device=x.device)
        with torch.no_grad():
            return self.first.tokens_of(x * 2 - 1)

    def embed(self, tokens: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return self.first.embed(tokens)

    def nearest(self, embedded: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        return self.first.distances(embedded).argmin(1)

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        decoded = self.first.decoder(embedded)
        return ((decoded + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)

    def to(self, device: str) -> ZooModel:
        self.first.to(device)
        self.prior.to(device)
        self._exact_prior = None
        return self

    def generate(self, concept: Int[Tensor, " b"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "b h w"]:
        # float64, see TokenPrior.sample: the batch size must not change an image.
        if self._exact_prior is None:
            self._exact_prior = copy.deepcopy(self.prior).double()
        with torch.no_grad():
            push = self._push if self._steerings else None
            flat = self._exact_prior.sample(concept.to(self.device), image_ids, seed, self.sampling, push)
        return flat.unflatten(1, self.grid)

    def _push(self, drawn: Int[Tensor, "b p"]) -> Float[Tensor, "#b k"]:
        place = drawn.shape[1]
        return self._steerings.bias(drawn, torch.arange(place), place)

    def with_steering(self, steering: Steering) -> ZooModel:
        steered = copy.copy(self)
        steered._steerings = self._steerings.plus(steering, self.k, self.grid)
        steered.identity = hash_of_bytes(f"{self.identity} {steering.identity}".encode())
        return steered

    def with_code_bias(self, bias: Float[Tensor, "k h w"]) -> ZooModel:
        return self.with_steering(FixedBias(bias))

    def log_probabilities(self, tokens: Int[Tensor, "b h w"], concept: Int[Tensor, " b"]) -> Float[Tensor, "b k h w"]:
        with torch.no_grad():
            logits = self.prior(concept.to(self.device), tokens.to(self.device).flatten(1))
            if self._steerings:
                flat = tokens.to(self.device).flatten(1)
                logits = logits + self._steerings.along(flat, torch.arange(flat.shape[1])).to(logits)
        return logits.log_softmax(2).transpose(1, 2).unflatten(2, self.grid)


def _open(spec: Spec) -> Adapter:
    return load_zoo(spec.text.partition(":")[2])


FAMILY = Family(
    name="zoo",
    title="Embedded models, shipped with vqcortex",
    formats="",
    abilities=(ENCODE, DECODE, GENERATE, LOGITS),
    open=_open,
)
