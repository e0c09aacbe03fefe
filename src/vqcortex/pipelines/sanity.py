"""Examine the method that explains a study, before it does: does it depend on what it claims to explain?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqcortex.attribution.ensemble import Ensemble
from vqcortex.attribution.protocol import Method
from vqcortex.concepts.pooling import count_image_tokens
from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.evaluation.sanity import CHECKS
from vqcortex.evaluation.sanity.protocol import Finding, Limits, Outcome, Score, Subject, examine
from vqcortex.evaluation.sanity.randomise import layer_groups, randomised
from vqcortex.extractors.protocol import look_up
from vqcortex.extractors.train import TrainData, train_extractor
from vqcortex.extractors.train import TrainSettings as Training
from vqcortex.pipelines.loaded import EXPLAINED, REPORTED, Loaded, carry, code_counts, first_images, load_all
from vqcortex.pipelines.methods import (
    ENSEMBLE,
    MethodPlan,
    check_member,
    members_asked,
    method_of,
    methods_for,
    read_name,
)
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import SanitySettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.pipelines.train import read_data
from vqcortex.results import Column, Table, load_table, save_table
from vqcortex.seeds import generator_for
from vqcortex.tokens.store import TokenBatch

STAGE = "sanity"
PERMUTED = "permuted_labels"
MOST = 2000  # images that learn permuted labels: enough to learn nothing from
POSITIONS = 5  # per image, where a code is said to matter, as far as the grid has them

COLUMNS = {
    "check": Column(unit="name", meaning="What was changed."),
    "verdict": Column(unit="name", meaning="pass, fail, or skipped where there was nothing to measure."),
    "measures": Column(unit="words", meaning="What the value is."),
    "value": Column(unit="as measures says", better="lower", meaning="What was measured; empty: nothing could be."),
    "low": Column(unit="as value", meaning="Lower end of its 95 % interval over images; empty: there is none."),
    "high": Column(unit="as value", meaning="Upper end of its 95 % interval over images; empty: there is none."),
    "limit": Column(unit="as value", meaning="What the value must not exceed."),
    "images": Column(unit="images", meaning="Test images looked at."),
    "reason": Column(unit="sentence", meaning="Why it failed or was skipped; empty for a pass."),
}
CURVE_COLUMNS = {
    "kind": Column(unit="name", meaning="cascading: these layers and all above; independent: these layers alone."),
    "step": Column(unit="number, from 1", meaning="From the logits down to the embedding."),
    "layers": Column(unit="names", meaning="Layers randomised at this step."),
    "signed": Column(
        unit="rank correlation, -1 to 1", better="lower",
        meaning="Mean over images, maps as they are, one draw; empty: all maps are constant.",
    ),
    "low": Column(unit="rank correlation, -1 to 1", meaning="Lower end of its 95 % interval over images."),
    "high": Column(unit="rank correlation, -1 to 1", meaning="Upper end of its 95 % interval over images."),
    "magnitude": Column(
        unit="rank correlation, -1 to 1", better="lower",
        meaning="The same of absolute values: high where only the sign was lost.",
    ),
    "images": Column(unit="images", meaning="Test images looked at."),
    "flat": Column(unit="images", meaning="Those of them that are left out because a map is constant."),
}  # fmt: skip


def sanity(settings: SanitySettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Do every sanity check on the method that explains a study.

    Args:
        settings: Which method, and how much is looked at.
        progress: Told how far it is.
        engine: Where checks are done; the extractor that learns permuted labels is trained in this process.
    Returns:
        Folder with the tables sanity (one row per check) and sanity_cascade (the curve of randomised layers).
    Raises:
        StudyError: Tokens or extractor are not there yet, or there are no test images.
        UnknownName: No such method.
        ModelError: The method needs gradients that the extractor does not give.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    asked, counts = read_name(settings.method), code_counts(loaded.store, EXPLAINED, engine).sum(0)
    check_member(settings.method, asked, loaded)
    methods_for({settings.method: asked}, settings, loaded.model.codebook, counts)  # an unknown name is told first
    key = stage_key(STAGE, settings, SanitySettings, study.fingerprints("tokens", "train"))
    carried = carry(study, settings.device, loaded)

    def work(folder: Path) -> None:
        images = first_images(loaded.store, REPORTED, settings.sanity_images)
        subject = build_subject(loaded, settings, images, counts)
        check = partial(
            _check, carried=carried, settings=settings, images=images, counts=counts, original=subject.original.cpu()
        )
        names = [name for name in CHECKS if name != PERMUTED]
        made = progress.track(engine.map(check, names), "sanity: checks", len(names))
        found = dict(zip(names, made, strict=True))
        found[PERMUTED] = _permuted(study, loaded, settings, images, counts, progress, engine)
        for table in sanity_tables([found[name] for name in CHECKS]):
            save_table(table, folder)

    run_stage(study, key, work)
    return study.path(STAGE)


def _check(
    name: str,
    *,
    carried: Carried[Loaded],
    settings: SanitySettings,
    images: TokenBatch,
    counts: Tensor,
    original: Tensor,
) -> Outcome:
    return examine(name, build_subject(carried.value, settings, images, counts, original), limits_of(settings))


def limits_of(settings: SanitySettings) -> Limits:
    """What the settings say of checks."""
    return Limits(
        independent=settings.independent_limit, different=settings.different_limit, draws=settings.sanity_draws,
        steps=settings.sanity_steps, seed=settings.seed,
    )  # fmt: skip


def build_subject(
    loaded: Loaded,
    settings: SanitySettings,
    images: TokenBatch,
    counts: Tensor,
    original: Tensor | None = None,
    name: str = "",
) -> Subject:
    """What the checks examine: the method with every extractor that it asks.

    Args:
        loaded: The study.
        settings: Method, draws, noise, seed, batch.
        images: What is explained.
        counts: How often each code is used, (k,).
        original: Importance of the images' positions; None: it is computed.
        name: Of the method; empty: that of the settings.
    """
    codebook, name = loaded.model.codebook.detach(), name or settings.method
    device = codebook.device
    networks = nn.ModuleDict(members_asked(read_name(name), loaded))
    tokens, concept = images.tokens.to(device), images.concept.to(device)

    def score_from(codes: Tensor, uses: Tensor) -> Score:
        asked = {name: read_name(name)}
        plan = MethodPlan(asked=asked, methods=methods_for(asked, settings, codes, uses))
        return partial(_score, method=method_of(name, plan, loaded)[0], batch=settings.batch)

    def renumbered(order: Tensor) -> Score:
        codes, uses = torch.empty_like(codebook), torch.empty_like(counts)
        codes[order], uses[order.to(uses.device)] = codebook, counts
        return score_from(codes, uses)

    def pool(tokens: Tensor, maps: Tensor, concept: Tensor) -> Tensor:
        n = min(POSITIONS, tokens[0].numel())
        found = count_image_tokens(
            tokens, maps, concept, k=len(codebook), concepts=len(loaded.concepts), positions=(n,)
        )
        return torch.from_numpy(found.cells[0].toarray())

    score = score_from(codebook, counts)
    if original is None:
        original = score(networks, look_up(codebook, tokens), concept, images.image_ids)
    return Subject(
        module=networks, score=score, codebook=codebook, tokens=tokens, concept=concept, image_ids=images.image_ids,
        original=original.to(device), concepts=len(loaded.concepts), renumbered=renumbered, pool=pool,
    )  # fmt: skip


def _score(
    networks: nn.Module, embedded: Tensor, concept: Tensor, image_ids: Sequence[str], *, method: Method, batch: int
) -> Tensor:
    """Importance by a method of the first network, or of all of them if it is an ensemble, `batch` images at a time."""
    first, *others = networks.children()
    asked = replace(method, extractors=tuple(others)) if isinstance(method, Ensemble) else method
    starts = range(0, len(image_ids), batch)
    rows = [slice(start, start + batch) for start in starts]
    return torch.cat([asked(first, embedded[one], concept[one], image_ids[one]).detach() for one in rows])


def _permuted(
    study: Study,
    loaded: Loaded,
    settings: SanitySettings,
    images: TokenBatch,
    counts: Tensor,
    progress: Progress,
    engine: Engine,
) -> Outcome:
    """The check of permuted labels, of one extractor: of an ensemble, the study's own."""
    asked = read_name(settings.method)
    name = asked.method if asked.extractor == ENSEMBLE else settings.method
    subject = build_subject(loaded, settings, images, counts, name=name)
    if settings.permuted_epochs:
        retrained = _retrained(study, subject.module, loaded, settings, progress, engine)
        subject = replace(subject, retrained=retrained)
    return examine(PERMUTED, subject, limits_of(settings))


