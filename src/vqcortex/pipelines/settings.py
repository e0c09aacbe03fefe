"""What each command does, as values. Python, flags and the provenance of a study share these classes.

Fields named in `WITHOUT_EFFECT` change speed, memory or place, never a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vqcortex.config import check_all

WITHOUT_EFFECT = frozenset({"out", "device", "batch", "tensorboard", "require_trust", "replay"})


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What every command that works on a study has."""

    out: Path = Path("vqcortex-study")
    """Folder of the study; made if absent, continued if it exists."""
    seed: int = 0
    """Every random draw depends on this and on the image it belongs to."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1."""
    batch: int = 250
    """Images per step; changes speed and memory, never results."""

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        if self.batch < 1:
            yield f"batch={self.batch} must be at least 1"
        if self.seed < 0:
            yield f"seed={self.seed} must be at least 0"

    def check(self) -> None:
        """Return quietly, or raise one ConfigError that lists everything wrong."""
        check_all(self)


@dataclass(frozen=True, kw_only=True)
class ExplainSettings(StudySettings):
    """What every command that explains has."""

    require_trust: bool = False
    """Refuse to explain where trust is low or was not measured; see `vqcortex trust`."""


@dataclass(frozen=True, kw_only=True)
class JudgedSettings(StudySettings):
    """What training judges and asking them have in common."""

    judges: str = ""
    """Where the judges lie: a model's name or a folder with judges.json; empty: beside the study's model, or else
    those trained for the study."""
    judge_concepts: Path | None = None
    """JSON file with one object, {concept of the study: what the judges call it}, where the two differ."""


@dataclass(frozen=True, kw_only=True)
class TokensSettings(StudySettings):
    """Fill the study's token store: generate, encode real images, or import published data."""

    model: str = "zoo:fashion"
    """The model whose tokens are explained, as listed by `vqcortex models`."""
    images: str | None = None
    """Encode real images from here instead of generating: imagefolder:DIR, parquet:PATH, prompts:TABLE, idx:DIR,
    hf:NAME, torchvision:NAME."""
    images_split: str = "train"
    """Which part of the image source to read, as the source names it: train or test."""
    published: Path | None = None
    """Import from here instead of generating: the published layout, a folder of CSV and .npy files."""
    prompts: Path | None = None
    """Import from here instead of generating: a CSV, JSON Lines or Parquet table of prompts and tokens."""
    per_concept: int = 300
    """Images per concept, at least 10; when encoding, at most this many are taken, in the source's order; an import
    takes all."""
    concepts: tuple[str, ...] = ()
    """Concepts to take; none given: all the model, the source or the table of prompts has."""
    pictures: bool = False
    """Keep the pictures beside the tokens (as PNG, in the form the Hugging Face Image feature reads)."""
    shard: int = 2000
    """Images per shard file, at least 1; a killed run goes on after its last whole shard."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.per_concept < 10:
            yield f"per-concept={self.per_concept} must be at least 10: the images are split in three parts"
        if self.shard < 1:
            yield f"shard={self.shard} must be at least 1"
        ways = {"images": self.images, "published": self.published, "prompts": self.prompts}
        given = [f"{name}={str(place)!r}" for name, place in ways.items() if place is not None]
        if len(given) > 1:
            yield f"{' and '.join(given)} exclude each other; give one"


@dataclass(frozen=True, kw_only=True)
class TrainSettings(StudySettings):
    """Train the information extractor: token embeddings to concept."""

    extractor: str = "conv8"
    """Architecture: conv8, conv10, se_resnet, transformer, transformer_postnorm (published: 1 to 4,
    and 3 of DALL-E mini); pictures looks through the model's decoder."""
    companions: tuple[str, ...] = ("se_resnet", "pictures")
    """Further extractors, NAME or NAME:VARIANT (a whole number), for methods that ask several; pictures is left out of
    a model that cannot decode."""
    epochs: int = 80
    """Passes over the training split, at least 1."""
    rate: float = 1e-3
    """Learning rate of Adam, > 0."""
    weight_decay: float = 1e-4
    """Weight decay of Adam, at least 0."""
    step_every: int = 20
    """Epochs after which the learning rate is multiplied by step-factor."""
    step_factor: float = 0.1
    """What the learning rate is multiplied by, in (0, 1]."""
    minibatch: int = 512
    """Images per optimiser step; unlike batch it changes the result."""
    patience: int = 0
    """Epochs without a better validation loss before training stops; 0 never stops early."""
    precision: str = "32-true"
    """Arithmetic of the training loop: 32-true, bf16-mixed, 16-mixed."""
    width: int = 0
    """Feature channels of the extractor; 0 takes the default for the grid (512 at 16x16)."""
    depth: int = 0
    """Layers of the extractor, in the architecture's own unit; 0 takes its default."""
    tensorboard: bool = False
    """Write TensorBoard events beside the checkpoint (needs the 'tensorboard' extra)."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name in ("epochs", "step_every", "minibatch"):
            if getattr(self, name) < 1:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least 1"
        for name in ("patience", "width", "depth"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)} must be at least 0"
        if not self.rate > 0:
            yield f"rate={self.rate} must be above 0"
        if not self.weight_decay >= 0:
            yield f"weight-decay={self.weight_decay} must be at least 0"
        if not 0 < self.step_factor <= 1:
            yield f"step-factor={self.step_factor} must lie in (0, 1]"
        if self.precision not in (known := ("32-true", "bf16-mixed", "16-mixed")):
            yield f"precision={self.precision!r} must be one of {', '.join(known)}"
        yield from self._companion_problems()

    def _companion_problems(self) -> Iterator[str]:
        for one in self.companions:
            _, mark, variant = one.partition(":")
            if mark and not variant.isdecimal():
                yield f"companion {one!r} must be NAME or NAME:VARIANT with a whole number, as in 'pictures:1'"
        members = [self.extractor, *self.companions]
        if twice := sorted({one for one in members if members.count(one) > 1}):
            yield f"extractor {twice[0]!r} is asked for twice; give the other one a variant: '{twice[0]}:1'"


@dataclass(frozen=True, kw_only=True)
class MethodSettings(StudySettings):
    """What every command that asks an attribution method has."""

    method: str = "ensemble:integrated_gradients"
    """The attribution method that explains, see `vqcortex models --methods`: METHOD asks the study's extractor,
    METHOD@COMPANION that companion, ensemble:METHOD all of them, fast the cheapest that keeps most of the default."""
    draws: int = 20
    """Noisy copies per image, at least 1; ignored by methods without noise."""
    noise: float = 0.2
    """Noise, as a share of each image's own value range (unitless, at least 0)."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.draws < 1:
            yield f"draws={self.draws} must be at least 1"
        if not self.noise >= 0:
            yield f"noise={self.noise} must be at least 0"


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(MethodSettings, ExplainSettings):
    """Score every position of every image."""


