"""What the README and the docstrings show, runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import vqcortex

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
MODULES = sorted(one.name for one in pkgutil.walk_packages(vqcortex.__path__, "vqcortex."))


@pytest.mark.slow
def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.M | re.S)
    assert blocks, "the README shows no python"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert capsys.readouterr().out.strip()


def test_the_first_python_comes_early():
    text = README.read_text()
    before = text[: text.index("```python")]
    assert len(re.sub(r"[^\w\s]", " ", before).split()) < 150


def test_links_to_files_lead_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text())
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_commands_in_the_readme_exist():
    from vqcortex.cli.main import COMMANDS

    named = set(
        re.findall(r"vqcortex (\w+)", "\n".join(re.findall(r"^```bash\n(.*?)^```", README.read_text(), re.S | re.M)))
    )
    assert named
    assert named <= {*COMMANDS, "demo", "models", "version"}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples >= 10
