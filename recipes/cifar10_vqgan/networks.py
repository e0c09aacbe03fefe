"""Networks that only training needs: the classifier behind the perceptual loss, and the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class Eye(nn.Module):
    """A small classifier whose features say how alike two images look; never a judge of anything.

    Args:
        concepts: Classes it is trained on.
        width: Channels at full resolution; doubled at each of the two poolings.
    """

    def __init__(self, concepts: int = 10, width: int = 32) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            _stage(before, after) for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.head = nn.Linear(4 * width, concepts)

    def features(self, x: Tensor) -> list[Tensor]:
        """Features of images in [-1, 1] after each stage, full resolution first."""
        found = []
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if number else x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [-1, 1]."""
        return self.head(self.features(x)[-1].mean((2, 3)))

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean squared difference of features scaled to length 1 at every position, summed over the stages.

        Source:
            Zhang et al. 2018, arXiv:1801.03924, equation 1, without the learned weights.
        """
        with torch.no_grad():
            wanted = [F.normalize(one, dim=1) for one in self.features(y)]
        found = [F.normalize(one, dim=1) for one in self.features(x)]
        return sum(((a - b) ** 2).sum(1).mean() for a, b in zip(found, wanted, strict=True))  # type: ignore[return-value]


class PatchDiscriminator(nn.Module):
    """Real or made, for every patch.

    Args:
        width: Channels after the first convolution; doubled at each of the next two.

    Source:
        Isola et al. 2017, arXiv:1611.07004, appendix 6.1.2; group instead of batch normalisation, which would tell
        real from made by the company in the batch.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores (b, 1, H / 4, W / 4) of images in [-1, 1]; higher is more real."""
        return self.layers(x)
