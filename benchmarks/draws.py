"""Fidelity per cost: how few gradients give the order of positions that a thousand give.

The yardstick is the rank agreement (Spearman over an image's positions, mean over images) that 20 plain noisy draws,
the published number, have with 1,000. What is compared is the least number of gradients with which another way of
drawing reaches it; for integrated gradients, whose limit is another map, agreement is that with its own 1,000 nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from common import Comparison, spread_of
from torch import Tensor, nn

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Generator
from vqcortex.attribution.baselines import mean_code
from vqcortex.attribution.gradient_x_embedding import NoisyGradientXEmbedding
from vqcortex.attribution.integrated import IntegratedGradients
from vqcortex.attribution.protocol import Method
from vqcortex.extractors.protocol import build_extractor, look_up
from vqcortex.extractors.train import TrainData, TrainSettings, train_extractor

PUBLISHED, AT_MOST = 20, 5  # draws published, and how few should be enough
NEVER = 10 * PUBLISHED  # stands for more than were tried


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the problem.

    Args:
        images: That are explained.
        learned: That train the extractor.
        epochs: Of its training.
        limit: Draws that stand for as many as one likes.
        tried: Numbers of gradients tried, ascending.
    """

    model: str = "zoo:fashion"
    images: int = 100
    learned: int = 2_000
    epochs: int = 8
    limit: int = 1_000
    tried: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20)


FULL = Sizes()
SMALL = Sizes(model="toy", images=6, learned=160, epochs=2, limit=40, tried=(1, 2, 4, 20))


@final
@dataclass(frozen=True, slots=True)
class Case:
    """Images and a trained extractor that explains them."""

    extractor: nn.Module
    embedded: Tensor
    concept: Tensor
    names: list[str]
    baseline: Tensor


def case_of(sizes: Sizes) -> Case:
    """Draw the images and train the extractor on others."""
    model = load_model(sizes.model)
    assert isinstance(model, Generator)
    count = sizes.learned + sizes.images
    names, concept = [str(image) for image in range(count)], torch.arange(count) % len(model.concepts)
    tokens = model.generate(concept, names, 0)
    rest, held = slice(sizes.images, None), slice(0, sizes.images)
    data = TrainData(
        tokens=tokens[rest], labels=concept[rest], validation_tokens=tokens[held], validation_labels=concept[held]
    )
    extractor = build_extractor("conv8", model.d, model.grid, len(model.concepts), seed=0)
    train_extractor(extractor, data, TrainSettings(epochs=sizes.epochs, minibatch=64), model.codebook)
    used = torch.bincount(tokens[rest].flatten(), minlength=model.k)
    return Case(
        extractor, look_up(model.codebook, tokens[held]), concept[held], names[held], mean_code(model.codebook, used)
    )


def agreement(case: Case, method: Method, limit: Tensor) -> float:
    """Mean over images of Spearman's correlation between a method's map and the limit's."""
    maps = method(case.extractor, case.embedded, case.concept, case.names).flatten(1)
    one, other = (ranks - ranks.mean(1, keepdim=True) for ranks in (_ranks(maps), _ranks(limit.flatten(1))))
    return float(((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).mean())


def _ranks(values: Tensor) -> Tensor:
    return values.argsort(1).argsort(1).double()


def ways(case: Case, sizes: Sizes) -> Iterator[tuple[str, Method, Method]]:
    """Name, method with one gradient, and the method whose map is the limit."""
    # Another seed, so that no draw of the limit is one of those that are compared with it.
    noisy = NoisyGradientXEmbedding(draws=1, seed=1, baseline=case.baseline)
    for sampling in ("plain", "antithetic", "quasi"):
        yield f"{sampling} draws", replace(noisy, sampling=sampling), replace(noisy, draws=sizes.limit, seed=2)
    path = IntegratedGradients(nodes=1, baseline=case.baseline)
    yield "integrated gradients", path, replace(path, nodes=sizes.limit, rule="midpoint")


def with_gradients(method: Method, count: int) -> Method:
    """The same method with so many gradients."""
    if isinstance(method, IntegratedGradients):
        return replace(method, nodes=count)
    assert isinstance(method, NoisyGradientXEmbedding)
    return replace(method, draws=count)


def measure(sizes: Sizes, repeats: int) -> list[Comparison]:
    """How many gradients each way needs; `repeats` is of no use, because nothing is timed."""
    case, limits, wanted, found = case_of(sizes), {}, 0.0, []
    for name, method, limit in ways(case, sizes):
        key = type(limit)
        if key not in limits:
            limits[key] = limit(case.extractor, case.embedded, case.concept, case.names)
        reached = {one: agreement(case, with_gradients(method, one), limits[key]) for one in sizes.tried}
        if name == "plain draws":
            wanted = reached[PUBLISHED]
            continue
        needed = next((one for one, rank in reached.items() if rank >= wanted), NEVER)
        few = max(one for one in sizes.tried if one <= AT_MOST)
        found.append(
            Comparison(
                work=f"rank agreement {wanted:.3f}, by {name}",
                rival=f"{PUBLISHED} plain draws",
                unit="gradients",
                ours=spread_of([needed]),
                theirs=spread_of([PUBLISHED]),
                at_least=PUBLISHED / AT_MOST,
                note=f"with {few} gradients {name} reach {reached[few]:.3f}, with {PUBLISHED} {reached[PUBLISHED]:.3f}",
            )
        )
    return found
