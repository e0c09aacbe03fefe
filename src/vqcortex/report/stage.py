"""Write a study's page."""

from __future__ import annotations

from pathlib import Path

from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.files import write_bytes
from vqcortex.pipelines.edit import edit_stages
from vqcortex.pipelines.exhibit import gather
from vqcortex.pipelines.judges import is_judged_by_own
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import ReportSettings
from vqcortex.pipelines.study import Study, run_stage, stage_key
from vqcortex.report.page import render_page

PAGE = "report.html"
BEFORE = ("tokens", "train", "score", "concepts", "interactions", "traverse", "search", "evaluate")


def report(settings: ReportSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Write one self-contained HTML page about a study.

    Args:
        settings: What to show.
        progress: Told how far it is.
        engine: Where pictures are made.
    Returns:
        The page.
    Raises:
        StudyError: A stage before it is not finished.
    """
    settings.check()
    study = Study(settings.out)
    inputs = {stage: study.fingerprint(stage) for stage in BEFORE} | study.fingerprints(
        "sanity", "trust", "editability"
    )
    inputs |= study.fingerprints(*edit_stages(study))
    if is_judged_by_own(study):
        inputs["judges"] = study.fingerprint("judges")
    key = stage_key("report", settings, ReportSettings, inputs)

    def work(folder: Path) -> None:
        with progress.bar("report: page", 1) as advance:
            exhibit = gather(study, settings.examples, settings.device, settings.batch, engine)
            write_bytes(folder / PAGE, render_page(exhibit).encode())
            advance()

    run_stage(study, key, work)
    return study.path("report") / PAGE
