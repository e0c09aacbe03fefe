"""Figures of merit of an explanation, one number per image, each with its unit and its better direction.

A metric is added by writing it in a file here and one line below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqcortex.registry import Registry

if TYPE_CHECKING:
    from vqcortex.evaluation.metrics.protocol import Metric

METRICS: Registry[type[Metric]] = Registry("metric")
METRICS.add("deletion_auc", "vqcortex.evaluation.metrics.areas:DeletionAUC")
METRICS.add("insertion_auc", "vqcortex.evaluation.metrics.areas:InsertionAUC")
METRICS.add("drop", "vqcortex.evaluation.metrics.drops:Drop")
METRICS.add("comprehensiveness", "vqcortex.evaluation.metrics.drops:Comprehensiveness")
METRICS.add("sufficiency", "vqcortex.evaluation.metrics.drops:Sufficiency")
METRICS.add("infidelity", "vqcortex.evaluation.metrics.infidelity:Infidelity")
METRICS.add("max_sensitivity", "vqcortex.evaluation.metrics.sensitivity:MaxSensitivity")
METRICS.add("rank_agreement", "vqcortex.evaluation.metrics.agreement:RankAgreement")
METRICS.add("top_overlap", "vqcortex.evaluation.metrics.agreement:TopOverlap")
METRICS.add("localisation_auroc", "vqcortex.evaluation.metrics.localisation:LocalisationAUROC")
METRICS.add("localisation_precision", "vqcortex.evaluation.metrics.localisation:LocalisationPrecision")