@dataclass(frozen=True, kw_only=True)
class SanitySettings(MethodSettings):
    """Change weights, labels, codes, numbers and concepts, one at a time, and look whether the maps follow."""

    sanity_images: int = 32
    """Test images explained again and again, evenly over concepts, at least 8; all, if there are fewer."""
    sanity_draws: int = 3
    """Randomisations of all weights, at least 1."""
    sanity_steps: int = 5
    """Steps of the curve from the logits down, at least 1; neighbouring layers share a step."""
    independent_limit: float = 0.2
    """Largest absolute mean rank correlation with maps of random weights or permuted labels, 0 to 1."""
    different_limit: float = 0.5
    """Largest mean rank correlation with maps of shuffled codes or of another concept, -1 to 1."""
    permuted_epochs: int = 2
    """Passes of the extractor that learns permuted labels; 0 leaves it out."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name, least in {"sanity_images": 8, "sanity_draws": 1, "sanity_steps": 1, "permuted_epochs": 0}.items():
            if getattr(self, name) < least:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least {least}"
        if not 0 <= self.independent_limit <= 1:
            yield f"independent-limit={self.independent_limit} must lie in 0 to 1"
        if not -1 <= self.different_limit <= 1:
            yield f"different-limit={self.different_limit} must lie in -1 to 1"


@dataclass(frozen=True, kw_only=True)
class TrustSettings(MethodSettings, JudgedSettings):
    """Say how far explanations can be trusted, for the whole and for each concept, and why."""

    trust_images: int = 500
    """Test images that extractors and judges are asked about, evenly over concepts, at least 1."""
    trust_maps: int = 64
    """Test images whose maps by different extractors are compared, evenly over concepts, at least 1."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name in ("trust_images", "trust_maps"):
            if getattr(self, name) < 1:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least 1"


