import json
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vqcortex.adapters.codes import TableCodes, UnitCodes
from vqcortex.adapters.official import (
    PixelRange,
    built,
    codes_of,
    official,
    read_index,
    read_json,
    read_parts,
    recorded,
)
from vqcortex.errors import MissingExtra, ModelError


@pytest.fixture
def library(monkeypatch):
    """A library that is installed and has little in it."""
    found = ModuleType("lib")
    found.__version__ = "0.1"
    monkeypatch.setitem(sys.modules, "lib", found)
    return found


def test_an_absent_library_is_a_missing_extra():
    with pytest.raises(
        MissingExtra, match=r"needs no_such_library; install it with: pip install --upgrade 'vqcortex\["
    ):
        official("no_such_library", "Thing")


def test_a_library_that_is_too_old_is_named_with_its_version(library):
    library.Thing = int
    assert official("lib", "Thing") == (int,)
    with pytest.raises(MissingExtra, match=r"lib 0\.1 cannot give Newer \(.*\); bring it up to date with: pip install"):
        official("lib", "Newer")


@pytest.mark.parametrize("kind", [ImportError, RuntimeError])
def test_a_library_that_breaks_on_import_says_why(library, kind):
    def broken(name):
        raise kind("no torch\nlong trace")

    library.__getattr__ = broken
    with pytest.raises(MissingExtra, match=r"cannot give Thing \(no torch\)"):
        official("lib", "Thing")


def test_json_is_an_object(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(
        ModelError, match=r"has no config\.json; name the model's own folder, on the hub as owner/name#"
    ):
        read_json(path)
    path.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(ModelError, match="holds a list where an object of settings is needed"):
        read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_a_module_is_built_without_numbers(tmp_path):
    assert built(lambda: nn.Linear(2, 3), tmp_path).weight.is_meta


def test_a_config_that_builds_nothing_is_blamed(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json' describes no model that can be built \(.*; restore it"):
        built(lambda: nn.Linear("two", 3), tmp_path / "config.json")


def test_an_index_tells_the_file_of_every_tensor(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert read_index(path) == {"a": "1.safetensors", "b": "2.safetensors"}
    path.write_text("{}")
    with pytest.raises(ModelError, match="has no weight_map"):
        read_index(path)


@pytest.mark.parametrize("name", ["../1.safetensors", "/etc/passwd", "x/1.safetensors", 3, ".."])
def test_an_index_cannot_point_elsewhere(tmp_path, name):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="which is not beside it; do not use this model"):
        read_index(path)


def test_parts_are_put_together(tmp_path):
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"a": torch.ones(2), "other": torch.zeros(1)}, one)
    save_file({"b": torch.ones(3)}, two)
    assert sorted(read_parts({one: ["a"], two: None}, ())) == ["a", "b"]
    with pytest.raises(ModelError, match=r"2\.safetensors' lacks 'c', which the index beside it promises"):
        read_parts({two: ["c"]}, ())


@pytest.mark.parametrize("kind", [TableCodes, UnitCodes])
def test_codes_are_the_module_s_own_table(kind):
    table = nn.Embedding(5, 3)
    codes = codes_of(table.weight, kind)
    assert codes.weight is table.weight
    both = nn.ModuleList([table, codes]).double()
    assert both[0].weight.data_ptr() == both[1].weight.data_ptr()
    assert codes_of(torch.ones(2, 2), kind).table().shape == (2, 2)


def test_settings_become_bytes_in_a_fixed_order():
    assert torch.equal(recorded({"a": 1, "b": [2]}), recorded({"b": [2], "a": 1}))
    assert bytes(recorded({"a": 1}).tolist()) == b'{"a": 1}'


def test_a_range_is_left_the_way_it_was_entered():
    pixels = torch.rand(2, 3, 4, 5)
    found = PixelRange((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 2.0)
    entered = found.enter(pixels)
    torch.testing.assert_close(entered[:, 1], (2 * pixels[:, 1] - 0.5) / 0.3)
    torch.testing.assert_close(found.leave(entered), pixels)
    assert found.leave(torch.full((1, 3, 1, 1), 9.0)).max() == 1
    assert found.leave(torch.full((1, 3, 1, 1), -9.0)).min() == 0


@pytest.mark.parametrize(
    "numbers",
    [((0.5, 0.5), (1, 1, 1)), ((0, 0, 0), (1, 1, 0)), ((0, 0, float("nan")), (1, 1, 1)), ((0, 0, 0), (1, 1, 1), -1)],
    ids=["two channels", "no spread", "nan", "negative scale"],
)
def test_a_range_without_sense_is_refused(numbers):
    with pytest.raises(
        ModelError, match="of the pixels are wrong; wanted are three numbers each, and spread and scale"
    ):
        PixelRange(*numbers)
