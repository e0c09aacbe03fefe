"""Evidence: what happens to independent judges' verdicts when the tokens an explanation names are taken away.

Every arm hides the same number of positions, every table holds trivial controls and several fills, and every
figure comes with an interval over images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqcortex.registry import Registry

if TYPE_CHECKING:
    from vqcortex.evaluation.arms import Arm
    from vqcortex.evaluation.fills import Fill

FILLS: Registry[type[Fill]] = Registry("fill")
FILLS.add("black", "vqcortex.evaluation.fills:Black")
FILLS.add("grey", "vqcortex.evaluation.fills:Grey")
FILLS.add("mean_code", "vqcortex.evaluation.fills:MeanCode")
FILLS.add("resampled_codes", "vqcortex.evaluation.fills:ResampledCodes")

ARMS: Registry[type[Arm]] = Registry("control arm")
ARMS.add("random", "vqcortex.evaluation.arms:Random")
ARMS.add("centre", "vqcortex.evaluation.arms:Centre")
ARMS.add("brightness", "vqcortex.evaluation.arms:Brightness")
ARMS.add("token_frequency", "vqcortex.evaluation.arms:TokenFrequency")
