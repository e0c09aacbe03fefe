"""What the page on data shows, runs."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vqcortex.adapters.dalle_mini import OPTIONS
from vqcortex.cli.main import app
from vqcortex.images import SOURCES
from vqcortex.prompts import GROUP, NAME, PROMPT, SPLIT
from vqcortex.tokens.store import open_store

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
TEXT = PAGE.read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.M | re.S)


def test_every_command_on_the_page_fills_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), {})
    found = {}
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line)
        assert words.pop(0) == "vqcortex"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output, result.exception)
        store = open_store(Path(words[-1]) / "tokens")
        found[words[-1]] = (len(store), store.manifest.concepts)
    assert found == {
        "drawn": (160, ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white")),
        "encoded": (40, ("blue", "red")),
        "encoded-with-prompts": (40, ("blue", "red")),
        "imported": (40, ("blue", "red")),
        "published-study": (60, ("0", "1")),
    }


def test_every_source_column_and_option_is_named():
    assert all(f"`{name}:" in TEXT for name in SOURCES)
    assert all(f"`{name}`" in TEXT for name in (*PROMPT, GROUP, SPLIT, NAME))
    assert all(f"{name}=" in TEXT for name in OPTIONS if name != "heads")


@pytest.mark.parametrize("page", ["README.md", "docs/families.md"])
def test_the_page_is_found_from(page):
    assert "data.md" in (PAGE.parents[1] / page).read_text()
