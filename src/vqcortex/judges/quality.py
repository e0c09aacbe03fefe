"""How good a judge is on images that did not make it, and whether its word counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from vqcortex.errors import ModelError

NORMAL = 1.959964  # standard deviations on either side that hold 95 %
WEAK = " (too weak)"  # behind the name of a judge whose word does not count


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What a judge was measured to do on test images.

    Args:
        right: Images whose concept it found most probable.
        images: Images it was asked about, at least 1.
        chance: Share of the commonest concept among them: what always naming that one would score, 0 to 1.
        ece: Expected calibration error after temperature scaling, 0 (calibrated) to 1.

    Example:
        >>> Quality(right=80, images=100, chance=0.1, ece=0.02).is_weak
        False
        >>> Quality(right=14, images=100, chance=0.1, ece=0.02).is_weak
        True
    """

    right: int
    images: int
    chance: float
    ece: float

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str) -> Quality:
        """From the values that `Quality.values` gave.

        Args:
            values: Of a judges.json.
            source: Its path, for the message.
        Raises:
            ModelError: One is missing, or is no such number.
        """
        try:
            found = cls(
                right=int(values["right"]),
                images=int(values["images"]),
                chance=float(values["chance"]),
                ece=float(values["ece"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{source!r} says {dict(values)!r} of a judge where right, images, chance and ece are needed; "
                "restore the file, or train the judges again"
            ) from error
        if not 0 <= found.right <= found.images or not found.images:
            raise ModelError(
                f"{source!r} says that a judge is right on {found.right} of {found.images} images; "
                "restore the file, or train the judges again"
            )
        return found

    @property
    def values(self) -> dict[str, float]:
        """Everything known, as JSON holds it."""
        return {
            "right": self.right, "images": self.images, "chance": self.chance, "ece": self.ece,
            "accuracy": self.accuracy, "low": self.low, "high": self.high, "least": self.least,
        }  # fmt: skip

    @property
    def accuracy(self) -> float:
        """Share of images it is right on, 0 to 1."""
        return self.right / self.images

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the accuracy."""
        return wilson(self.right, self.images)[0]

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval of the accuracy."""
        return wilson(self.right, self.images)[1]

    @property
    def least(self) -> float:
        """What `low` must reach: twice chance and ten points above it, but no more than a quarter of the way to 1."""
        return min(max(2 * self.chance, self.chance + 0.1), self.chance + (1 - self.chance) / 4)

    @property
    def is_weak(self) -> bool:
        """Whether the accuracy is not clearly above chance, so that its verdicts say next to nothing."""
        return self.low < self.least


def wilson(right: int, images: int) -> tuple[float, float]:
    """95 % interval of a share, `right` of `images`, both ends in [0, 1].

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    share, spread = right / images, NORMAL**2 / images
    middle = (share + spread / 2) / (1 + spread)
    reach = NORMAL * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)
