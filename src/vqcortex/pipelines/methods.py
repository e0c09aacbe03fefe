"""Attribution methods by name, asked of one extractor of a study or of all of them.

METHOD asks the study's extractor, METHOD@EXTRACTOR another one of its members, ensemble:METHOD all members, whose maps
are scaled and averaged as `Ensemble` does. What the default is, and what "fast" stands for, was chosen by measurement:
see docs/trust.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.ensemble import Ensemble, scaled
from vqcortex.attribution.protocol import DEFAULT, Method, build_method, score_together
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.errors import UnknownName
from vqcortex.pipelines.loaded import EXPLAINED, Loaded, code_counts
from vqcortex.pipelines.settings import MethodSettings

ENSEMBLE = "ensemble"
FAST = "fast"
CHEAPEST = "integrated_gradients@pictures"
"""What "fast" stands for: the cheapest method of one extractor that keeps at least 85 % of the default's drop."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a method's name asks for.

    Args:
        method: The name of the method each extractor is explained with.
        extractor: The member asked; None: the study's own; "ensemble": all of them.
    """

    method: str
    extractor: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPlan:
    """Methods ready to be used anywhere: small, and survives pickling.

    Args:
        asked: By the name that was given.
        methods: What each extractor is explained with, by the method's own name.
    """

    asked: Mapping[str, Asked]
    methods: Mapping[str, Method]


def read_name(name: str) -> Asked:
    """Take a method's name apart.

    Example:
        >>> read_name("occlusion@pictures:1")
        Asked(method='occlusion', extractor='pictures:1')
        >>> read_name("ensemble:captum:Saliency")
        Asked(method='captum:Saliency', extractor='ensemble')
    """
    if name == FAST:
        return read_name(CHEAPEST)
    if name == ENSEMBLE:
        return Asked(method=DEFAULT, extractor=ENSEMBLE)
    if name.startswith(f"{ENSEMBLE}:"):
        return Asked(method=name.removeprefix(f"{ENSEMBLE}:"), extractor=ENSEMBLE)
    method, _, extractor = name.partition("@")
    return Asked(method=method, extractor=extractor or None)


def plan_methods(
    names: Sequence[str], settings: MethodSettings, loaded: Loaded, engine: Engine = SERIAL, **changed: Any
) -> MethodPlan:
    """Build what names ask for, with the study's mean code (by use) as the baseline and its code counts.

    Args:
        names: METHOD, METHOD@EXTRACTOR or ensemble:METHOD; a name twice counts once.
        settings: Draws, noise and seed.
        loaded: The study.
        engine: Where codes are counted.
        **changed: Settings of methods to replace, as `build_method` takes them.

    Raises:
        UnknownName: There is no such method, or the study has no such extractor.
        ConfigError: A setting is wrong.
    """
    asked = {name: read_name(name) for name in names}
    for name, one in asked.items():
        check_member(name, one, loaded)
    counts = code_counts(loaded.store, EXPLAINED, engine).sum(0)
    return MethodPlan(asked=asked, methods=methods_for(asked, settings, loaded.model.codebook, counts, **changed))


def methods_for(
    asked: Mapping[str, Asked],
    settings: MethodSettings,
    codebook: Float[Tensor, "k d"],
    counts: Int[Tensor, " k"],
    **changed: Any,
) -> dict[str, Method]:
    """The methods that are asked for, by their own names, made from a codebook and how often each code is used."""
    given: dict[str, Any] = {"draws": settings.draws, "noise": settings.noise, "seed": settings.seed, **changed}
    built = dict.fromkeys(one.method for one in asked.values())
    return {one: build_method(one, codebook=codebook, frequency=counts, **given) for one in built}


def check_member(name: str, asked: Asked, loaded: Loaded) -> None:
    """Return quietly if the study has the extractor that a name asks for."""
    if asked.extractor not in (None, ENSEMBLE, *loaded.members):
        raise UnknownName(
            f"method {name!r} asks extractor {asked.extractor!r}, which this study does not have; it has: "
            f"{', '.join(loaded.members)}; train it with --companions"
        )
    if asked.method == ENSEMBLE or asked.method.startswith(f"{ENSEMBLE}:"):
        raise UnknownName(f"method {name!r} is an ensemble of an ensemble; write ensemble:METHOD, as in ensemble:tis")


def members_asked(asked: Asked, loaded: Loaded) -> dict[str, nn.Module]:
    """The extractors that are asked, by name."""
    if asked.extractor == ENSEMBLE:
        return {name: one.module for name, one in loaded.members.items()}
    name = asked.extractor or loaded.trained.extractor
    return {name: loaded.members[name].module}


def score_methods(
    plan: MethodPlan,
    loaded: Loaded,
    tokens: Int[Tensor, "b h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
) -> dict[str, Float[Tensor, "b h w"]]:
    """Importance maps by name, on the model's device; what several names share is computed once.

    Args:
        plan: From `plan_methods`.
        loaded: The study.
        tokens: The images.
        concept: What is explained, per image.
        image_ids: One name per image.
    """
    device = loaded.model.codebook.device
    embedded, concept = loaded.model.embed(tokens.to(device)), concept.to(device)
    wanted: dict[str, dict[str, Method]] = {}
    for asked in plan.asked.values():
        for member in members_asked(asked, loaded):
            wanted.setdefault(member, {})[asked.method] = plan.methods[asked.method]
    modules = {name: one.module for name, one in loaded.members.items()}
    maps = {
        member: score_together(methods, modules[member], embedded, concept, image_ids)
        for member, methods in wanted.items()
    }
    return {name: _together(asked, maps, loaded) for name, asked in plan.asked.items()}


def _together(asked: Asked, maps: Mapping[str, Mapping[str, Tensor]], loaded: Loaded) -> Tensor:
    each = [maps[member][asked.method] for member in members_asked(asked, loaded)]
    return torch.stack([scaled(one) for one in each]).mean(0) if asked.extractor == ENSEMBLE else each[0]


def method_of(name: str, plan: MethodPlan, loaded: Loaded) -> tuple[Method, nn.Module]:
    """The method a name asks for, to be called with the module beside it.

    Args:
        name: One of the plan's.
        plan: From `plan_methods`.
        loaded: The study.
    """
    asked = plan.asked[name]
    method, modules = plan.methods[asked.method], list(members_asked(asked, loaded).values())
    if asked.extractor == ENSEMBLE:
        return Ensemble(method=method, extractors=tuple(modules[1:])), modules[0]
    return method, modules[0]