@dataclass(frozen=True, kw_only=True)
class ConceptsSettings(ExplainSettings):
    """Pool importance into concept tokens, activation maps and token clusters."""

    positions: tuple[int, ...] = (1, 3, 5, 10)
    """Positions kept per image (n), each 1..h*w; the first tables use the one named by keep."""
    keep: int = 5
    """The n whose concept tokens feed traversal, evaluation and report; one of positions."""
    top: int = 20
    """Tokens kept per concept (k'), 1..k."""
    resamples: int = 100
    """Bootstrap resamples of the images behind the stability of clusters, at least 10."""
    clusters: int = 12
    """Groups of codes by concept profile, at least 2."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.keep not in self.positions:
            yield f"keep={self.keep} must be one of positions={','.join(map(str, self.positions))}"
        if min(self.positions, default=0) < 1:
            yield f"positions={','.join(map(str, self.positions))} must each be at least 1"
        if self.top < 1:
            yield f"top={self.top} must be at least 1"
        if self.resamples < 10:
            yield f"resamples={self.resamples} must be at least 10"
        if self.clusters < 2:
            yield f"clusters={self.clusters} must be at least 2"


@dataclass(frozen=True, kw_only=True)
class InteractionsSettings(ExplainSettings):
    """Test which of a concept's tokens matter together: in pairs, and all of them."""

    together: int = 6
    """Best tokens of a concept taken together, 2 to 16; up to 8 every combination is tried."""
    together_images: int = 60
    """Test images per concept, at least 1: of its own to take tokens out of, of others to put them in."""
    together_draws: int = 0
    """Grids of codes drawn by use that stand for what is taken out, averaged; 0: the mean code."""
    together_alpha: float = 0.05
    """Share of false discoveries allowed among the pairs found, in (0, 1)."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 2 <= self.together <= 16:
            yield f"together={self.together} must lie in 2 to 16: tokens that may matter as a pair"
        if self.together_images < 1:
            yield f"together-images={self.together_images} must be at least 1"
        if self.together_draws < 0:
            yield f"together-draws={self.together_draws} must be at least 0"
        if not 0 < self.together_alpha < 1:
            yield f"together-alpha={self.together_alpha} must lie between 0 and 1"


@dataclass(frozen=True, kw_only=True)
class TraverseSettings(ExplainSettings):
    """Estimate the effect of every code at every position, verify the best cells by real swaps, join the two scales."""

    traverse_images: int = 100
    """Images per concept the effects are averaged over, at least 1; test images of the other concepts."""
    verify: int = 40
    """Cells per concept verified by real swaps, at least 2."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.traverse_images < 1:
            yield f"traverse-images={self.traverse_images} must be at least 1"
        if self.verify < 2:
            yield f"verify={self.verify} must be at least 2"


