"""Everything a page shows, as plain arrays and tables: pipelines gather it, the report draws it.

Letters as everywhere; pictures are uint8 arrays (…, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from vqcortex.results import Table, Trust

Pictures = NDArray[np.uint8]
Floats = NDArray[np.float32]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CodeExhibit:
    """One code, seen in images of the concept it is shown for.

    Args:
        code: The token, 0..k-1.
        numbers: What the tables say of it, by column: count, share, low, high, lift, local_rank, global_rank, effect.
        patches: Decoded neighbourhoods of occurrences: p squares of 3x3 positions, the code's own in the middle.
    """

    code: int
    numbers: Mapping[str, float]
    patches: Pictures


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptExhibit:
    """One concept.

    Args:
        name: Of the concept.
        image_ids: Of the examples, (e).
        images: Example images, (e, H, W, 3).
        importance: Importance of their positions, any scale, higher is more, (e, h, w).
        activation: Concept activation map: mean importance over the concept's images, each scaled to [-1, 1], (h, w).
        activation_error: Its standard error over images, (h, w).
        images_averaged: Images in that mean.
        codes: The concept's tokens, best first.
        best_swaps: Rows of the verified cells: code, row, column, estimated, measured, measured_error (logits).
    """

    name: str
    image_ids: tuple[str, ...]
    images: Pictures
    importance: Floats
    activation: Floats
    activation_error: Floats
    images_averaged: int
    codes: tuple[CodeExhibit, ...]
    best_swaps: tuple[Mapping[str, Any], ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterExhibit:
    """One group of codes with like concept profiles.

    Args:
        number: 0 is the largest.
        codes: Its members, most used first.
        stability: Mean Jaccard similarity with its best match over bootstrap resamples, 0..1; above 0.75 is stable.
        profile: Share of each concept among the images where its codes matter, (c), sums to 1.
        patches: Example neighbourhoods of its most used codes, (p, H', W', 3).
    """

    number: int
    codes: tuple[int, ...]
    stability: float
    profile: Floats
    patches: Pictures


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SearchExhibit:
    """One pair of concepts: images before, and after each strategy.

    Args:
        source: Concept of the start images.
        target: Concept searched for.
        free: True where tokens could change, (h, w).
        before: Start images, (m, H, W, 3).
        after: By strategy name, the images of the first restart, each (m, H, W, 3).
    """

    source: str
    target: str
    free: NDArray[np.bool_]
    before: Pictures
    after: Mapping[str, Pictures]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EditExhibit:
    """Images before an edit, and after it.

    Args:
        title: What was done, in words.
        about: Sentences beside it: who accepts it, what it changed; may be empty.
        before: (m, H, W, 3).
        after: By how the tokens were chosen, each (m, H, W, 3).
    """

    title: str
    about: tuple[str, ...]
    before: Pictures
    after: Mapping[str, Pictures]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A whole study.

    Args:
        title: Of the page.
        model: Facts in order, name to text: name, identity, codes, width, grid, pixels, images in the store.
        extractor: Facts in order, name to text: architecture, parameters, accuracy on held-out images, calibration.
        history: Per epoch: epoch, train_loss, validation_loss, validation_accuracy.
        concepts: In the model's order.
        clusters: Largest first.
        searches: In the order searched.
        tables: Every table of the study by name: image_level, concept_level, codebook_level, verdicts, concept_tokens,
            two_scale, clusters, traversal_cells, traversal_error, search_stability, sanity, sanity_cascade, trust,
            trust_reasons; any may be absent.
        stages: Per stage: stage, command, settings (mapping), versions (mapping).
        notes: Sentences the reader must see, such as where the default lost.
        judges: Facts in order, name to text: what they learned from, how good each is; empty where their files do not
            say.
        trust: How far all of it can be trusted, as a whole and by concept.
        edits: Edits that were asked for, then those that validate the concepts' tokens.
    """

    title: str
    model: Mapping[str, str]
    extractor: Mapping[str, str]
    history: tuple[Mapping[str, float], ...]
    concepts: tuple[ConceptExhibit, ...]
    clusters: tuple[ClusterExhibit, ...]
    searches: tuple[SearchExhibit, ...]
    tables: Mapping[str, Table]
    stages: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = field(default=())
    judges: Mapping[str, str] = field(default_factory=dict)
    trust: Trust = field(default_factory=Trust)
    edits: tuple[EditExhibit, ...] = field(default=())
