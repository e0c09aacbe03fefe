"""Any attribution algorithm of Captum by its name, with channels added up to one number per position.

Thin on purpose: Captum's own limits hold. DeepLift, GuidedBackprop, Deconvolution and LRP see only nonlinearities that
are modules; where a forward calls torch.relu they treat it as they find it, and `completeness_gap` shows by how much.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vqcortex.attribution.baselines import DrawnCodes, baseline_grid, draws_of
from vqcortex.attribution.logits import check_finite, check_lengths, concept_logits, evaluated
from vqcortex.errors import ConfigError, MissingExtra, ModelError, UnknownName
from vqcortex.extractors.still import still
from vqcortex.seeds import number_for

PREFIX = "captum:"
DETERMINISTIC = (
    "Deconvolution",
    "DeepLift",
    "FeatureAblation",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "Occlusion",
    "Saliency",
)
"""Explained a batch at a time; the others draw numbers or fit something, and are run image by image."""
MIXES_IMAGES = "FeaturePermutation"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Captum:
    """One of Captum's algorithms on the concept's logit.

    Algorithms that hide features hide whole positions. Random ones are seeded per image, on the device's own
    generator: the same numbers for any batch, other ones on another device.

    Args:
        algorithm: Class name in captum.attr: "IntegratedGradients", "DeepLift", "GradientShap", "Occlusion", ...
        baseline: For algorithms that take one: one code (d,), codes drawn by use, or None: zero. Algorithms that take
            a set of baselines get all draws, the others are averaged over them.
        options: Arguments of the algorithm's `attribute`: {"n_steps": 20}.
        seed: With the image id, decides random numbers.
    """

    better: ClassVar[Literal["higher"]] = "higher"
    source: ClassVar[str] = (
        "Kokhlikyan et al. 2020, arXiv:2009.07896; each algorithm's paper is named in its documentation"
    )

    algorithm: str
    baseline: Float[Tensor, " d"] | DrawnCodes | None = field(default=None, repr=False, compare=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seed: int = 0

    def __post_init__(self) -> None:
        taken = inspect.signature(algorithm_named(self.algorithm).attribute).parameters
        if unknown := sorted(set(self.options) - set(taken)):
            raise ConfigError(
                f"captum's {self.algorithm} has no option {', '.join(unknown)}; it has: {', '.join(list(taken)[1:])}"
            )

    def passes(self, grid: tuple[int, int]) -> tuple[int, int]:
        """As counted on a small network: Captum does not say."""
        counting = Counting()
        self(counting, torch.ones(1, self._channels(), *grid), torch.zeros(1, dtype=torch.int64), ("",))
        return counting.forwards, counting.backwards

    def __call__(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Float[Tensor, "b h w"]:
        check_lengths(embedded, concept, image_ids)
        with evaluated(extractor):
            check_finite(concept_logits(extractor, embedded, concept.cpu()), image_ids, "logits")
        step = len(embedded) if self.algorithm in DETERMINISTIC else 1
        with still(extractor), torch.inference_mode(False), torch.enable_grad(), without_captums_warnings():
            embedded, concept = embedded.clone(), concept.clone().to(embedded.device)
            parts = []
            for start in range(0, len(embedded), step):
                here = slice(start, start + step)
                with seeded(number_for(self.seed, image_ids[start], PREFIX + self.algorithm), embedded.device):
                    parts.append(self._maps(extractor, embedded[here], concept[here], image_ids[here]))
        scores = torch.cat(parts)
        check_finite(scores, image_ids, "attributions")
        return scores

    def _maps(
        self,
        extractor: nn.Module,
        embedded: Float[Tensor, "b d h w"],
        concept: Int[Tensor, " b"],
        image_ids: Sequence[str],
    ) -> Tensor:
        grids = [baseline_grid(self.baseline, draw, embedded, image_ids) for draw in range(draws_of(self.baseline))]
        build = algorithm_named(self.algorithm)
        takes = inspect.signature(build.attribute).parameters
        given: dict[str, Any] = {"target": concept, **_features(takes, embedded), **self.options}
        if "baselines" not in takes:
            choices: list[dict[str, Any]] = [{}]
        elif takes["baselines"].default is inspect.Parameter.empty:
            # Some want at least two; the same one twice is still that one.
            choices = [{"baselines": torch.cat(grids if len(grids) > 1 else grids * 2)}]
        else:
            choices = [{"baselines": grid.contiguous()} for grid in grids]
        try:
            maps = [build(extractor).attribute(embedded, **{**one, **given}) for one in choices]
        except ImportError as error:
            raise MissingExtra(f"captum's {self.algorithm} needs another package: {error}; install it") from error
        except (
            AssertionError,
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            said = " ".join(str(error).split())[:300]
            raise ModelError(
                f"captum's {self.algorithm} fails on this extractor ({type(extractor).__name__}): {said}; "
                "give other options, or take another method"
            ) from error
        # One feature per position: its value stands in every channel.
        whole = torch.stack(maps).mean(0).detach()
        hides = issubclass(build, _captum().PerturbationAttribution)
        return whole.mean(1) if hides else whole.sum(1)

    def _channels(self) -> int:
        if isinstance(self.baseline, DrawnCodes):
            return self.baseline.codebook.shape[1]
        return 1 if self.baseline is None else len(self.baseline)


def captum_method(algorithm: str) -> Callable[..., Captum]:
    """Return what builds the method from its other settings.

    Raises:
        MissingExtra: Captum is not installed.
        UnknownName: Captum has no such class.
        ConfigError: It has, but more is needed to run it than an extractor and a concept.
    """
    algorithm_named(algorithm)
    return partial(Captum, algorithm=algorithm)


def algorithm_named(name: str) -> Any:
    """The class in captum.attr; errors as for `captum_method`."""
    known = [one for one in dir(_captum()) if _can_run(getattr(_captum(), one))]
    if name in known:
        return getattr(_captum(), name)
    if hasattr(_captum(), name):
        why = "mixes the images of a batch" if name == MIXES_IMAGES else "needs more than an extractor and a concept"
        raise ConfigError(f"captum's {name} {why}; known: {', '.join(known)}")
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {PREFIX + near[0]!r}?" if near else ""
    raise UnknownName(f"captum has no attribution algorithm {name!r}; known: {', '.join(known)}.{hint}")


class Counting(nn.Module):
    """A linear extractor of two concepts that counts images going forward and gradients coming back."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = self.backwards = 0
        self.activation = nn.ReLU()

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 2"]:
        self.forwards += len(embedded)
        total = self.activation(embedded).sum((1, 2, 3))
        if total.requires_grad:
            total.register_hook(self._came_back)
        return torch.stack([total, -total], 1)

    def _came_back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@contextmanager