@dataclass(frozen=True, kw_only=True)
class SearchSettings(ExplainSettings):
    """Search the codebook for the combination that turns one concept into another."""

    pairs: tuple[str, ...] = ()
    """Concept pairs as SOURCE>TARGET; none given: each concept to the next one."""
    region: str = "centre"
    """Where tokens may change: centre (a quarter of the rows and columns), all, or ROWS,COLUMNS as in 2:6,0:4."""
    search_start: str = "image"
    """Where free tokens begin: image (as they are), mean (the mean code), random (codes in use, per restart)."""
    scratch: int = 3
    """Restarts of the free search of a whole grid from scratch, per concept; 0 leaves it out."""
    search_images: int = 8
    """Start images per pair, at least 1."""
    steps: int = 300
    """Optimiser steps, at least 1; the published search takes 5,000."""
    search_rate: float = 0.1
    """Learning rate of Adam over the free rows, > 0; the published search takes 0.01 with 5,000 steps."""
    restarts: int = 3
    """Independent restarts per image, at least 2 for a stability figure."""
    temperature: float = 1.0
    """Gumbel-softmax temperature at the start, > 0."""
    temperature_end: float = 1.0
    """Gumbel-softmax temperature at the last step, > 0; linear in between."""
    strategies: tuple[str, ...] = ("token_selection", "embedding_optimisation", "random_codes", "greedy")
    """How it is searched: these, beam, annealing, or any registered name."""
    search_budget: int = 0
    """Passes of the extractor per image and restart of a search by swaps (greedy, beam, annealing); 0 takes what steps
    costs a gradient search, two per step."""
    search_candidates: int = 16
    """Swaps verified at a time in a search by swaps, at least 1."""
    beam_width: int = 4
    """Grids kept by the beam search, at least 1."""
    search_objective: str = "logit"
    """What becomes large: logit of the target (published), log_probability, or margin over the next concept."""
    search_extractors: tuple[str, ...] = ()
    """Extractors of the study that are searched together, the study's own or companions; none given: its own. The
    others take no part and say afterwards what they believe."""
    regulariser: str = "tokens"
    """What plausible means to a search by swaps: tokens (how codes occur in training images) or generator (its own
    likelihood)."""
    regulariser_weight: float = 0.0
    """Worth of one nat of plausibility in units of the objective, at least 0; 0 leaves it out."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name in ("search_images", "steps", "restarts"):
            if getattr(self, name) < 1:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least 1"
        for name in ("search_rate", "temperature", "temperature_end"):
            if not getattr(self, name) > 0:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be above 0"
        for name, least in {"search_budget": 0, "search_candidates": 1, "beam_width": 1}.items():
            if getattr(self, name) < least:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least {least}"
        if not 0 <= self.regulariser_weight < math.inf:
            yield f"regulariser-weight={self.regulariser_weight} must be at least 0 and finite"
        if not self.strategies:
            yield "strategies is empty; name at least 1, token_selection say"
        choices = {
            "search_objective": ("logit", "log_probability", "margin"),
            "regulariser": ("tokens", "generator"),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                yield f"{name.replace('_', '-')}={value!r} must be one of {', '.join(known)}"
        if self.scratch < 0:
            yield f"scratch={self.scratch} must be at least 0"
        if self.search_start not in (known := ("image", "mean", "random")):
            yield f"search-start={self.search_start!r} must be one of {', '.join(known)}"
        for pair in self.pairs:
            if pair.count(">") != 1:
                yield f"pair {pair!r} must be SOURCE>TARGET, as in 'Sneaker>Ankle boot'"


@dataclass(frozen=True, kw_only=True)
class EditSettings(ExplainSettings, JudgedSettings):
    """Edit images of a study by their tokens, and measure that this, and only this, changed."""

    label: str = ""
    """Name of the edit; another label keeps it beside the others, in the folder edit-LABEL."""
    source: str = ""
    """Concept whose first test images are edited; empty: those named by --image."""
    target: str = ""
    """Concept they are to show; may be empty for explicit swaps and copies."""
    image: tuple[str, ...] = ()
    """Ids of the images to edit, from any split; none given: the first test images of the source."""
    edit_images: int = 4
    """Images edited where none is named, at least 1."""
    edit_region: str = "all"
    """Where tokens may change: all, best:SIDE (the square where the choosers expect most), centre, ROWS,COLUMNS as in
    2:6,0:4, mask:FILE (an image, white where tokens may change), or tokens:CONCEPT (wherever its tokens stand)."""
    edit_strategy: str = "smallest"
    """How tokens are chosen: smallest, concept_tokens, best_cells, search, generator, random_codes, frequency_codes."""
    chosen_by: tuple[str, ...] = ()
    """Who chooses: extractors of the study, and judges as judge:NAME; none given: all its extractors. All other judges
    are held out and say whether to believe the edit."""
    swaps: str = ""
    """Explicit swaps instead of a strategy, as in "3,4=901; 3,5=17": row, column, code."""
    copy_from: str = ""
    """Id of an image whose tokens in the region are copied, instead of a strategy."""
    sureness: float = 5.0
    """Lead in nats with which the smallest edit leaves every chooser, at least 0."""
    over: str = "source"
    """What the target must beat for the smallest edit: source, or others (every other concept)."""
    leak_budget: float = 2.0
    """Mean absolute change outside the region and its footprint at most, in 255ths; below 0: any."""
    dilate: int = -1
    """Positions around the region that count as inside; -1: the decoder's footprint, measured."""
    edit_candidates: int = 32
    """Swaps verified per round by the smallest edit, at least 1."""
    edit_draws: int = 8
    """Draws per image of the strategy generator, at least 1."""
    replay: Path | None = None
    """Record of an edit (record.json) to make again: its swaps and settings, whatever else is given here."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if "/" in self.label or self.label.startswith("."):
            yield f"label={self.label!r} must be a plain name, as in 'boots'"
        for name in ("edit_images", "edit_candidates", "edit_draws"):
            if getattr(self, name) < 1:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least 1"
        if not 0 <= self.sureness < math.inf:
            yield f"sureness={self.sureness} must be at least 0 and finite"
        if self.over not in (known := ("source", "others")):
            yield f"over={self.over!r} must be one of {', '.join(known)}"
        if self.dilate < -1:
            yield f"dilate={self.dilate} must be at least 0, or -1 for the decoder's footprint"
        if self.swaps and self.copy_from:
            yield f"swaps={self.swaps!r} and copy-from={self.copy_from!r} exclude each other; give one"
        if self.target and self.target == self.source:
            yield f"source and target are both {self.target!r}; give two different concepts"


@dataclass(frozen=True, kw_only=True)
class EditabilitySettings(JudgedSettings):
    """Take a concept's tokens out, put them in, swap them: do the judges see the concept go and come?"""

    editability_images: int = 40
    """Test images per concept and kind of edit, at least 1."""
    editability_tokens: tuple[int, ...] = (1, 5, 20)
    """Concept tokens used, the best first, each at least 1; at most as many as are kept per concept."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.editability_images < 1:
            yield f"editability-images={self.editability_images} must be at least 1"
        if not self.editability_tokens or min(self.editability_tokens) < 1:
            sizes = ",".join(map(str, self.editability_tokens))
            yield f"editability-tokens={sizes} must be one or more numbers, each at least 1"


@dataclass(frozen=True, kw_only=True)
class JudgesSettings(JudgedSettings):
    """Train judges on the study's own decoded training images, where none lie with its model."""

    judge_epochs: int = 20
    """Passes of a judge over the training images at most, at least 1."""
    judge_patience: int = 6
    """Epochs without a better validation loss before a judge's training stops; 0 never stops early."""
    judge_rate: float = 1.5e-3
    """Peak learning rate of a judge's AdamW, > 0."""
    judge_minibatch: int = 64
    """Images per optimiser step of a judge at most, at least 2; unlike batch it changes the result."""
    judge_side: int = 64
    """Pixels per side that a judge looks at, at least 8; larger images are reduced first, by the judge itself."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name, least in {"judge_epochs": 1, "judge_patience": 0, "judge_minibatch": 2, "judge_side": 8}.items():
            if getattr(self, name) < least:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least {least}"
        if not self.judge_rate > 0:
            yield f"judge-rate={self.judge_rate} must be above 0"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(JudgedSettings):
    """Measure the explanations with judges that took no part in making them."""

    evaluate_images: int = 1000
    """Test images judged, evenly over concepts, at least 1; all, if there are fewer."""
    shares: tuple[float, ...] = (1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0)
    """Positions hidden, in percent of the grid, each above 0 and at most 100; at least one position is hidden."""
    fills: tuple[str, ...] = ("black", "grey", "mean_code", "resampled_codes")
    """What hidden positions become."""
    interval_resamples: int = 1000
    """Bootstrap resamples over images, at least 100."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.evaluate_images < 1:
            yield f"evaluate-images={self.evaluate_images} must be at least 1"
        for share in self.shares:
            if not 0 < share <= 100:
                yield f"share={share} must be above 0 and at most 100 percent of the positions"
        if self.interval_resamples < 100:
            yield f"interval-resamples={self.interval_resamples} must be at least 100 for a 95 % interval"


