"""The façade: few names, sorted, found on use, and an import that loads nothing heavy."""

import subprocess
import sys
from pathlib import Path

import vqcortex

HEAVY = {"torch", "lightning", "matplotlib", "PIL", "pyarrow", "scipy", "typer", "rich", "numpy"}
SOURCE = Path(vqcortex.__file__).parent


def test_every_public_name_resolves_and_is_sorted():
    assert vqcortex.__all__ == sorted(vqcortex.__all__, key=str.casefold)
    assert all(getattr(vqcortex, name).__name__ == name for name in vqcortex.__all__)
    assert len(vqcortex.__all__) <= 15


def modules_after(code: str) -> set[str]:
    told = "import sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", f"{code}; {told}"], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_importing_loads_nothing_heavy():
    assert not modules_after("import vqcortex") & HEAVY


def test_the_check_above_can_fail():
    assert "numpy" in modules_after("import numpy") & HEAVY


def test_every_source_file_has_a_docstring_and_one_unit_test_folder():
    files = [path for path in SOURCE.rglob("*.py") if path.read_text().strip() and path.name != "__init__.py"]
    assert len(files) > 60
    bare = [path.name for path in files if not path.read_text().startswith('"""')]
    assert bare == []


def test_no_file_speaks_of_the_machine_it_was_written_on():
    root = SOURCE.parents[1]
    places = [SOURCE, root / "recipes", root / "benchmarks", root / "docs"]
    texts = [path for place in places for path in place.rglob("*") if path.suffix in {".py", ".md", ".json", ".toml"}]
    assert len(texts) > 80
    forbidden = ("/work/", "/root/", "../shared")
    guilty = [str(path) for path in texts if any(word in path.read_text() for word in forbidden)]
    assert guilty == []
