"""The command line: each command is a settings class and a public function, nothing more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import vqcortex
from vqcortex.cli import show
from vqcortex.cli.flags import command_for
from vqcortex.errors import VqCortexError
from vqcortex.pipelines import settings as all_settings

# Command, its settings class, and the function that does the work.
COMMANDS = {
    "run": ("RunSettings", "vqcortex.pipelines.run:run"),
    "tokens": ("TokensSettings", "vqcortex.pipelines.tokens:make_tokens"),
    "train": ("TrainSettings", "vqcortex.pipelines.train:train"),
    "sanity": ("SanitySettings", "vqcortex.pipelines.sanity:sanity"),
    "trust": ("TrustSettings", "vqcortex.pipelines.trust:trust"),
    "score": ("ScoreSettings", "vqcortex.pipelines.score:score"),
    "concepts": ("ConceptsSettings", "vqcortex.pipelines.concepts:pool_concepts"),
    "interactions": ("InteractionsSettings", "vqcortex.pipelines.interactions:interactions"),
    "traverse": ("TraverseSettings", "vqcortex.pipelines.traverse:traverse"),
    "search": ("SearchSettings", "vqcortex.pipelines.search:search"),
    "judges": ("JudgesSettings", "vqcortex.pipelines.judges:make_judges"),
    "evaluate": ("EvaluateSettings", "vqcortex.pipelines.evaluate:evaluate"),
    "edit": ("EditSettings", "vqcortex.pipelines.edit:edit"),
    "editability": ("EditabilitySettings", "vqcortex.pipelines.editability:editability"),
    "compare": ("CompareSettings", "vqcortex.report.compare:compare"),
    "report": ("ReportSettings", "vqcortex.report.stage:report"),
    "usage": ("UsageSettings", "vqcortex.report.usage:usage"),
    "shortcuts": ("ShortcutsSettings", "vqcortex.report.shortcuts:shortcuts"),
    "audit": ("AuditSettings", "vqcortex.report.audit:audit"),
}

app = typer.Typer(
    help="What do the discrete tokens of an image generator mean?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# What the closing line points to, inside the study; a stage's own folder where nothing is said.
RESULTS = {
    "run": "report/report.html",
    "compare": "compare/compare.html",
    "report": "report/report.html",
    "usage": "usage/usage.html",
    "shortcuts": "shortcuts/shortcuts.html",
    "audit": "audit/audit.html",
}

# What is said before it: functions of the settings that return lines.
TRUST = "vqcortex.pipelines.stamps:told"
CLOSING = {
    "run": ("vqcortex.pipelines.judges:warned", TRUST),
    "evaluate": ("vqcortex.pipelines.judges:warned",),
    "judges": ("vqcortex.pipelines.judges:told",),
    "compare": ("vqcortex.pipelines.compare:told",),
    "edit": ("vqcortex.pipelines.edit:told",),
    "editability": (TRUST,),
    "sanity": ("vqcortex.pipelines.sanity:told",),
    "shortcuts": ("vqcortex.pipelines.shortcuts:told", TRUST),
    "audit": ("vqcortex.report.audit:told",),
    **dict.fromkeys(("trust", "score", "concepts", "interactions", "traverse", "search"), (TRUST,)),
}


def _action(command: str) -> Callable[[Any], None]:
    def act(settings: Any) -> None:
        _named(COMMANDS[command][1])(settings, progress=show.Bars())
        for closing in CLOSING.get(command, ()):
            for line in _named(closing)(settings):
                show.out.print(line, markup=False)
        label = getattr(settings, "label", "")
        place = settings.out / RESULTS.get(command, f"{command}-{label}" if label else command)
        show.out.print(f"done: {place if place.exists() else settings.out}", markup=False)

    return act


def _named(path: str) -> Callable[..., Any]:
    """What "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


for _name, (_class, _) in COMMANDS.items():
    app.command(_name)(command_for(getattr(all_settings, _class), _action(_name)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the study; continued if it exists.")] = Path("vqcortex-demo"),
    seed: Annotated[int, typer.Option(help="Every random draw depends on this.")] = 0,
    device: Annotated[str, typer.Option(help="Where tensors live: cpu, cuda, cuda:1.")] = "cpu",
    batch: Annotated[int, typer.Option(help="Images per step; changes speed and memory, never results.")] = 250,
) -> None:
    """The main job on the embedded model zoo:fashion, sized for a few minutes on two CPU cores."""
    from vqcortex.pipelines.run import demo_settings

    _action("run")(demo_settings(out=out, seed=seed, device=device, batch=batch))


def _doctor(settings: all_settings.DoctorSettings) -> None:
    from vqcortex.pipelines.doctor import diagnose

    diagnosis = diagnose(settings, progress=show.Bars())
    show.print_table(("", ""), diagnosis.facts.items())
    show.out.print()
    rows = [(one.verdict, one.check, one.value, one.reason) for one in diagnosis.findings]
    show.print_table(("verdict", "check", "measured", "reason"), rows)
    show.out.print(f"\nverdict: {diagnosis.verdict}", markup=False)
    if settings.out is not None:
        show.out.print(f"done: {settings.out / 'doctor.json'}", markup=False)
    if diagnosis.verdict == "fail":
        raise typer.Exit(1)


app.command("doctor")(command_for(all_settings.DoctorSettings, _doctor))


def _worlds(settings: all_settings.WorldsSettings) -> None:
    from vqcortex.pipelines.worlds import measure_worlds
    from vqcortex.pipelines.worlds_tables import summary_rows

    summary = measure_worlds(settings, progress=show.Bars())["worlds_summary"]
    heads, rows = summary_rows(summary)
    show.print_table(heads, rows)
    for line in dict.fromkeys(f"{row['target']}: {row['asks']}; bound {row['bound']}" for row in summary.rows):
        show.out.print(line, markup=False)
    show.out.print(f"done: {settings.out}", markup=False)


app.command("worlds")(command_for(all_settings.WorldsSettings, _worlds))


@app.command()
def models(
    methods: Annotated[bool, typer.Option(help="List extractors, attribution methods and searches as well.")] = False,
) -> None:
    """List the models that can be opened, and with --methods everything else that has a name."""
    from vqcortex.pipelines.models import list_families, list_models, list_registries

    show.print_table(("model", "codes", "width", "grid", "pixels", "concepts", "generates"), list_models())
    show.out.print("\nFamilies: open FAMILY:PATH, or just PATH; parity is measured against the official code.\n")
    heads = ("family", "what", "opens", "can", "grids", "tokens equal", "pixels within")
    show.print_table(heads, list_families())
    if methods:
        show.out.print()
        show.print_table(("kind", "names"), list_registries())


@app.command()
def version() -> None:
    """Print the version."""
    show.out.print(vqcortex.__version__)


def main() -> None:
    """Run the command line; a mistake the user can mend is one line on standard error and exit code 2."""
    try:
        app()
    except VqCortexError as error:
        show.err.print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        show.err.print("stopped; the same command goes on from here")
        sys.exit(130)
    except MemoryError as error:
        show.err.print(f"error: out of memory ({error}); give a smaller --batch, results do not change", markup=False)
        sys.exit(2)