@dataclass(frozen=True, kw_only=True)
class CompareSettings(JudgedSettings):
    """Compare attribution methods on the study's own images: faithfulness, agreement, stability and cost."""

    compare_methods: tuple[str, ...] = ()
    """Methods compared: METHOD, METHOD@COMPANION or ensemble:METHOD; none given: a set of about nine."""
    draws: int = 20
    """Noisy copies per image, at least 1; ignored by methods without noise."""
    noise: float = 0.2
    """Noise, as a share of each image's own value range (unitless, at least 0)."""
    compare_images: int = 1000
    """Images measured, evenly over concepts, at least 2; all of the split, if there are fewer."""
    compare_split: str = "test"
    """Images measured: validation (to choose a method before the test images are touched) or test."""
    compare_shares: tuple[float, ...] = (6.0, 10.0, 20.0, 40.0)
    """Positions hidden, in percent of the grid, each above 0 and at most 100; at least one position is hidden."""
    decide_shares: tuple[float, ...] = (6.0, 10.0)
    """Those of the shares whose mean drop, over fills and judges, decides which method is recommended."""
    compare_fills: tuple[str, ...] = ("mean_code", "resampled_codes", "grey")
    """What hidden positions become."""
    keep_share: float = 85.0
    """Percent of the best method's drop that the fast method must keep, above 0 and at most 100."""
    insertion_images: int = 250
    """Of these, images in which positions are also kept while all others are hidden (insertion, sufficiency), at
    least 2; 0 leaves that out."""
    stability_images: int = 40
    """Of these, images for stability, infidelity and sensitivity, at least 2; 0 leaves those out."""
    oracle_images: int = 0
    """Of these, images for the oracle: positions chosen by asking one judge, scored by the others; at least 2; 0
    leaves it out, which is much faster."""
    oracle_fill: str = "mean_code"
    """What the oracle sees while it chooses: mean_code, each (the very fill it is then scored with), or both."""
    interval_resamples: int = 1000
    """Bootstrap resamples over images, at least 100."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.draws < 1:
            yield f"draws={self.draws} must be at least 1"
        if not self.noise >= 0:
            yield f"noise={self.noise} must be at least 0"
        if self.compare_images < 2:
            yield f"compare-images={self.compare_images} must be at least 2: one image says nothing of the spread"
        for name in ("insertion_images", "stability_images", "oracle_images"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be 0 or at least 2"
        if self.compare_split not in (splits := ("validation", "test")):
            yield f"compare-split={self.compare_split!r} must be one of {', '.join(splits)}"
        for share in self.compare_shares:
            if not 0 < share <= 100:
                yield f"share={share} must be above 0 and at most 100 percent of the positions"
        if not self.decide_shares or not set(self.decide_shares) <= set(self.compare_shares):
            mine, all_ = (",".join(f"{one:g}" for one in some) for some in (self.decide_shares, self.compare_shares))
            yield f"decide-shares={mine} must be one or more of compare-shares={all_}"
        if not self.compare_fills:
            yield "compare-fills is empty; name at least one"
        if not 0 < self.keep_share <= 100:
            yield f"keep-share={self.keep_share} must be above 0 and at most 100 percent"
        if self.oracle_fill not in (seen := ("mean_code", "each", "both")):
            yield f"oracle-fill={self.oracle_fill!r} must be one of {', '.join(seen)}"
        if self.interval_resamples < 100:
            yield f"interval-resamples={self.interval_resamples} must be at least 100 for a 95 % interval"


@dataclass(frozen=True, kw_only=True)
class ReportSettings(StudySettings):
    """Write the study's page: one HTML file that opens from disk."""

    examples: int = 8
    """Example images per concept, at least 1."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.examples < 1:
            yield f"examples={self.examples} must be at least 1"


@dataclass(frozen=True, kw_only=True)
class UsageSettings(StudySettings):
    """Count which codes the study's images use, and draw them."""

    split: str = "all"
    """Images counted: all, train, validation, test."""
    atlas: int = 256
    """Live codes drawn, the most used first, shared by the levels, 0 to 4096; an eighth as many dead ones besides."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.split not in (known := ("all", "train", "validation", "test")):
            yield f"split={self.split!r} must be one of {', '.join(known)}"
        if not 0 <= self.atlas <= 4096:
            yield f"atlas={self.atlas} must lie in 0 to 4096: the pictures share one page"


@dataclass(frozen=True, kw_only=True)
class RunSettings(
    ReportSettings,
    EditabilitySettings,
    EvaluateSettings,
    JudgesSettings,
    SearchSettings,
    TraverseSettings,
    InteractionsSettings,
    ConceptsSettings,
    ScoreSettings,
    TrustSettings,
    SanitySettings,
    TrainSettings,
    TokensSettings,
):
    """The main job: tokens, extractors, judges, trust, scores, concepts, interactions, search, evidence, page."""


@dataclass(frozen=True, kw_only=True)
class ShortcutsSettings(JudgedSettings, ExplainSettings):
    """Find tokens that an extractor leans on although they are not the concept: shortcuts, ranked with evidence."""

    suspects: int = 8
    """Codes examined per concept, its most telling concept tokens, at least 1."""
    shortcut_images: int = 40
    """Test images per concept, at least 2: of its own to take codes out of, of others to put them in."""
    shortcut_alpha: float = 0.05
    """Share of false discoveries allowed, in (0, 1)."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name, least in {"suspects": 1, "shortcut_images": 2}.items():
            if getattr(self, name) < least:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least {least}"
        if not 0 < self.shortcut_alpha < 1:
            yield f"shortcut-alpha={self.shortcut_alpha} must lie between 0 and 1"


