"""What a study's explanations are stamped with: how far they can be trusted, told without being asked."""

from __future__ import annotations

from vqcortex.errors import TrustError
from vqcortex.evaluation.editability import editability_reasons
from vqcortex.evaluation.trust import amended, read_trust
from vqcortex.pipelines.settings import StudySettings
from vqcortex.pipelines.study import Study
from vqcortex.results import Trust, load_table

STAGE = "trust"
MEASURED = ("tokens", "train", "sanity")  # stages that trust is about
EDITABILITY = "editability"
EXPLAINED = ("tokens", "train", "concepts")  # stages that editability is about
REASONS_TOLD = 6


def trust_of(study: Study, method: str | None = None, *, edited: bool = True) -> Trust:
    """The verdict on a study as it is now; unknown if it was never measured, or of other tokens or extractors.

    Args:
        study: The study.
        method: What explains; None: what its scores were made with, if it has any.
        edited: Whether what editing its concept tokens came to counts, where that was measured of those it has now.
    """
    trust = _weighed(study, method)
    if not edited or not study.fingerprints(EDITABILITY) or not study.fingerprints(*EXPLAINED):
        return trust
    seen = study.record(EDITABILITY)["key"]["inputs"]
    if any(seen.get(name) != value for name, value in study.fingerprints(*EXPLAINED).items()):
        return trust
    table = load_table(study.path(EDITABILITY) / "editability.json")
    return amended(trust, editability_reasons(table, tuple(trust.concepts)))


def _weighed(study: Study, method: str | None) -> Trust:
    """What stage trust says."""
    if not study.fingerprints(STAGE):
        return Trust(reasons=("not known: trust was not measured; the command 'vqcortex trust' does",))
    key = study.record(STAGE)["key"]
    seen = {name: value for name, value in key["inputs"].items() if name in MEASURED}
    if seen != study.fingerprints(*MEASURED):
        return Trust(reasons=("not known: tokens, extractors or sanity are others since; run 'vqcortex trust' again",))
    if method is None and study.fingerprints("score"):
        method = study.record("score")["key"]["settings"]["method"]
    weighed_for = key["settings"]["method"]
    if method not in (None, weighed_for):
        why = (
            f"not known: trust was measured of {weighed_for}, and {method} explains; run 'vqcortex trust' with --method"
        )
        return Trust(reasons=(why,))
    return read_trust(load_table(study.path(STAGE) / "trust.json"))


def stamp_of(study: Study) -> Trust:
    """What the concepts of a study were stamped with: trust that changes a figure but no level redoes nothing else."""
    rows = study.table("concept_tokens").rows
    return Trust(concepts={row["concept"]: Trust(level=row.get("trust", "unknown")) for row in rows})


def check_trust(study: Study, is_required: bool, method: str | None = None) -> None:
    """Return quietly if a study may be explained.

    Args:
        study: The study.
        is_required: Whether trust was required.
        method: As in `trust_of`.
    Raises:
        TrustError: Trust is required, and it is low or unknown.
    """
    if not is_required or (found := trust_of(study, method)).level in ("high", "moderate"):
        return
    wrong = [one for one in found.reasons if not one.startswith("fine")]
    raise TrustError(
        "\n".join(
            [
                f"trust in the explanations of study {str(study.folder)!r} is {found.level}, but it is required:",
                *(f"  - {one}" for one in wrong),
                "mend what is bad, or leave --require-trust out",
            ]
        )
    )


def told(settings: StudySettings) -> list[str]:
    """Closing lines of the commands that explain: the level, what lowers it, and the concepts below it."""
    found = trust_of(Study(settings.out), getattr(settings, "method", None))
    wrong = [one for one in found.reasons if not one.startswith("fine")]
    lines = [f"trust: {found.level}", *(f"  - {one}" for one in wrong[:REASONS_TOLD])]
    if len(wrong) > REASONS_TOLD:
        lines.append(f"  - and {len(wrong) - REASONS_TOLD} more, see the study's table trust")
    worse = [name for name, one in found.concepts.items() if one.level == "low"]
    return [*lines, f"  concepts of low trust: {', '.join(worse)}"] if worse else lines
