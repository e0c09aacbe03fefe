"""A concept's own tokens, put where they usually stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.editing.protocol import Means, Task, check_task, needed


@final
@dataclass(frozen=True, slots=True)
class ConceptTokens:
    """At every free position the target's concept token that stands there most often; as it was where none ever does.

    Which tokens these are, the sample level says: they matter in the target's own images.
    """

    name: ClassVar[str] = "concept_tokens"

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        check_task(task, means)
        found = task.tokens.clone()
        for concept in task.target.unique().tolist():
            codes, counts = means.listed.get(concept), means.places.get(concept)
            how = "run 'vqcortex concepts' on the study first"
            needed(codes is not None and counts is not None, self.name, f"tokens of concept {concept}", how)
            assert codes is not None
            assert counts is not None
            here, put = usual_codes(counts, codes[codes >= 0], means.alive)
            mine = (task.target == concept)[:, None, None] & task.free & here.to(task.free.device)
            found = torch.where(mine, put.to(found), found)
        return found


def usual_codes(
    counts: Int[Tensor, "k h w"], codes: Int[Tensor, " m"], alive: Tensor
) -> tuple[Tensor, Int[Tensor, "h w"]]:
    """Of some codes the one that stands at each position most often, and whether any live one ever does, (h, w) each.

    Of equals the one that comes first.
    """
    codes = codes[alive.to(codes.device)[codes]].to(counts.device)
    if not len(codes):
        nothing = torch.zeros(counts.shape[1:], dtype=torch.int64, device=counts.device)
        return nothing.bool(), nothing
    times = counts[codes]
    return times.amax(0) > 0, codes[times.argmax(0)]
