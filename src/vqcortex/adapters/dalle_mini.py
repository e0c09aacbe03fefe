"""DALL-E mini as a generator: from prompts to tokens, with the networks and the tokenizer of the min-dalle package.

The concepts are those of a table of prompts; a concept with several prompts draws one of them for each image. Images
are drawn one at a time, each from random numbers of its own, so a batch changes none of them.

`min_dalle.MinDalle` itself is left alone: making one asks the network for files that are on disk, and it keeps the
tokens to itself. The package's import switches gradients off for the whole process; here that is undone at once.

Source:
    github.com/kuprel/min-dalle 0.4.11 (min_dalle/min_dalle.py); Dayma et al. 2021, DALL-E mini,
    doi:10.5281/zenodo.5146400. Where we differ: the random numbers; and a prompt without a single known letter is
    refused, where the package draws as if nothing had been asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.adapters.family import Spec, expanded
from vqcortex.adapters.first_stage import OverFirstStage
from vqcortex.adapters.net2net import real_option, whole_option
from vqcortex.adapters.network import NetworkAdapter, exact_kernels, identity_of
from vqcortex.adapters.prior import Sampling, draw
from vqcortex.adapters.protocol import GENERATE
from vqcortex.adapters.taming import numbers_under
from vqcortex.checkpoints import fill, read_checkpoint, shape_of, state_dict_of
from vqcortex.errors import ConfigError, DataError, MissingExtra, ModelError
from vqcortex.files import hash_of_bytes
from vqcortex.prompts import PromptTable, prompts_by_concept
from vqcortex.seeds import generator_for, number_for

OPTIONS = ("prompts", "model", "heads", "temperature", "top_k", "guidance")
PARTS = ("encoder.pt", "decoder.pt", "vocab.json", "merges.txt")
# Where the files of each size lie: as the package keeps them, and as kuprel/min-dalle on the hub does.
PLACES = {
    size: (
        tuple(f"dalle_bart_{size}/{part}" for part in PARTS),
        tuple(part.replace(".", f"{suffix}.") for part in PARTS),
    )
    for size, suffix in {"mini": "_mini", "mega": ""}.items()
}
HEAD = 64  # channels of an attention head, in both sizes
PADDING = 1  # the text token that stands where a prompt has ended


@final
@dataclass(frozen=True, slots=True)
class _Package:
    """What is used of min-dalle."""

    encoder: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module]
    tokenizer: Callable[[dict[str, int], list[str]], Any]


@final
class DalleMiniModel(OverFirstStage):
    """min-dalle's decoder of images with the transformer that draws their tokens.

    Args:
        name: What `load_model` opens it with.
        first: The decoder of images.
        networks: "encoder" of prompts and "decoder" of image tokens, of the package.
        prompts: The prompts of each concept, at least one.
        words: From a prompt to text tokens, first and last the marks of beginning and end.
        sampling: How tokens are drawn.
        guidance: How far logits go from those of no prompt (0) towards those of the prompt (1) and beyond.
        facts: What else decides a token, as a text.
    Raises:
        ModelError: The parts do not fit.
        DataError: A prompt has no letter that the tokenizer knows.
    """

    family = "min-dalle"

    def __init__(
        self,
        *,
        name: str,
        first: NetworkAdapter,
        networks: nn.ModuleDict,
        prompts: Mapping[str, tuple[str, ...]],
        words: Callable[[str], list[int]],
        sampling: Sampling,
        guidance: float,
        facts: str,
    ) -> None:
        super().__init__(first)
        self.name, self.networks = name, networks
        self.sampling, self.guidance = sampling, guidance
        self.concepts: tuple[str, ...] = tuple(prompts)
        self._prompts = tuple(prompts.values())
        self._rows, self._facts = _text_rows(self._prompts, words, networks, name), facts
        self._identity: str | None = None
        self._check_fit()

    def _check_fit(self) -> None:
        (h, w), weights = self.grid, self.networks.state_dict()
        positions, vocabulary = len(weights["decoder.embed_positions.weight"]), len(weights["decoder.lm_head.weight"])
        if h * w != positions:
            raise ModelError(
                f"images of {self.size} have {h}x{w} tokens but the transformer of {self.name!r} draws {positions}; "
                f"open it with ?size={round(positions**0.5) * (self.first.stride or 1)}"
            )
        if vocabulary < self.k:
            raise ModelError(
                f"the transformer of {self.name!r} knows {vocabulary} tokens but the codebook has {self.k} codes; "
                "the folder mixes two models"
            )

    @property
    def identity(self) -> str:
        if self._identity is None:
            facts = f"{self.sampling} {self.guidance} {self.concepts} {self._prompts} {self._facts}"
            self._identity = hash_of_bytes(f"{self.first.identity} {identity_of(self.networks, facts)}".encode())
        return self._identity

    @property
    def abilities(self) -> frozenset[str]:
        return self.first.abilities | {GENERATE}

    @property
    def module(self) -> nn.Module:
        """All networks."""
        return nn.ModuleDict({"first": self.first.module, "networks": self.networks}).eval()

    def to(self, device: str) -> DalleMiniModel:
        self.first.to(device)
        self.networks.to(device)
        for part in self.networks.modules():
            for name, held in vars(part).items():
                if isinstance(held, Tensor):  # the package keeps some where `to` does not look
                    setattr(part, name, held.to(device))
        return self

    def prompt_of(self, concept: int, image_id: str, seed: int) -> str:
        """The prompt that an image of a concept is drawn from: a function of (concept, image id, seed)."""
        return self._prompts[concept][self._which(concept, image_id, seed)]

    def _which(self, concept: int, image_id: str, seed: int) -> int:
        return number_for(seed, image_id, "prompt") % len(self._prompts[concept])

    def generate(self, concept: Int[Tensor, " b"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "b h w"]:
        """One grid per image id, a function of (concept, image id, seed) alone.

        Raises:
            ConfigError: A concept that there is not, or not one per image.
        """
        numbers = concept.tolist()
        if len(numbers) != len(image_ids):
            raise ConfigError(f"{len(numbers)} concept(s) for {len(image_ids)} image id(s); give one for each")
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self.concepts):
            raise ConfigError(
                f"concepts span [{min(numbers)}, {max(numbers)}] but {self.name!r} has [0, {len(self.concepts) - 1}]"
            )
        h, w = self.grid
        drawn = torch.zeros(len(numbers), h * w, dtype=torch.long, device=self.device)
        with torch.no_grad(), exact_kernels():
            for row, (number, image_id) in enumerate(zip(numbers, image_ids, strict=True)):
                uniform = torch.rand(h * w, generator=generator_for(seed, image_id, "prior"), dtype=torch.float64)
                text = self._rows[number][self._which(number, image_id, seed)]
                drawn[row] = self._drawn(text.to(self.device), uniform.to(self.device))
        return drawn.unflatten(1, (h, w))

    def _drawn(self, text: Int[Tensor, "2 t"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Tokens of one image. Row 0 of the text is no prompt, row 1 the prompt."""
        decoder, n = self.networks["decoder"], len(uniform)
        encoded = self.networks["encoder"](text)
        layers, width = len(decoder.layers), encoded.shape[-1]  # type: ignore[arg-type]
        # Keys and values of both rows.
        seen = torch.zeros(layers, 4, n, width, dtype=encoded.dtype, device=encoded.device)
        token, found = text.new_tensor([self.k - 1]), []  # the package begins with the last code
        for position in range(n):
            logits, seen = decoder(
                attention_mask=text.not_equal(PADDING)[:, None, None, :],
                encoder_state=encoded,
                attention_state=seen,
                prev_tokens=token[:, None],
                token_index=text.new_tensor([position]),
            )
            plain, asked = logits[:, -1, : self.k].double()
            guided = plain * (1 - self.guidance) + asked * self.guidance
            token = draw(guided[None], uniform[position : position + 1], self.sampling)
            found.append(token)
        return torch.cat(found)


