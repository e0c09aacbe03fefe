"""What the README and the docstrings show, runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import vqcortex
from vqcortex.adapters import GROUP, load_model
from vqcortex.adapters.family import Spec
from vqcortex.adapters.protocol import Adapter
from vqcortex.errors import ConfigError

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ADAPTERS = ROOT / "docs" / "adapters.md"
MODULES = sorted(one.name for one in pkgutil.walk_packages(vqcortex.__path__, "vqcortex."))


def run_python_of(page: Path) -> dict[str, object]:
    """Every python block of a page, one after the other, with the names of those before."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    assert blocks, f"{page.name} shows no python"
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    return names


@pytest.mark.slow
def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_python_of(README)
    assert capsys.readouterr().out.strip()


def test_the_page_on_adapters_runs(capsys):
    pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch")
    with torch.random.fork_rng():
        names = run_python_of(ADAPTERS)
    assert capsys.readouterr().out.splitlines() == [
        "(16, 16) 512 16",
        "['stage 1', 'stage 2', 'stage 3'] (1, 768) 192",
    ]
    assert names["FAMILY"].open(Spec.read("greys:any")).name == "greys"
    with pytest.raises(ConfigError, match="has no option 'colour'"):
        names["FAMILY"].open(Spec.read("greys:any?colour=red"))


def test_a_model_of_ones_own_takes_less_than_twenty_lines():
    block = next(
        one for one in re.findall(r"^```python\n(.*?)^```", ADAPTERS.read_text(), re.M | re.S) if "class" in one
    )
    lines = [line for line in block[block.index("class") :].splitlines() if line.strip()]
    assert 10 < len(lines) < 20
    names: dict[str, object] = {}
    exec(compile(block, str(ADAPTERS), "exec"), names)
    model = load_model(names["Greys"]())
    examined = [name for name in dir(Adapter) if not name.startswith("_")]
    assert "encode" in examined
    assert all(hasattr(model, name) for name in examined)


def test_the_entry_point_on_the_page_is_the_one_that_is_read():
    toml = re.search(r"^```toml\n(.*?)^```", ADAPTERS.read_text(), re.M | re.S)
    assert toml
    assert toml[1].startswith(f'[project.entry-points."{GROUP}"]\ngreys = ')


def test_the_first_python_comes_early():
    text = README.read_text()
    before = text[: text.index("```python")]
    assert len(re.sub(r"[^\w\s]", " ", before).split()) < 150


@pytest.mark.parametrize(("page", "least"), [(README, 4), (ADAPTERS, 1)], ids=["readme", "adapters"])
def test_links_to_files_lead_somewhere(page, least):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert len(links) >= least
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_commands_in_the_readme_exist():
    from typer.main import get_command

    from vqcortex.cli.main import app

    named = set(
        re.findall(r"vqcortex (\w+)", "\n".join(re.findall(r"^```bash\n(.*?)^```", README.read_text(), re.S | re.M)))
    )
    assert named
    assert named <= set(get_command(app).commands)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert examples >= 10
