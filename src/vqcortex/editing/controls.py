"""What any edit must beat: codes that know nothing of the target, and codes that are only frequent in it.

Asked with the positions that another edit changed as the region, they change as many tokens, in the same places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor

from vqcortex.editing.protocol import Means, Task, check_task, needed
from vqcortex.seeds import generator_for


@final
@dataclass(frozen=True, slots=True)
class RandomCodes:
    """At every free position another live code than the one that stands there, all of them as likely."""

    name: ClassVar[str] = "random_codes"

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        check_task(task, means)
        live = means.alive.cpu().nonzero()[:, 0]
        drawn = []
        for name, target in zip(task.image_ids, task.target.tolist(), strict=True):
            source = generator_for(task.seed, name, target, "random edit")
            drawn.append(torch.randint(1, max(len(live), 2), task.free.shape[1:], generator=source))
        shift = torch.stack(drawn)
        # Shifted by 1 to a-1 places in the list of live codes: never the same code again.
        standing = torch.searchsorted(live, task.tokens.cpu()).clamp(max=len(live) - 1)
        put = live[(standing + shift) % len(live)].to(task.tokens.device)
        return torch.where(task.free, put, task.tokens)


@final
@dataclass(frozen=True, slots=True)
class FrequencyCodes:
    """At every free position the live code that is most frequent there in the target's images, and not there yet."""

    name: ClassVar[str] = "frequency_codes"

    def __call__(self, task: Task, means: Means) -> Int[Tensor, "b h w"]:
        check_task(task, means)
        found = task.tokens.clone()
        for concept in task.target.unique().tolist():
            counts = means.places.get(concept)
            how = "give it how often codes stand where"
            needed(counts is not None, self.name, f"images of concept {concept}", how)
            assert counts is not None
            live = counts.to(found.device).masked_fill(~means.alive[:, None, None], -1)
            two = live.topk(min(2, len(live)), dim=0).indices
            put = torch.where(two[0] != task.tokens, two[0], two[-1])
            mine = (task.target == concept)[:, None, None] & task.free
            found = torch.where(mine, put, found)
        return found
