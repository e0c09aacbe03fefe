"""Flags are read off the settings class."""

from dataclasses import dataclass
from pathlib import Path

import typer
from typer.testing import CliRunner

from vqcortex.cli.flags import command_for


@dataclass(frozen=True, kw_only=True)
class Small:
    """What it does."""

    keep: int = 5
    """Positions kept."""
    names: tuple[str, ...] = ("a",)
    """Some names."""
    where: Path | None = None
    """A place."""
    is_loud: bool = False
    """Say more."""
    out: Path = Path("x")
    """Goes first."""


def call(*words: str) -> tuple[list[Small], str]:
    got: list[Small] = []
    app = typer.Typer()
    app.command()(command_for(Small, got.append))
    return got, CliRunner().invoke(app, list(words)).output


def test_defaults_stand_in_the_class_alone():
    assert call()[0] == [Small()]


def test_every_flag_reaches_its_field():
    got, _ = call("--keep", "2", "--names", "b", "--names", "c", "--where", "p", "--is-loud")
    assert got == [Small(keep=2, names=("b", "c"), where=Path("p"), is_loud=True)]


def test_help_is_the_docstring_of_the_field_and_out_comes_first():
    _, output = call("--help")
    assert "What it does." in output
    assert "Positions kept." in output
    assert output.index("--out") < output.index("--keep")
