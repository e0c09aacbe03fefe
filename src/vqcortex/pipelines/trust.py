"""How far a study's explanations can be trusted, measured before anything is explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vqcortex.engine.carried import Carried
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import ConfigError, ModelError, VqCortexError
from vqcortex.evaluation.rank_agreement import rank_correlation
from vqcortex.evaluation.trust import Answers, reasons_for, trust_tables, weighed
from vqcortex.judges import load_judges
from vqcortex.judges.quality import WEAK
from vqcortex.pipelines.evaluate import OrderedJudge, digest, judges_at, names_inputs, ordered, spoken_concepts
from vqcortex.pipelines.judges import judges_place
from vqcortex.pipelines.loaded import REPORTED, Loaded, carry, first_images, load_all
from vqcortex.pipelines.methods import MethodPlan, plan_methods, read_name, score_methods
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.sanity import load_findings
from vqcortex.pipelines.settings import TrustSettings
from vqcortex.pipelines.stamps import STAGE, trust_of
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.results import Trust, save_table
from vqcortex.tokens.store import TokenBatch

Judges = Carried[tuple[OrderedJudge, ...]]


def trust(settings: TrustSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Trust:
    """Weigh what is known of a study's extractors, judges and method before it explains.

    Args:
        settings: The method that will explain, and how many images are asked about.
        progress: Told how far it is.
        engine: Where batches of images are asked about.
    Returns:
        The verdict; the study's folder holds it as the tables trust and trust_reasons.
    Raises:
        StudyError: Tokens or extractor are not there yet, or there are no test images.
        ModelError: The judges that were named are not there.
        UnknownName: No such method.
    """
    settings.check()
    study = Study(settings.out)
    loaded = load_all(study, settings.device)
    plan = plan_methods(_by_member(settings.method, loaded), settings, loaded, engine)
    judges, why = _judges(study, settings, loaded)
    inputs = study.fingerprints("tokens", "train", "sanity")
    if judges is not None:
        inputs |= {"judges": str(judges.arguments[-1]), **names_inputs(settings, loaded.concepts)}
    key = stage_key(STAGE, settings, TrustSettings, inputs)
    carried = carry(study, settings.device, loaded)

    def work(folder: Path) -> None:
        images = first_images(loaded.store, REPORTED, max(settings.trust_images, len(loaded.concepts)))
        parts = _parts(images, settings.batch)
        said = progress.track(
            engine.map(partial(_asked, carried=carried, judges=judges), parts), "trust: batches asked", len(parts)
        )
        answers = _joined(images, list(said), loaded, why)
        if loaded.companions:
            mapped = first_images(loaded.store, REPORTED, settings.trust_maps)
            parts = _parts(mapped, settings.batch)
            made = engine.map(partial(_mapped, carried=carried, plan=plan), parts)
            answers = _with_maps(
                answers, mapped, list(progress.track(made, "trust: batches explained", len(parts))), loaded
            )
        reasons = reasons_for(answers, load_findings(study, settings.method), loaded.concepts)
        for table in trust_tables(weighed(reasons, loaded.concepts), reasons):
            save_table(table, folder)

    run_stage(study, key, work)
    return trust_of(study, settings.method, edited=False)


def _by_member(name: str, loaded: Loaded) -> list[str]:
    """The method's name, and the same method asked of each extractor."""
    method = read_name(name).method
    return [name, *(f"{method}@{member}" for member in loaded.members)]


def _judges(study: Study, settings: TrustSettings, loaded: Loaded) -> tuple[Judges | None, str]:
    """Judges to ask, or None and why there are none; those that are named must be there."""
    called = spoken_concepts(settings.judge_concepts, loaded.concepts)
    try:
        place = judges_place(study, settings.judges, loaded.model)
        judges = load_judges(place, settings.device)
        spoken = ordered(judges, called)
    except (ModelError, ConfigError) as error:
        if settings.judges and isinstance(error, ModelError) and "decode" in loaded.model.abilities:
            raise
        return None, str(error).partition(";")[0]
    arguments = (place, settings.device, called, digest(judges))
    return Carried(spoken, judges_at, *arguments), "no judge is clearly better than chance"


def _parts(images: TokenBatch, size: int) -> list[TokenBatch]:
    numbers = range(len(images))
    return [images.take(numbers[start : start + size]) for start in numbers[::size]]


@torch.no_grad()
def _asked(part: TokenBatch, *, carried: Carried[Loaded], judges: Judges | None) -> dict[tuple[str, str], Tensor]:
    """What every extractor and every judge whose word counts names in some images, (b,) each, by kind and name."""
    loaded = carried.value
    embedded = loaded.model.embed(part.tokens.to(loaded.model.codebook.device))
    said = {("extractor", name): one.module(embedded).argmax(1).cpu() for name, one in loaded.members.items()}
    heard = [] if judges is None else [one for one in judges.value if not one.name.endswith(WEAK)]
    if heard:
        pixels = loaded.model.decode(embedded)
        said |= {("judge", one.name): one(pixels).argmax(1).cpu() for one in heard}
    return said


def _joined(images: TokenBatch, said: Sequence[dict[tuple[str, str], Tensor]], loaded: Loaded, why: str) -> Answers:
    together = {key: torch.cat([one[key] for one in said]) for key in said[0]}
    first = loaded.trained.extractor
    return Answers(
        concept=images.concept,
        named=together["extractor", first],
        extractors={name: votes for (kind, name), votes in together.items() if kind == "extractor" and name != first},
        judges={name: votes for (kind, name), votes in together.items() if kind == "judge"},
        why_no_judges=why,
        ece=loaded.trained.metrics.get("ece_calibrated"),
    )


def _mapped(part: TokenBatch, *, carried: Carried[Loaded], plan: MethodPlan) -> dict[str, Tensor]:
    """Maps by each extractor, by its name; one that the method cannot explain is left out."""
    return dict(_maps(part, carried.value, plan))


def _maps(part: TokenBatch, loaded: Loaded, plan: MethodPlan) -> Iterator[tuple[str, Tensor]]:
    for name, asked in plan.asked.items():
        if asked.extractor not in loaded.members:
            continue
        try:
            alone = replace(plan, asked={name: asked})
            yield asked.extractor, score_methods(alone, loaded, part.tokens, part.concept, part.image_ids)[name].cpu()
        except VqCortexError:  # attention of a network without any, say
            continue


def _with_maps(answers: Answers, images: TokenBatch, made: Sequence[dict[str, Tensor]], loaded: Loaded) -> Answers:
    first, *others = loaded.members
    maps = {name: torch.cat([one[name] for one in made]) for name in made[0] if all(name in one for one in made)}
    found = {
        f"{first} and {other}": rank_correlation(maps[first], maps[other])
        for other in others
        if first in maps and other in maps
    }
    return replace(answers, maps=found, mapped=images.concept)
