"""Pickles on paper: what they would import, and that nothing which stands in for it can do anything."""

import argparse
import io
import os
import pickle
import pickletools
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from vqcortex.errors import ModelError
from vqcortex.pickles import Outline, Record, outline_of, some, stand_ins, without_notes

PATH = Path("model.ckpt")


class Calls:
    """Pickles as a call of something."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def outline(value, protocol=2):
    stream = io.BytesIO(pickle.dumps(value, protocol) + b"behind")
    found = outline_of(stream)
    assert stream.read() == b"behind"
    return found


def by_name(outline):
    return {f"{module}.{name}": use for (module, name), use in outline.names.items()}


VALUE = {
    "plain": [1, 2.5, "text", None, True, (1, 2, 3, 4), {5}, b"bytes", 10**30, "x" * 300],
    "again": ["text", "text"],
    "namespace": argparse.Namespace(rate=1e-3),
    "counts": defaultdict(list, a=[1]),
    "ordered": OrderedDict(a=1),
    "path": Path("a/b"),
    "numbers": np.arange(3),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_name_is_found_in_every_protocol(protocol):
    found = set(by_name(outline(VALUE, protocol)))
    assert {"argparse.Namespace", "collections.defaultdict", "collections.OrderedDict", "numpy.dtype"} <= found


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_names_are_those_that_python_itself_would_import(protocol):
    class Watching(pickle.Unpickler):
        def find_class(self, module, name):
            seen.add((module, name))
            return super().find_class(module, name)

    seen = set()
    content = pickle.dumps(VALUE, protocol, fix_imports=False)
    Watching(io.BytesIO(content), fix_imports=False).load()
    assert set(outline_of(io.BytesIO(content)).names) == seen
    assert len(seen) > 5


def test_what_is_filled_like_a_dict_or_a_list_is_noted():
    found = by_name(outline({"counts": defaultdict(list, a=1, b=2), "one": OrderedDict(a=1), "rest": Path("x")}))
    assert found["collections.defaultdict"] == "keys"
    assert found["collections.OrderedDict"] == "keys"
    assert [use for name, use in found.items() if name.startswith("pathlib")] == [""]


def test_items_of_a_list_class_are_noted():
    content = b"\x80\x02cpackage\nNumbers\n)\x81(K\x01K\x02e."
    assert by_name(outline_of(io.BytesIO(content))) == {"package.Numbers": "items"}


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02", b"\x80\x02}", b"\x80\x02e.", b"\x80\x02R.", b"\x80\x02h\x05.", b"\xff.", b"cmodule\n."],
)
def test_what_is_no_whole_pickle_raises(content):
    with pytest.raises(Exception):  # noqa: B017, PT011  the caller says one thing about all of them
        outline_of(io.BytesIO(content))


def test_notes_on_sources_become_the_bare_class():
    note = b"(X\x06\x00\x00\x00modulecargparse\nNamespace\nX\x01\x00\x00\x00fX\x01\x00\x00\x00st"
    content = b"\x80\x02]" + note + b"Q)\x81a" + note.replace(b"Namespace", b"Action") + b"Qa."
    found = outline_of(io.BytesIO(content))
    assert len(found.notes) == 2
    namespace, action = pickle.loads(without_notes(content, found.notes))
    assert type(namespace) is argparse.Namespace
    assert action is argparse.Action


def test_a_note_on_a_storage_stays():
    assert outline_of(io.BytesIO(b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02K\x03tQ.")).notes == []


def test_without_notes_nothing_changes():
    content = pickle.dumps(VALUE, 2)
    assert without_notes(content, []) == content


def test_names_that_torch_knows_need_no_stand_in():
    known = outline({"a": OrderedDict(), "b": torch.Size([1]), "c": torch.float16})
    assert [name for _, name in stand_ins(known.names, inert=(), path=PATH)] == ["vqcortex.pickles._class_of"]


def test_python_2_names_get_the_name_that_torch_looks_up():
    found = stand_ins({("__builtin__", "eval"): ""}, inert=("builtins.eval",), path=PATH)
    assert found[0][1] == "builtins.eval"


@pytest.mark.parametrize("name", [("builtins", "eval"), ("builtins", "getattr"), ("io", "open"), ("torch.hub", "load")])
def test_a_name_that_nobody_vouched_for_is_refused_with_the_next_step(name):
    full = ".".join(name)
    with pytest.raises(ModelError, match=rf"'model.ckpt' would import '{full}'.*\?ignore={full} .* safetensors"):
        stand_ins({name: ""}, inert=("argparse",), path=PATH)


def test_many_refused_names_are_counted():
    names = {("package", f"Class{i}"): "" for i in range(7)}
    with pytest.raises(ModelError, match=r"'package.Class0', 'package.Class1', 'package.Class2' and 4 more"):
        stand_ins(names, inert=(), path=PATH)


@pytest.mark.parametrize("module", ["os", "posix", "nt", "sys"])
def test_the_system_is_never_read_not_even_where_it_is_asked_to_be_ignored(module):
    with pytest.raises(ModelError, match=f"'{module}.system', which reaches into the system and is never read"):
        stand_ins({(module, "system"): ""}, inert=(module, f"{module}.system"), path=PATH)


def test_a_package_vouches_for_what_is_below_it_and_for_nothing_that_only_begins_alike():
    stand_ins({("numpy.core", "x"): "", ("numpy", "y"): ""}, inert=("numpy",), path=PATH)
    with pytest.raises(ModelError, match=r"'numpyish.x'"):
        stand_ins({("numpyish", "x"): ""}, inert=("numpy",), path=PATH)


def test_a_record_takes_anything_and_does_nothing():
    ((made, _), *_) = stand_ins({("builtins", "eval"): ""}, inert=("builtins.eval",), path=PATH)
    record = made("1 / 0", globals={}, x=1)
    record.__setstate__({"a": 1})
    assert issubclass(made, Record)
    assert {record: 1, made: 2}[made] == 2
    assert record.state == {"a": 1}
    assert repr(record) == "<record of builtins.eval>"


def test_every_name_has_its_own_record():
    found = stand_ins({("a", "A"): "", ("a", "B"): ""}, inert=("a",), path=PATH)
    assert found[0][0] is not found[1][0]


def test_a_long_list_is_cut():
    assert some(["a", "b"]) == "'a', 'b'"
    assert some(list("abcde")) == "'a', 'b', 'c' and 2 more"


def test_an_outline_imports_nothing(tmp_path):
    target = tmp_path / "written"
    content = pickle.dumps([Calls(open, str(target), "w"), Calls(os.mkdir, str(target))])
    assert len(outline_of(io.BytesIO(content)).names) == 2
    assert not target.exists()
    assert "REDUCE" in {op.name for op, _, _ in pickletools.genops(content)}


def test_outlines_do_not_share_what_they_found():
    assert Outline().names is not Outline().names