@dataclass(frozen=True, kw_only=True)
class AuditSettings(JudgedSettings):
    """Audit a generator: do neutral images carry an attribute at even rates, by which tokens, and can it be mended?"""

    model: str = "zoo:fashion"
    """The model whose tokens are compared, and which draws what is to be drawn."""
    groups: tuple[str, ...] = ()
    """Two or more attribute groups as NAME=PLACE. A place is a study or token store of this model, an image source as
    in imagefolder:DIR, or concept:NAME for what the model draws; #CONCEPT at its end takes only that concept."""
    neutral: str = ""
    """The images audited: a place, as for groups."""
    images_split: str = "train"
    """Which part of an image source to read, as the source names it: train or test."""
    group_images: int = 1000
    """Images per attribute group at most, at least 20; of every ten, 7 train the extractor, 2 measure its errors."""
    neutral_images: int = 1000
    """Neutral images at most, at least 2."""
    reference: tuple[float, ...] = ()
    """Shares of the groups that would be even, in their order; none given: all alike."""
    tolerance: float = 0.05
    """How far a share may be from its reference without being called biased, in [0, 1)."""
    audit_alpha: float = 0.05
    """Share of false discoveries allowed among codes, and of false alarms among verdicts, in (0, 1)."""
    extractor: str = "conv8"
    """Architecture that tells the groups apart by their tokens."""
    width: int = 32
    """Feature channels of it; 0 takes the default for the grid."""
    depth: int = 4
    """Layers of it, in the architecture's own unit; 0 takes its default."""
    epochs: int = 0
    """Passes over the training images; 0 takes 6, or what makes 150 steps of few images. The learning rate falls to a
    tenth after two thirds of them."""
    rate: float = 2e-3
    """Learning rate of Adam, > 0."""
    minibatch: int = 64
    """Images per optimiser step, at least 2."""
    method: str = "gradient_x_embedding"
    """The attribution method that finds the groups' concept tokens, one that asks a single extractor."""
    keep: int = 5
    """Best positions looked at per image, 1..h*w."""
    top: int = 20
    """Concept tokens per group, at least 1."""
    published_effect: bool = False
    """Report the published effect too: half of Cliff's delta, counts taken as independent (reference mode)."""
    repair: str = "none"
    """What is tried against bias while drawing: none, reweight (draw each group as often as wanted, every image by what
    was drawn of it before), everywhere (the same bias at a position for all images), or suppress (forbid the codes that
    carry the excess). The neutral set must be concept:NAME."""
    repair_tries: int = 4
    """Strengths tried by reweight and everywhere, at least 1."""
    interval_resamples: int = 1000
    """Bootstrap resamples over images, at least 100."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        least = {
            "group_images": 20, "neutral_images": 2, "width": 0, "depth": 0, "epochs": 0, "minibatch": 2, "keep": 1,
            "top": 1, "repair_tries": 1, "interval_resamples": 100,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least {bound}"
        if len(self.groups) < 2:
            yield f"{len(self.groups)} group(s) given; an audit compares at least 2: --groups NAME=PLACE, once for each"
        elif self.reference and len(self.reference) != len(self.groups):
            yield f"{len(self.reference)} reference share(s) given for {len(self.groups)} groups; give one for each"
        if not self.neutral:
            yield "neutral is empty; name the images to audit, as in --neutral concept:NAME"
        if not 0 <= self.tolerance < 1:
            yield f"tolerance={self.tolerance} must lie in [0, 1)"
        if not 0 < self.audit_alpha < 1:
            yield f"audit-alpha={self.audit_alpha} must lie between 0 and 1"
        if not self.rate > 0:
            yield f"rate={self.rate} must be above 0"
        if self.repair not in (known := ("none", "reweight", "everywhere", "suppress")):
            yield f"repair={self.repair!r} must be one of {', '.join(known)}"
        if self.repair != "none" and not self.neutral.startswith("concept:"):
            yield f"repair={self.repair!r} draws the neutral images again, so neutral must be concept:NAME"


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """Examine a model: what it is, and whether it keeps the promises that explanations rest on."""

    model: str = "zoo:fashion"
    """The model: a name as listed by `vqcortex models`, FAMILY:PATH, or the path of a checkpoint."""
    images: str | None = None
    """Real pictures: a folder of them, or a source as in imagefolder:DIR, parquet:PATH, idx:DIR, hf:NAME."""
    images_split: str = "train"
    """Which part of the image source to read, as the source names it: train or test."""
    limit: int = 16
    """Pictures looked at, at least 2."""
    out: Path | None = None
    """Folder for doctor.json and, with pictures, strip.png; none: nothing is written."""
    seed: int = 0
    """Of the random grids and patterns."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1."""
    batch: int = 8
    """Images per step when speed is measured."""

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        if self.limit < 2:
            yield f"limit={self.limit} must be at least 2: company in the batch is one of the checks"
        if self.batch < 1:
            yield f"batch={self.batch} must be at least 1"
        if self.seed < 0:
            yield f"seed={self.seed} must be at least 0"

    def check(self) -> None:
        """Return quietly, or raise one ConfigError that lists everything wrong."""
        check_all(self)


