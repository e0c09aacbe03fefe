"""What every attribution method owes its caller, and how one is built from settings that many share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from vqcortex.attribution import METHODS
from vqcortex.attribution.baselines import chosen_baseline
from vqcortex.attribution.gradient import mean_gradient
from vqcortex.config import raise_all
from vqcortex.errors import ConfigError

DEFAULT = "noisy_gradient_x_embedding"
"""What an ensemble averages unless told."""


@runtime_checkable
class Method(Protocol):
    """A frozen settings object that can be called.

    Attributes:
        better: "higher": a larger score means that the position speaks more for the concept.
        source: Paper and section.
    """

    better: ClassVar[Literal["higher"]]
    source: ClassVar[str]

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Forward and backward passes per image on a grid of (h, w) positions."""
        ...

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        """Importance per position, not normalised; a function of each image alone, not of its batch."""
        ...


@runtime_checkable
class FromGradient(Protocol):
    """A method that reads nothing but the mean gradient over noisy copies, which several can share."""

    @property
    def draws(self) -> int: ...
    @property
    def noise(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def sampling(self) -> str: ...

    def from_gradient(
        self, gradient: Float[Tensor, "b d h w"], embedded: Float[Tensor, "b d h w"]
    ) -> Float[Tensor, "b h w"]:
        """Importance per position from the gradient that `mean_gradient` gives for the same draws, noise, seed
        and sampling."""
        ...


@runtime_checkable
class ReportsGap(Protocol):
    """A method whose scores ought to add up to a difference of logits, and that can tell by how much they do not."""

    def gap(
        self,
        scores: Float[Tensor, "b h w"],
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, " b"]:
        """Sum of the method's own scores minus (the image's logit - the mean logit of its baselines), in logits.

        See `baselines.completeness_gap`; costs one forward per image and one per baseline.
        """
        ...


def score_together(
    methods: Mapping[str, Method],
    extractor: nn.Module,
    embedded: Float[Tensor, "b d h w"],
    concept: Int[Tensor, " b"],
    image_ids: Sequence[str],
) -> dict[str, Float[Tensor, "b h w"]]:
    """Return what each method gives by itself, taking the gradient once for all that share their noise.

    Args:
        methods: By name.
        extractor: From embeddings to logits.
        embedded: Codes of the images.
        concept: The concept explained, per image.
        image_ids: One name per image.
    """
    gradients: dict[tuple[int, float, int, str], Tensor] = {}
    found = {}
    for name, method in methods.items():
        if isinstance(method, FromGradient):
            draws, noise, seed, sampling = drawn = (method.draws, method.noise, method.seed, method.sampling)
            if drawn not in gradients:
                gradients[drawn] = mean_gradient(
                    extractor, embedded, concept, image_ids, draws=draws, noise=noise, seed=seed, sampling=sampling
                )
            found[name] = method.from_gradient(gradients[drawn], embedded)
        else:
            found[name] = method(extractor, embedded, concept, image_ids)
    return found


def build_method(
    name: str,
    *,
    codebook: Float[Tensor, "k d"] | None = None,
    frequency: Real[Tensor, " k"] | None = None,
    resamples: int = 8,
    **settings: Any,
) -> Method:
    """Return the method `name`, given those of the settings that it has.

    One set of settings serves every method, so a method leaves out what it does not know; a name that no
    method knows is an error, because it is a slip of the pen.

    Args:
        name: Entry of METHODS, or "captum:NAME".
        codebook: Where baselines come from; None when no baseline is wanted.
        frequency: How often each code is used, any scale; needed for the baselines "frequent" and "resampled".
        resamples: Grids averaged over with the baseline "resampled", at least 1.
        **settings: Fields of any method: draws, noise, sampling, reduce, seed, nodes, block, permutations, masks and so
            on. `baseline` is a (d,) tensor, `DrawnCodes`, "zero" (or None) for no baseline, "mean" for the mean
            code (by use, where a frequency is given), "frequent" for the code used most, "resampled" for codes drawn
            by use; left out, it is "mean" if a codebook is given. An ensemble's `method` is a method or a name: then
            the ensemble's method takes of the same settings what it has; left out, "noisy_gradient_x_embedding".

    Raises:
        UnknownName: No method has that name.
        ConfigError: No method has such a setting, or a value is out of range.
        MissingExtra: A Captum method without Captum.

    Example:
        >>> build_method("tis", draws=4, noise=0.1).passes((7, 7))
        (4, 4)
        >>> build_method("occlusion", draws=4).passes((7, 7))
        (50, 0)
    """
    build = METHODS[name]
    inner = settings.get("method", DEFAULT) if "method" in _fields_of(build) else None
    builds = [METHODS[one] for one in (*METHODS, name, inner) if isinstance(one, str)]
    known = {field for one in builds for field in _fields_of(one)}
    raise_all(
        f"{key!r} is no setting of any method; known: {', '.join(sorted(known))}" for key in settings.keys() - known
    )
    mine = {key: value for key, value in settings.items() if key in _fields_of(build)}
    if "baseline" in _fields_of(build):
        wanted = settings.get("baseline", "mean" if codebook is not None else None)
        mine["baseline"] = chosen_baseline(wanted, codebook, frequency, resamples, settings.get("seed", 0))
    if isinstance(inner, str):
        if "method" in _fields_of(METHODS[inner]):
            raise ConfigError(f"1 setting wrong: method={inner!r} of an ensemble must be a method of one extractor")
        mine["method"] = build_method(inner, codebook=codebook, frequency=frequency, resamples=resamples, **settings)
    return build(**mine)


def _fields_of(build: object) -> set[str]:
    """Settings of a method's class, or of what builds it with some of them set."""
    bound: Mapping[str, object] = build.keywords if isinstance(build, partial) else {}
    one = build.func if isinstance(build, partial) else build
    return {field.name for field in fields(cast(Any, one))} - bound.keys()