def _retrained(
    study: Study, networks: nn.Module, loaded: Loaded, settings: SanitySettings, progress: Progress, engine: Engine
) -> nn.Module:
    """The same network from fresh weights, after a few epochs on labels that were dealt out at random."""
    fresh = randomised(networks, [name for group in layer_groups(networks, 1) for name in group], settings.seed)
    asked: dict[str, Any] = study.record("train")["key"]["settings"]
    training = Training(
        epochs=settings.permuted_epochs, seed=settings.seed, device=settings.device,
        **{name: asked[name] for name in ("rate", "weight_decay", "minibatch")},
    )  # fmt: skip
    data = permuted_data(read_data(loaded.store, engine), settings.seed)
    (network,) = fresh.children()
    with progress.bar("sanity: epochs on permuted labels", settings.permuted_epochs) as advance:
        train_extractor(network, data, training, loaded.model.codebook.detach(), on_epoch=lambda _: advance())
    return fresh.to(settings.device)


def permuted_data(data: TrainData, seed: int) -> TrainData:
    """At most 2,000 training images, drawn at random, with labels dealt out among them; validation images likewise."""

    def dealt(tokens: Tensor, labels: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
        rng = generator_for(seed, PERMUTED, purpose)
        chosen = torch.randperm(len(labels), generator=rng)[:MOST]
        return tokens[chosen], labels[chosen][torch.randperm(len(chosen), generator=rng)]

    tokens, labels = dealt(data.tokens, data.labels, "train")
    held_out, truth = dealt(data.validation_tokens, data.validation_labels, "validation")
    return TrainData(tokens=tokens, labels=labels, validation_tokens=held_out, validation_labels=truth)


def sanity_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """The table of findings, and the curve of randomised layers."""
    rows = [{name: getattr(one.finding, name) for name in COLUMNS} for one in outcomes]
    curve = [{**asdict(step), "layers": list(step.layers)} for one in outcomes for step in one.curve]
    curve.sort(key=lambda row: (row["kind"], row["step"]))
    return [Table("sanity", COLUMNS, rows), Table("sanity_cascade", CURVE_COLUMNS, curve)]


def load_findings(study: Study, method: str) -> list[Finding] | None:
    """What the sanity checks of a method found; None: they were not done, or on other tokens or extractors."""
    if not study.fingerprints(STAGE):
        return None
    key = study.record(STAGE)["key"]
    if key["inputs"] != study.fingerprints("tokens", "train") or key["settings"]["method"] != method:
        return None
    return [Finding(**row) for row in load_table(study.path(STAGE) / "sanity.json").rows]


def told(settings: SanitySettings) -> list[str]:
    """Closing lines of the command."""
    return [
        f"{one.verdict}: {one.check}{_number(one)}" for one in load_findings(Study(settings.out), settings.method) or ()
    ]


def _number(one: Finding) -> str:
    number = "" if one.value is None else f", {one.measures} {one.value:.3g}, at most {one.limit:g} allowed"
    return number + (f"; {one.reason}" if one.reason else "")