@dataclass(frozen=True, kw_only=True)
class WorldsSettings:
    """Plant worlds in which the truth is known, and mark every method by whether it finds it."""

    model: str = "zoo:fashion"
    """The model whose codes are planted: it draws the grids to plant in, or --images are encoded with it."""
    images: str | None = None
    """Encode the grids to plant in from here instead of generating them, as in `vqcortex tokens`."""
    images_split: str = "train"
    """Which part of the image source to read, as the source names it: train or test."""
    out: Path = Path("vqcortex-worlds")
    """Folder for the tables; made if absent. Pieces that a killed or smaller run left there are not made again."""
    worlds: tuple[str, ...] = ()
    """Planted worlds, see `vqcortex models --methods`; none given: all."""
    methods: tuple[str, ...] = ()
    """Attribution methods; none given: all. One that does not fit an extractor is skipped, and the table says why."""
    extractors: tuple[str, ...] = ("conv8", "se_resnet")
    """Architectures, each trained and explained by itself in every run."""
    runs: int = 10
    """Runs of every world, at least 2: other codes, places, images and weights."""
    world_images: int = 6000
    """Images of a world, at least 100; 7 of 10 train, 1 chooses the epoch, 2 test."""
    explain_images: int = 100
    """Test images explained per run, at least 20; all, if there are fewer."""
    epochs: int = 8
    """Passes over the training images, at least 3; the learning rate falls to a tenth after two thirds of them."""
    rate: float = 3e-3
    """Learning rate of Adam, > 0."""
    minibatch: int = 64
    """Images per optimiser step, at least 2."""
    width: int = 32
    """Feature channels of an extractor; 0 takes the default for the grid."""
    depth: int = 4
    """Layers of an extractor, in the architecture's own unit; 0 takes its default."""
    codes: int = 2
    """Causal codes of the worlds that have several, at least 2."""
    plant_rate: float = 0.2
    """Share of a training image's positions that a planted code takes at most, above 0 and at most 0.5; in a test
    image it stands once."""
    label_noise: float = 0.0
    """Share of images whose concept is turned round, in [0, 0.5)."""
    correlation: float = 0.8
    """Share of training images in which a confounder or shortcut goes with the concept, in [0.5, 1]."""
    patch: int = 2
    """Side of the shortcut's square, in positions, at least 1."""
    draws: int = 20
    """Noisy copies per image, at least 1; ignored by methods without noise."""
    interval_resamples: int = 1000
    """Bootstrap resamples over runs, at least 100."""
    seed: int = 0
    """Every random draw depends on this, the run, and the image it belongs to."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1."""
    batch: int = 250
    """Images per step; changes speed and memory, never results."""

    def problems(self) -> Iterator[str]:
        """Say what is wrong, one sentence each."""
        least = {
            "runs": 2, "world_images": 100, "explain_images": 20, "epochs": 3, "minibatch": 2, "width": 0, "depth": 0,
            "draws": 1, "interval_resamples": 100, "batch": 1,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                yield f"{name.replace('_', '-')}={getattr(self, name)} must be at least {bound}"
        if not self.rate > 0:
            yield f"rate={self.rate} must be above 0"
        if not self.extractors:
            yield "extractors must name at least one, as in conv8"

    def check(self) -> None:
        """Return quietly, or raise one ConfigError that lists everything wrong."""
        check_all(self)
