"""Checkpoints of the published CORTEX code, loaded into our networks.

The published networks read 256 channels on a 16x16 grid. Their files are bare state dicts (`best_model.pth`); a
`module.` prefix left by data-parallel training is removed.

Source:
    Yang et al. 2025 (CORTEX), arXiv:2506.00698, published code: key names and sizes of its classification networks.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from vqcortex.errors import ModelError
from vqcortex.extractors import EXTRACTORS
from vqcortex.extractors.checkpoint import fill
from vqcortex.extractors.protocol import network_from, overridden

CHANNELS, GRID = 256, (16, 16)
Renaming = tuple[tuple[str, str], ...]

CONV: Renaming = (
    *((f"stages.{s}.{i}.conv.", f"conv{s + 1}_{i + 1}.") for s, i in product(range(3), range(4))),
    *((f"stages.{s}.{i}.norm.", f"bn{s + 1}_{i + 1}.") for s, i in product(range(3), range(4))),
    *((f"hidden.{i}.linear.", f"fc{i + 1}.") for i in range(2)),
    *((f"hidden.{i}.norm.", f"bn_fc{i + 1}.") for i in range(2)),
    ("head.", "fc3."),
)
RESIDUAL: Renaming = (
    ("stages.0.", "layer1."),
    ("stages.1.", "layer2."),
    (".first.", ".conv1."),
    (".first_norm.", ".bn1."),
    (".second.", ".conv2."),
    (".second_norm.", ".bn2."),
    (".gate.squeeze.", ".se.fc1."),
    (".gate.excite.", ".se.fc2."),
    ("hidden.", "fc1."),
    ("norm.", "bn_fc1."),
    ("head.", "fc2."),
)
BLOCKS: Renaming = (
    ("class_token", "cls_token"),
    ("blocks.", "encoder."),
    (".attention.", ".self_attn."),
    (".attention_norm.", ".norm1."),
    (".mlp_norm.", ".norm2."),
    ("hidden.", "pre_classifier."),
    ("head.", "fc."),
)
PRE_NORM: Renaming = (
    *BLOCKS,
    ("positions", "pos_embed"),
    ("lift.", "proj."),
    (".attention_scale.norm.", ".bn_attn."),
    (".mlp_scale.norm.", ".bn_mlp."),
    ("norm.", "final_norm."),
)
POST_NORM: Renaming = (*BLOCKS, ("lift.0.", "proj."))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedNet:
    """How one published network maps onto ours.

    Args:
        extractor: Name in EXTRACTORS.
        renaming: Pieces of our key names and what the published code calls them, applied in order.
        head: Published key of the last layer's weight; its rows are the concepts.
        mark: A published key that, with the ones before it in NETS absent, tells this network from the others.
        overrides: Settings that differ from the defaults for 16x16 grids.
    """

    extractor: str
    renaming: Renaming
    head: str
    mark: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def name_of(self, key: str) -> str:
        """What the published code calls one of our keys."""
        for ours, theirs in self.renaming:
            key = key.replace(ours, theirs)
        return key


NET1 = PublishedNet(extractor="conv8", renaming=CONV, head="fc3.weight", mark="conv1_1.weight")
NET2 = PublishedNet(extractor="conv10", renaming=CONV, head="fc3.weight", mark="conv3_1.weight")
NET3 = PublishedNet(extractor="se_resnet", renaming=RESIDUAL, head="fc2.weight", mark="layer1.0.conv1.weight")
NET4 = PublishedNet(extractor="transformer", renaming=PRE_NORM, head="fc.weight", mark="pos_embed")
DALLE3 = PublishedNet(
    extractor="transformer_postnorm",
    renaming=POST_NORM,
    head="fc.weight",
    mark="cls_token",
    overrides={"attends_over_batch": True},
)
# In this order a mark is decisive: network 2 has network 1's keys too, network 4 has the post-norm one's class token.
NETS = {
    "vqgan_net2": NET2,
    "vqgan_net1": NET1,
    "vqgan_net3": NET3,
    "vqgan_net4": NET4,
    "dalle_net3": DALLE3,
    "dalle_net1": NET1,
    "dalle_net2": NET3,
}


def load_published(source: Path | str | Mapping[str, Tensor], net: str | None = None) -> nn.Module:
    """Return our network with the weights of a published checkpoint, in eval mode on the CPU.

    The number of concepts is read off the last layer. The published post-norm transformer ("dalle_net3") attends over
    the batch axis, so its logits do not depend on the image; it loads for the record and explains nothing.

    Args:
        source: A `best_model.pth`, opened with restricted unpickling, or its state dict.
        net: "vqgan_net1" to "vqgan_net4" or "dalle_net1" to "dalle_net3"; None: recognised by its keys.

    Raises:
        ModelError: The file cannot be read, keys or shapes are not the network's, or weights are NaN.
    """
    state, name = (source, "state dict") if isinstance(source, Mapping) else (read_state(Path(source)), str(source))
    state = {key.removeprefix("module."): value for key, value in state.items()}
    known = NETS[recognised(state, name) if net is None else checked_name(net)]
    settings = EXTRACTORS[known.extractor].default_settings(CHANNELS, GRID, concepts_of(state, known, name))
    settings = overridden(known.extractor, settings, known.overrides)
    module = network_from(known.extractor, asdict(settings))
    fill(module, state, name, known.name_of)
    return module.eval()


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict without running any code that the file may hold."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}; name a best_model.pth") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{str(path)!r} is no readable state dict ({reason}); copy the file again") from error
    if not isinstance(state, Mapping) or not all(isinstance(one, Tensor) for one in state.values()):
        raise ModelError(f"{str(path)!r} holds {type(state).__name__} values, not a state dict of tensors by name")
    return state


def checked_name(net: str) -> str:
    """Return a name of NETS, or raise naming all of them."""
    if net not in NETS:
        raise ModelError(f"no published network named {net!r}; known: {', '.join(sorted(NETS))}")
    return net


def recognised(state: Mapping[str, Tensor], source: str) -> str:
    """Return the first network whose mark is among the keys."""
    for net, known in NETS.items():
        if known.mark in state:
            return net
    marks = ", ".join(sorted({known.mark for known in NETS.values()}))
    raise ModelError(
        f"weights in {source!r} hold {len(state)} keys ({', '.join(sorted(state)[:3])} ...) and none of {marks}; "
        "they belong to no published network"
    )


def concepts_of(state: Mapping[str, Tensor], known: PublishedNet, source: str) -> int:
    """Rows of the last layer."""
    if known.head not in state or state[known.head].ndim != 2 or len(state[known.head]) < 2:
        raise ModelError(
            f"weights in {source!r} have no {known.head} with one row per concept, 2 or more; "
            "they are not those of this network"
        )
    return len(state[known.head])
