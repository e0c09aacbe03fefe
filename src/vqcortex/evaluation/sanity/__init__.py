"""Does an explanation depend on what it claims to explain? Each check changes one thing and looks at the maps.

A check is a function from a `Subject` and `Limits` to an `Outcome` (see protocol.py): one file, one line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqcortex.registry import Registry

if TYPE_CHECKING:
    from vqcortex.evaluation.sanity.protocol import Check

CHECKS: Registry[Check] = Registry("sanity check")
CHECKS.add("permuted_labels", "vqcortex.evaluation.sanity.permuted_labels:measure_permuted_labels")
CHECKS.add("randomised_weights", "vqcortex.evaluation.sanity.randomised_weights:measure_randomised_weights")
CHECKS.add("renumbered_codes", "vqcortex.evaluation.sanity.renumbered_codes:measure_renumbered_codes")
CHECKS.add("shuffled_codes", "vqcortex.evaluation.sanity.shuffled_codes:measure_shuffled_codes")
CHECKS.add("swapped_concept", "vqcortex.evaluation.sanity.swapped_concept:measure_swapped_concept")