def seeded(number: int, device: torch.device) -> Iterator[None]:
    """Global random numbers that begin at `number` inside, and go on as before afterwards."""
    numpy = np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(number)
        np.random.seed(number % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy)


@contextmanager
def without_captums_warnings() -> Iterator[None]:
    """Captum tells of every hook it sets and every flag it changes; both are undone here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"captum\.")
        yield


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise MissingExtra("methods named 'captum:...' need captum; install it with: pip install captum") from error
    return captum.attr


def _can_run(build: object) -> bool:
    if not inspect.isclass(build) or not issubclass(build, _captum().Attribution) or build.__name__ == MIXES_IMAGES:
        return False
    made_from = list(inspect.signature(build).parameters.values())
    needed = [one for one in made_from if one.default is inspect.Parameter.empty]
    attribute = inspect.getattr_static(build, "attribute", None)
    return len(needed) == 1 and inspect.isfunction(attribute) and "target" in inspect.signature(attribute).parameters


def _features(takes: Mapping[str, Any], embedded: Tensor) -> dict[str, Any]:
    """Arguments that make a position, with all its channels, one feature."""
    d, h, w = embedded.shape[1:]
    if "sliding_window_shapes" in takes:
        return {"sliding_window_shapes": (d, 1, 1)}
    if "feature_mask" in takes:
        return {"feature_mask": torch.arange(h * w, device=embedded.device).view(1, 1, h, w).repeat(1, d, 1, 1)}
    return {}
