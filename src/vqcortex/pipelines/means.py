"""What edits ask of a study: who chooses the tokens, who judges afterwards, and what is known of its concepts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from vqcortex.adapters.protocol import Adapter
from vqcortex.editing.footprint import Footprint, Place, measure_footprint
from vqcortex.editing.protocol import Means, Task
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError
from vqcortex.extractors.checkpoint import TrainedExtractor
from vqcortex.judges import CalibratedJudge
from vqcortex.pipelines.concepts import concept_lists
from vqcortex.pipelines.levels import finest_codes
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, code_counts, first_images
from vqcortex.pipelines.search import is_likely
from vqcortex.pipelines.study import Study
from vqcortex.search.greedy import Greedy
from vqcortex.search.objective import Together
from vqcortex.tokens.store import TokenStore

JUDGE = "judge:"  # before the name of a judge that helps to choose
FOOTPRINT_IMAGES = 16  # images in which the decoder's footprint is measured


@final
class Calibrated(nn.Module):
    """An extractor's calibrated log-probabilities."""

    def __init__(self, trained: TrainedExtractor) -> None:
        super().__init__()
        self.module, self.temperature = trained.module, trained.temperature

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        logits: Tensor = self.module(embedded) / self.temperature
        return logits.log_softmax(1)


@final
class Seen(nn.Module):
    """A judge's log-probabilities as a function of codes, through the decoder, in the order of a study's concepts."""

    def __init__(self, judge: CalibratedJudge, model: Adapter, order: Sequence[int]) -> None:
        super().__init__()
        self.network, self.temperature, self.order = judge.network, judge.temperature, list(order)
        self._decode = model.decode

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        logits: Tensor = self.network(self._decode(embedded)) / self.temperature
        return logits[:, self.order].log_softmax(1)


def choosers_of(
    names: Sequence[str], loaded: Loaded, judges: Sequence[CalibratedJudge], spoken: tuple[str, ...]
) -> dict[str, nn.Module]:
    """Who chooses the tokens of an edit, by name; nobody named: all extractors of the study.

    Args:
        names: Extractors of the study, and judges as judge:NAME.
        loaded: The study.
        judges: Those there are.
        spoken: What they call the study's concepts, in its order.

    Raises:
        ConfigError: Nobody has that name.
    """
    found: dict[str, nn.Module] = {}
    known = {JUDGE + judge.name: judge for judge in judges}
    for name in names or tuple(loaded.members):
        if name in loaded.members:
            found[name] = Calibrated(loaded.members[name]).eval()
        elif name in known:
            order = [known[name].concepts.index(one) for one in spoken]
            found[name] = Seen(known[name], loaded.model, order).eval()
        else:
            raise ConfigError(
                f"nobody called {name!r} can choose tokens; the study has: {', '.join([*loaded.members, *known])}"
            )
    return found


def place_of(model: Adapter) -> Place:
    """Where the tokens of a model lie that an edit changes: its only grid, or the finest."""
    *before, finest = model.levels
    return Place(grid=finest.grid, size=model.size, first=sum(level.length for level in before))


def footprint_of(loaded: Loaded, alive: Bool[Tensor, " k"], seed: int) -> Footprint:
    """The decoder's footprint, in test images of a study."""
    images = first_images(loaded.store, REPORTED, FOOTPRINT_IMAGES)
    device = loaded.model.codebook.device
    return measure_footprint(
        loaded.model.decode, loaded.model.codebook, alive, images.tokens.to(device), images.image_ids,
        place_of(loaded.model), seed=seed,
    )  # fmt: skip


def live_codes(loaded: Loaded, engine: Engine = SERIAL) -> Bool[Tensor, " k"]:
    """Codes an edit may put in: those that training and validation images use, of the finest level."""
    alive = code_counts(loaded.store, EXPLAINED, engine).sum(0) > 0
    return finest_codes(alive, loaded.model.levels).to(loaded.model.codebook.device)


def open_means(
    study: Study,
    loaded: Loaded,
    concepts: Iterable[int],
    alive: Bool[Tensor, " k"],
    choosers: Sequence[nn.Module] = (),
    engine: Engine = SERIAL,
    *,
    budget: int = 600,
    batch: int = 32,
    seed: int = 0,
) -> Means:
    """What edits of a study may ask; what its stages have not made yet is left out.

    Args:
        study: The study.
        loaded: What was loaded of it.
        concepts: Those that are edited to or from.
        alive: See `live_codes`.
        choosers: See `choosers_of`.
        engine: Where codes are counted.
        budget: Passes per image of a codebook search.
        batch: Images at once in it.
        seed: Of it.
    """
    wanted, model = sorted(set(concepts)), loaded.model
    places = code_places(loaded.store, wanted, engine)
    extractor = Together(choosers) if choosers else None

    def search(task: Task, mask: Tensor) -> Tensor:
        assert extractor is not None
        names = [f"{name}>{target}" for name, target in zip(task.image_ids, task.target.tolist(), strict=True)]
        greedy = Greedy(budget=budget, batch=batch, seed=seed, alive=alive, objective="log_probability")
        return greedy(extractor, model.codebook, task.tokens, mask, task.target, names).tokens[:, 0]

    return Means(
        codebook=model.codebook, alive=alive, choosers=tuple(choosers),
        decode=model.decode if "decode" in model.abilities else None,
        listed=listed_tokens(study, loaded.concepts, wanted), places=places, effects=_effects(study, wanted),
        chances=model.log_probabilities if is_likely(model) else None, search=search if choosers else None,
    )  # fmt: skip


def listed_tokens(study: Study, concepts: tuple[str, ...], wanted: Sequence[int]) -> dict[int, Tensor]:
    """Concept tokens by concept; nothing before stage `concepts`."""
    if not study.fingerprints("concepts"):
        return {}
    keep = study.record("concepts")["key"]["settings"]["keep"]
    lists = concept_lists(study, concepts, keep)
    return {one: lists[one] for one in wanted}


def _effects(study: Study, wanted: Sequence[int]) -> Mapping[int, Tensor]:
    if not study.fingerprints("traverse"):
        return {}
    effect = load_file(study.path("traverse") / "effects.safetensors")["effect"]
    return {one: effect[one] for one in wanted}


def code_places(store: TokenStore, concepts: Sequence[int], engine: Engine = SERIAL) -> dict[int, Int[Tensor, "k h w"]]:
    """How often each code stands where in training and validation images, by concept."""
    shape = (store.manifest.k, *store.manifest.grid)
    found = {one: torch.zeros(shape, dtype=torch.int64) for one in concepts}
    work = partial(_places_of_shard, store=store, concepts=tuple(concepts))
    for shard in engine.map(work, range(len(store.shards))):
        for concept, (cells, times) in shard.items():
            found[concept].view(-1)[cells] += times
    return found


def _places_of_shard(number: int, *, store: TokenStore, concepts: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
    """(code * h*w + position, how often) by concept."""
    batch = store.read(number, pictures=False)
    explained = torch.tensor([split in EXPLAINED for split in batch.split])
    found, flat = {}, batch.tokens.flatten(1)
    for concept in concepts:
        tokens = flat[explained & (batch.concept == concept)]
        found[concept] = (tokens * flat.shape[1] + torch.arange(flat.shape[1])).flatten().unique(return_counts=True)
    return found