def drawing(first: NetworkAdapter, spec: Spec, folder: Path) -> DalleMiniModel:
    """The decoder of images `first` with the transformer that lies in the same folder.

    Raises:
        MissingExtra: The min-dalle package is not installed.
        ModelError: Files are absent, altered, or of different models.
        ConfigError: An option is wrong.
        DataError: The table of prompts cannot be read.
    """
    table = PromptTable(expanded(spec.options["prompts"]).absolute())
    prompts, files, package = prompts_by_concept(table), _files(spec, folder), _package()
    heads, top_k = whole_option(spec, "heads"), whole_option(spec, "top_k")
    temperature, guidance = real_option(spec, "temperature"), real_option(spec, "guidance")
    networks = nn.ModuleDict(
        {
            "encoder": _network(package.encoder, files["encoder.pt"], heads, spec, is_encoder=True),
            "decoder": _network(package.decoder, files["decoder.pt"], heads, spec, is_encoder=False),
        }
    )
    vocabulary, merges = _vocabulary(files["vocab.json"]), _merges(files["merges.txt"])
    tokenizer = package.tokenizer(vocabulary, merges)
    options = {**spec.options, "prompts": str(table.path)}
    named = Spec(text="", family="", place=spec.place, subfolder=spec.subfolder, options=options)
    return DalleMiniModel(
        name=named.settled("min-dalle").text,
        first=first,
        networks=networks,
        prompts=prompts,
        words=lambda prompt: list(tokenizer.tokenize(prompt)),
        sampling=Sampling(temperature=temperature or 1.0, top_k=top_k or 256),
        guidance=16.0 if guidance is None else guidance,
        facts=f"{heads} {hash_of_bytes(json.dumps([vocabulary, merges]).encode())}",
    )


