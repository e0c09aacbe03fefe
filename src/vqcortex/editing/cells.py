"""The cells that the traversal of the codebook found best for a concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.editing.protocol import Means, Task, check_task, needed


@final
@dataclass(frozen=True, slots=True)
class BestCells:
    """At every free position the live code of the largest mean effect on the target; as it was where none helps."""

    name: ClassVar[str] = "best_cells"

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        check_task(task, means)
        found = task.tokens.clone()
        for concept in task.target.unique().tolist():
            effect = means.effects.get(concept)
            how = "run 'vqcortex traverse' on the study first"
            needed(effect is not None, self.name, f"effects on concept {concept}", how)
            assert effect is not None
            best = effect.to(found.device).masked_fill(~means.alive[:, None, None], -torch.inf).max(0)
            mine = (task.target == concept)[:, None, None] & task.free & (best.values > 0)
            found = torch.where(mine, best.indices, found)
        return found
