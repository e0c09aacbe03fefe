"""Networks whose layers are drawn anew: copies, so that the one that was trained stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator

import torch
from torch import nn

from vqcortex.seeds import number_for


def layer_groups(module: nn.Module, most: int) -> list[tuple[str, ...]]:
    """Names of a network's layers from the logits down to the embedding, in at most `most` groups of like size.

    A layer is a module that has weights itself; the order is that in which the network declares them. Networks of a
    ModuleDict are taken side by side: each gives its uppermost layers to the first group.

    Args:
        module: A network, or a ModuleDict of several.
        most: At least 1.

    Example:
        >>> layer_groups(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)), most=6)
        [('3',), ('0',)]
    """
    columns = [layers[::-1] for layers in _layers(module)]
    count = min(most, max(map(len, columns), default=0))
    return [
        tuple(name for column in columns for name in column[_cut(column, step, count) : _cut(column, step + 1, count)])
        for step in range(count)
    ]


def _cut(column: list[str], step: int, count: int) -> int:
    return len(column) * step // count


def _layers(module: nn.Module) -> Iterator[list[str]]:
    if isinstance(module, nn.ModuleDict):
        for member, network in module.items():
            yield from ([f"{member}.{name}".rstrip(".") for name in names] for names in _layers(network))
        return
    yield [name for name, one in module.named_modules() if any(True for _ in one.parameters(recurse=False))]


def randomised(module: nn.Module, layers: Collection[str], seed: int) -> nn.Module:
    """A copy of a network with these layers as they were before training: weights, and averages of batch-norm.

    Layers are drawn on the CPU by their own rule, from (seed, name) alone; one without a rule gets normal numbers with
    the standard deviation that its weights have.

    Args:
        module: The network; it is not changed.
        layers: Names, as `layer_groups` gives them.
        seed: Any whole number.
    """
    home = next((one.device for one in module.parameters()), torch.device("cpu"))
    fresh = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name in layers:
            torch.default_generator.manual_seed(number_for(seed, "sanity", name))
            _draw(fresh.get_submodule(name))
    return fresh.to(home)


def _draw(layer: nn.Module) -> None:
    rule = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
    if rule is not None:
        rule()
        return
    for weight in layer.parameters(recurse=False):
        weight.normal_(std=float(weight.std(correction=0)))