@contextmanager
def _unchanged() -> Iterator[None]:
    """Whatever an import switches for the whole process is switched back."""
    cudnn = torch.backends.cudnn
    before = torch.is_grad_enabled(), torch.get_num_threads(), cudnn.enabled, cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_grad_enabled(before[0])
        torch.set_num_threads(before[1])
        cudnn.enabled, cudnn.allow_tf32 = before[2:]


def _package() -> _Package:
    try:
        with _unchanged():
            models, text = import_module("min_dalle.models"), import_module("min_dalle.text_tokenizer")
    except ImportError as error:
        raise MissingExtra(
            f"drawing from prompts needs the min-dalle package ({error}); "
            "install it with: pip install 'vqcortex[min-dalle]'"
        ) from error
    return _Package(models.DalleBartEncoder, models.DalleBartDecoder, text.TextTokenizer)


def _files(spec: Spec, folder: Path) -> dict[str, Path]:
    """The transformer's files by their plain names."""
    asked = spec.options.get("model")
    if asked is not None and asked not in PLACES:
        raise ConfigError(f"model={asked!r} of {spec.text!r} is unknown; write one of {', '.join(PLACES)}")
    layouts = {size: places for size, places in PLACES.items() if asked in (None, size)}
    found = {
        size: dict(zip(PARTS, (folder / one for one in names), strict=True))
        for size, places in layouts.items()
        for names in reversed(places)
        if all((folder / one).is_file() for one in names)
    }
    if not found:
        wanted = " or ".join(f"dalle_bart_{size}" for size in layouts)
        raise ModelError(
            f"{str(folder)!r} has no transformer to draw with: {', '.join(PARTS)} in its folder {wanted}; fetch "
            "kuprel/min-dalle from the hub and name that folder, or leave out ?prompts= to decode only"
        )
    if len(found) > 1:
        raise ConfigError(f"{str(folder)!r} holds {' and '.join(found)}; write ?model={next(iter(found))}, say")
    return next(iter(found.values()))


