"""A codebook search inside the region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Int
from torch import Tensor

from vqcortex.editing.protocol import Means, Task, check_task, needed


@final
@dataclass(frozen=True, slots=True)
class Searched:
    """What a search makes of the whole region; images with one region are searched together."""

    name: ClassVar[str] = "search"

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        check_task(task, means)
        needed(means.search, self.name, "a codebook search", "wire one in, or choose another strategy")
        assert means.search is not None
        found = task.tokens.clone()
        masks, which = task.free.flatten(1).unique(dim=0, return_inverse=True)
        for number, mask in enumerate(masks):
            rows = (which == number).nonzero()[:, 0].tolist()
            found[rows] = means.search(task.take(rows), mask.view(task.free.shape[1:])).to(found)
        return found
