"""What every attribution method owes its caller, and how one is built from settings that many share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution import METHODS
from vqcortex.attribution.gradient import mean_gradient
from vqcortex.config import raise_all


@runtime_checkable
class Method(Protocol):
    """A frozen settings object that can be called.

    Attributes:
        better: "higher": a larger score means that the position speaks more for the concept.
        source: Paper and section.
    """

    better: ClassVar[Literal["higher"]]
    source: ClassVar[str]

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes per image."""
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

    def from_gradient(
        self, gradient: Float[Tensor, "b d h w"], embedded: Float[Tensor, "b d h w"]
    ) -> Float[Tensor, "b h w"]:
        """Importance per position from the gradient that `mean_gradient` gives for these draws, noise and seed."""
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
    gradients: dict[tuple[int, float, int], Tensor] = {}
    found = {}
    for name, method in methods.items():
        if isinstance(method, FromGradient):
            noise = (method.draws, method.noise, method.seed)
            if noise not in gradients:
                draws, scale, seed = noise
                gradients[noise] = mean_gradient(
                    extractor, embedded, concept, image_ids, draws=draws, noise=scale, seed=seed
                )
            found[name] = method.from_gradient(gradients[noise], embedded)
        else:
            found[name] = method(extractor, embedded, concept, image_ids)
    return found


def build_method(name: str, *, codebook: Float[Tensor, "k d"] | None = None, **settings: Any) -> Method:
    """Return the method `name`, given those of the settings that it has.

    One set of settings serves every method, so a method leaves out what it does not know; a name that no
    method knows is an error, because it is a slip of the pen.

    Args:
        name: Entry of METHODS.
        codebook: Where the baseline "mean" comes from; None when no baseline is wanted.
        **settings: Fields of any method: draws, noise, reduce, seed, and baseline, which is a (d,) tensor,
            "zero" (or None) for no baseline, or "mean" for the mean code. Left out, it is "mean" if a
            codebook is given.

    Raises:
        UnknownName: No method has that name.
        ConfigError: No method has such a setting, or a value is out of range.

    Example:
        >>> build_method("tis", draws=4, noise=0.1).passes
        (4, 4)
    """
    build = METHODS[name]
    known = {field for one in METHODS for field in _fields_of(METHODS[one])}
    raise_all(
        f"{key!r} is no setting of any method; known: {', '.join(sorted(known))}" for key in settings.keys() - known
    )
    settings = {"baseline": "mean" if codebook is not None else None, **settings}
    mine = {key: value for key, value in settings.items() if key in _fields_of(build)}
    if "baseline" in mine:
        mine["baseline"] = _baseline(mine["baseline"], codebook)
    return build(**mine)


def _fields_of(build: object) -> set[str]:
    return {one.name for one in fields(cast(Any, build))}


def _baseline(wanted: Tensor | str | None, codebook: Tensor | None) -> Tensor | None:
    if isinstance(wanted, Tensor) or wanted is None:
        return wanted
    problems = []
    if wanted not in ("mean", "zero"):
        problems.append(f"baseline={wanted!r} must be 'mean', 'zero' or a tensor (d,)")
    if wanted == "mean" and codebook is None:
        problems.append("baseline='mean' is the mean of a codebook, and none was given; pass codebook=, or 'zero'")
    raise_all(problems)
    return codebook.mean(0) if wanted == "mean" and codebook is not None else None