def _network(
    kind: Callable[..., nn.Module], path: Path, heads: int | None, spec: Spec, *, is_encoder: bool
) -> nn.Module:
    """One of the package's networks with the weights of a file, its sizes read off their shapes."""
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    rows, width = _shape(tensors, "embed_tokens.weight", path)
    heads = heads or max(1, width // HEAD)
    if width % heads:
        raise ModelError(f"{heads} attention heads do not divide the width {width} of {str(path)!r}; correct ?heads=")
    sizes: dict[str, Any] = {
        "layer_count": numbers_under(tensors, "layers."),
        "embed_count": width,
        "attention_head_count": heads,
        "glu_embed_count": _shape(tensors, "layers.0.glu.fc0.weight", path)[0],
        "device": "cpu",
    }
    if is_encoder:
        positions = _shape(tensors, "embed_positions.weight", path)[0]
        sizes |= {"text_vocab_count": rows, "text_token_count": positions}
    else:
        sizes["image_vocab_count"] = rows - 1
    with torch.device("meta"):
        network = kind(**sizes)
    fill(network, _completed(network, tensors), path=path, dtype=spec.dtype())
    return network


def _completed(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a network has a place for; norms released without a scale or a shift have none."""
    found = {}
    for name, part in network.named_modules():
        for own, place in part.named_parameters(recurse=False):
            key = f"{name}.{own}" if name else own
            if key in tensors:
                found[key] = tensors[key]
            elif isinstance(part, nn.LayerNorm):
                found[key] = torch.full(place.shape, 1.0 if own == "weight" else 0.0)
    return found


def _shape(tensors: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, int]:
    shape = shape_of(tensors, key, path)
    if len(shape) != 2 or 0 in shape:
        raise ModelError(f"{str(path)!r}: {key!r} has shape {shape} where 2 axes were expected")
    return shape[0], shape[1]


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} cannot be read ({error}); fetch it again") from error
    marks = ("<s>", "</s>", "<unk>")
    if (
        not isinstance(value, dict)
        or not all(type(one) is int and one >= 0 for one in value.values())
        or not all(mark in value for mark in marks)
    ):
        raise ModelError(f"{str(path)!r} is no vocabulary of numbered words with {', '.join(marks)}; fetch it again")
    return value


def _merges(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[1:-1]  # the first says which version
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} cannot be read ({error}); fetch it again") from error
    if wrong := next((number for number, line in enumerate(lines, start=2) if len(line.split()) != 2), None):
        raise ModelError(f"line {wrong} of {str(path)!r} is not two pieces of a word; fetch it again")
    return lines


def _text_rows(
    prompts: Sequence[Sequence[str]], words: Callable[[str], list[int]], networks: nn.ModuleDict, name: str
) -> list[list[Int[Tensor, "2 t"]]]:
    """Text tokens of every prompt below those of no prompt; what is too long is cut off, as the package does."""
    weights = networks["encoder"].state_dict()
    length, vocabulary = len(weights["embed_positions.weight"]), len(weights["embed_tokens.weight"])

    def rows(prompt: str) -> Tensor:
        tokens = words(prompt)
        if len(tokens) < 3:
            raise DataError(f"prompt {prompt!r} has no letter that {name!r} knows; write it in plain English letters")
        if max(tokens) >= vocabulary:
            raise ModelError(
                f"prompt {prompt!r} has text token {max(tokens)} but {name!r} knows {vocabulary}; "
                "vocab.json is another model's"
            )
        text = torch.full((2, length), PADDING, dtype=torch.long)
        text[0, :2] = torch.tensor([tokens[0], tokens[-1]])
        cut = tokens[:length]
        text[1, : len(cut)] = torch.tensor(cut)
        return text

    return [[rows(prompt) for prompt in some] for some in prompts]
