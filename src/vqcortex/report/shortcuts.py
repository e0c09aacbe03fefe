"""Shortcuts of a study as a stage: its table and its page."""

from __future__ import annotations

from pathlib import Path

from vqcortex.adapters.protocol import DECODE, check_ability
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.files import write_bytes
from vqcortex.pipelines.evaluate import court_inputs, open_court
from vqcortex.pipelines.loaded import load_all
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import ShortcutsSettings
from vqcortex.pipelines.shortcuts import STAGE, ShortcutsExhibit, gather_shortcuts
from vqcortex.pipelines.stamps import check_trust
from vqcortex.pipelines.study import Study, command_of, run_stage, stage_key
from vqcortex.report.page import Figure, environment
from vqcortex.report.words import count_of, listed
from vqcortex.results import Table, save_table

PAGE = "shortcuts.html"
ROWS_SHOWN = 100
IN_WORDS = ("row", "column", "evidence")  # columns that the page tells otherwise


def shortcuts(settings: ShortcutsSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Find the concept tokens that a study's extractor leans on and its judges do not; write a table and a page.

    Args:
        settings: How many codes and images.
        progress: Told how far it is.
        engine: Where concepts are examined; tests and intervals are made in this process.
    Returns:
        The page; beside it lies the table shortcuts, the strongest suspects first.
    Raises:
        StudyError: The concepts are not pooled yet.
        ModelError: There are no judges, or the model cannot decode.
        ConfigError: Settings are wrong, or a concept that no judge knows.
        DataError: Only one concept has images.
        TrustError: Trust is required, and it is low or unknown.
    """
    settings.check()
    study = Study(settings.out)
    check_trust(study, settings.require_trust)
    loaded = load_all(study, settings.device)
    check_ability(loaded.model.name, loaded.model.abilities, DECODE, "judges look at pictures")
    court, _, judges = open_court(study, loaded, settings, ("mean_code",), engine)
    inputs = {name: study.fingerprint(name) for name in ("tokens", "train", "concepts")}
    key = stage_key(STAGE, settings, ShortcutsSettings, inputs | court_inputs(judges, settings, loaded.concepts))
    command = f"{command_of(STAGE, key['settings'])} --out STUDY"

    def work(folder: Path) -> None:
        exhibit = gather_shortcuts(study, loaded, court, settings, progress=progress, engine=engine)
        save_table(exhibit.table, folder)
        write_bytes(folder / PAGE, render_shortcuts(exhibit, command=command).encode())

    run_stage(study, key, work)
    return study.path(STAGE) / PAGE


def render_shortcuts(exhibit: ShortcutsExhibit, *, command: str) -> str:
    """The suspects as one self-contained HTML page; equal exhibits give equal pages.

    Args:
        exhibit: The table and the pictures.
        command: The command line that makes the page again.
    """
    table = exhibit.table
    shown = Table(
        table.name,
        {name: one for name, one in table.columns.items() if name not in IN_WORDS},
        [{name: value for name, value in row.items() if name not in IN_WORDS} for row in table.rows],
    )
    return (
        environment()
        .get_template("shortcuts.html.j2")
        .render(
            title=f"What stands in for the concepts of {exhibit.model}",
            answer=answer(exhibit),
            figures=key_figures(exhibit),
            suspects=exhibit.suspects,
            grid=exhibit.grid,
            table=table,
            shown=shown,
            command=command,
            ROWS_SHOWN=ROWS_SHOWN,
        )
    )


def answer(exhibit: ShortcutsExhibit) -> str:
    """The page in one or two sentences."""
    rows = exhibit.table.rows
    found = [row for row in rows if row["verdict"] == "shortcut"]
    if not found:
        return (
            f"None of {count_of(len(rows), 'code')} examined is a shortcut: none is over-represented and moves the "
            "extractor more than it moves the judges."
        )
    concepts = list(dict.fromkeys(row["concept"] for row in found))
    return (
        f"{len(found)} of {count_of(len(rows), 'code')} examined are shortcuts, in {listed(concepts)}. The strongest, "
        f"of {found[0]['concept']}: {found[0]['evidence']}"
    )


def key_figures(exhibit: ShortcutsExhibit) -> list[Figure]:
    """The header's figures."""
    rows = exhibit.table.rows
    words = [row["verdict"] for row in rows]
    found = {
        "Shortcuts": str(words.count("shortcut")),
        "Codes examined": str(len(rows)),
        "Too few images": str(words.count("too few images")),
        "Judges": listed(list(exhibit.judges)),
    }
    return [Figure(name=name, value=value) for name, value in found.items()]
