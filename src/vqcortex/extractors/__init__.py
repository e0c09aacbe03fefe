"""Extractors: classifiers from token embeddings to one logit per concept.

Each name stands for an `Architecture` (see protocol.py); build one with `protocol.build_extractor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqcortex.registry import Registry

if TYPE_CHECKING:
    from vqcortex.extractors.protocol import Architecture

EXTRACTORS: Registry[Architecture] = Registry("extractor")
EXTRACTORS.add("conv8", "vqcortex.extractors.plain_conv:CONV8")
EXTRACTORS.add("conv10", "vqcortex.extractors.plain_conv:CONV10")
EXTRACTORS.add("pictures", "vqcortex.extractors.pictures:PICTURES")
EXTRACTORS.add("se_resnet", "vqcortex.extractors.se_resnet:SE_RESNET")
EXTRACTORS.add("transformer", "vqcortex.extractors.transformer:TRANSFORMER")
EXTRACTORS.add("transformer_postnorm", "vqcortex.extractors.transformer:TRANSFORMER_POSTNORM")
