"""Foreign checkpoints: opened whole, never executed, and said in one line what is wrong with them."""

import argparse
import builtins
import collections
import os
import pickle
import struct
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vqcortex.checkpoints import (
    fill,
    read_checkpoint,
    read_pickled_module,
    shape_of,
    state_dict_of,
    under,
    without,
)
from vqcortex.errors import MissingExtra, ModelError
from vqcortex.pickles import Record

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PATH = Path("model.ckpt")
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)}
IS_ZIP = {"zip": True, "stream": False}  # the two formats of torch


class Calls:
    """Pickles as a call of something: what a hostile checkpoint is made of."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class WrittenModule(nn.Module):
    """A module that carries something along."""

    def __init__(self, carried=None):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.carried = carried


def name_of(function):
    return f"{function.__module__}.{function.__qualname__}"


def saved(path, value, form):
    """`value` in one of torch's formats."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Couldn't retrieve source code")
        torch.save(value, path, _use_new_zipfile_serialization=IS_ZIP[form])
    return path


def packed(array):
    """An array as Flax writes it."""
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def flax_file(path, tree):
    path.write_bytes(msgpack.packb(tree))
    return path


def replaced(source, path, name, content, compression=zipfile.ZIP_STORED):
    """A zip archive written again with one entry replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.namelist():
            if entry != name:
                new.writestr(entry, old.read(entry))
        new.writestr(name, content)
    return path


def same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
        assert found[name].dtype == tensor.dtype


# Formats


def test_safetensors_open(tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors")
    same(dict(sorted(read_checkpoint(tmp_path / "m.safetensors").items())), dict(sorted(TENSORS.items())))


@pytest.mark.parametrize("form", IS_ZIP)
def test_both_formats_of_torch_open(tmp_path, form):
    found = read_checkpoint(saved(tmp_path / "m.pt", {"state_dict": TENSORS, "epoch": 3}, form))
    assert found["epoch"] == 3
    same(found["state_dict"], TENSORS)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.msgpack", "m", "m.zip"])
def test_the_content_counts_and_not_the_ending(tmp_path, name):
    for form in IS_ZIP:
        same(read_checkpoint(saved(tmp_path / name, TENSORS, form)), TENSORS)
    save_file(TENSORS, tmp_path / name)
    same(dict(sorted(read_checkpoint(tmp_path / name).items())), dict(sorted(TENSORS.items())))


def test_an_archive_stays_on_disk_until_it_is_touched(tmp_path):
    saved(tmp_path / "m.pt", {"big": torch.zeros(1_000_000)}, "zip")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is mapped")
    found = read_checkpoint(tmp_path / "m.pt")
    assert str(tmp_path / "m.pt") in maps.read_text()
    assert not found["big"].any()


def test_an_archive_packed_by_another_tool_opens_too(tmp_path):
    source = saved(tmp_path / "m.pt", TENSORS, "zip")
    again = replaced(source, tmp_path / "n.pt", "m/extra", b"x", zipfile.ZIP_DEFLATED)
    same(read_checkpoint(again), TENSORS)


def test_numbers_that_lie_crooked_in_an_archive_are_straightened(tmp_path):
    source = saved(tmp_path / "m.pt", TENSORS, "zip")
    for padding in range(4):
        crooked = replaced(source, tmp_path / f"{padding}.pt", "m/.data/serialization_id", b"")
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(crooked, "w") as new:
            new.writestr("m/data.pkl", old.read("m/data.pkl"))
            new.writestr("m/pad" + "x" * padding, b"")
            for entry in old.namelist()[1:]:
                new.writestr(entry, old.read(entry))
        module = nn.Module()
        module.a, module.n = nn.Linear(3, 2), nn.Buffer(torch.tensor(0))
        fill(module, read_checkpoint(crooked), path=crooked)
        assert all(one.data_ptr() % one.element_size() == 0 for one in (*module.parameters(), *module.buffers()))
        torch.testing.assert_close(module.a.weight.data, TENSORS["a.weight"])
        assert module.n == 7


def test_a_flax_tree_opens(tmp_path):
    tree = {
        "conv": {"kernel": packed(np.arange(6, dtype="f4").reshape(2, 3)), "none": packed(np.zeros((0, 3), "f4"))},
        "step": packed(np.array(5)),
        "half": packed(np.array([1.5], dtype="f2")),
        "flags": packed(np.array([True, False])),
        "z": msgpack.ExtType(2, msgpack.packb((1.0, -2.0))),
        "scalar": msgpack.ExtType(3, packed(np.array(2.5)).data),
        "name": "vqgan",
        "list": [1, None],
    }
    found = read_checkpoint(flax_file(tmp_path / "m.msgpack", tree))
    torch.testing.assert_close(found["conv"]["kernel"], torch.arange(6.0).reshape(2, 3))
    assert found["conv"]["none"].shape == (0, 3)
    assert (found["step"].item(), found["step"].shape) == (5, ())
    assert found["half"].dtype == torch.float16
    assert found["flags"].tolist() == [True, False]
    assert (found["z"], found["scalar"], found["name"], found["list"]) == (1 - 2j, 2.5, "vqgan", [1, None])


def test_bfloat16_of_flax_opens(tmp_path):
    numbers = torch.tensor([1.0, -2.5, 3e38]).bfloat16()
    content = msgpack.packb(((3,), "bfloat16", numbers.view(torch.int16).numpy().tobytes()))
    found = read_checkpoint(flax_file(tmp_path / "m.msgpack", {"a": msgpack.ExtType(1, content)}))
    torch.testing.assert_close(found["a"], numbers, rtol=0, atol=0)


def test_a_flax_array_in_chunks_is_joined(tmp_path):
    array = np.arange(24, dtype="f4").reshape(2, 3, 4)
    chunks = {str(i): packed(array.reshape(-1)[i * 10 : (i + 1) * 10]) for i in range(3)}
    tree = {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3, "2": 4}, "chunks": chunks}}
    found = read_checkpoint(flax_file(tmp_path / "m.msgpack", tree))
    torch.testing.assert_close(found["a"], torch.from_numpy(array))


def test_the_official_flax_model_opens():
    found = read_checkpoint(GOLDEN / "vqgan_jax" / "flax_model.msgpack")
    expected = read_checkpoint(GOLDEN / "vqgan_jax" / "expected.safetensors")
    torch.testing.assert_close(found["quantize"]["embedding"]["embedding"], expected["codebook"], rtol=0, atol=0)


def test_without_msgpack_the_remedy_is_named(tmp_path, monkeypatch):
    flax_file(tmp_path / "m.msgpack", {})
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vqcortex\[flax\]'"):
        read_checkpoint(tmp_path / "m.msgpack")


# Bystanders


def test_a_checkpoint_of_lightning_1_keyed_by_a_class_opens():
    path = GOLDEN / "taming_vqgan" / "checkpoints" / "class_keyed_callbacks.ckpt"
    found = read_checkpoint(path)
    (key,) = found["callbacks"]
    assert issubclass(key, Record)
    assert key.full_name == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert list(state_dict_of(found, path)) == ["quantize.embedding.weight"]


class Package:
    """A package that exists while a checkpoint is written, and not when it is read."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch
        self.names = []

    def add(self, name, source):
        module = types.ModuleType(name)
        self.patch.setitem(sys.modules, name, module)
        self.names.append(name)
        exec(source, module.__dict__)
        return module

    def remove(self):
        for name in self.names:
            self.patch.delitem(sys.modules, name)


@pytest.fixture
def package(monkeypatch):
    return Package(monkeypatch)


OMEGACONF = """
class DictConfig:
    def __init__(self, content):
        self.__dict__["_content"] = content
    def __getattr__(self, name):
        raise AttributeError(name)
    def __getstate__(self):
        return dict(self.__dict__)
class Keys(dict):
    pass
class Items(list):
    pass
class Slots:
    __slots__ = ("a",)
class Arguments:
    def __new__(cls, *arguments):
        return object.__new__(cls)
    def __getnewargs__(self):
        return (1, {"two": 3})
"""


@pytest.mark.parametrize("form", IS_ZIP)
def test_bystanders_become_records_and_the_tensors_stay(tmp_path, form, package):
    package.add("omegaconf", "")
    module = package.add("omegaconf.dictconfig", OMEGACONF)
    keys, slots = module.Keys(a=1, b=TENSORS["n"]), module.Slots()
    keys.attribute, slots.a = 5, 6
    value = {
        "state_dict": TENSORS,
        "args": argparse.Namespace(rate=1e-3, path=Path("a/b")),
        "counts": collections.defaultdict(dict, x=1),
        "empty": collections.defaultdict(list),
        "config": module.DictConfig({"a": [1, 2]}),
        "keys": keys,
        "items": module.Items([1, 2]),
        "slots": slots,
        "arguments": module.Arguments(),
        module.DictConfig: "keyed by a class",
        "array": np.arange(3.0),
        "objects": np.array([1, "a"], dtype=object),
        "scalar": np.float64(2.0),
        "dtype": np.dtype("f4"),
        "frozen": frozenset([1]),
        "any": [slice(1, 2), range(3), b"x", {1}, 1 + 2j, np.float32],
    }
    saved(tmp_path / "m.ckpt", value, form)
    package.remove()
    found = read_checkpoint(tmp_path / "m.ckpt")
    same(state_dict_of(found, tmp_path / "m.ckpt"), TENSORS)
    assert found["args"].state["rate"] == 1e-3
    assert repr(found["args"].state["path"]).startswith("<record of pathlib.")
    assert found["counts"] == {"x": 1}
    assert found["config"].state == {"_content": {"a": [1, 2]}}
    assert (found["keys"]["a"], found["keys"]["b"], found["items"]) == (1, 7, [1, 2])
    assert found["slots"].state == (None, {"a": 6})
    named = [isinstance(found[name], Record) for name in ("arguments", "array", "objects", "scalar", "dtype", "frozen")]
    assert all(named)
    assert [value for key, value in found.items() if isinstance(key, type)] == ["keyed by a class"]


def test_nothing_stays_allowed_after_a_checkpoint_was_read(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(saved(tmp_path / "m.pt", argparse.Namespace(a=1), "zip"))
    with pytest.raises(ModelError, match="fractions"):
        read_checkpoint(saved(tmp_path / "m.pt", [argparse.Namespace(), __import__("fractions").Fraction(1)], "zip"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_is_ignored_becomes_a_record(tmp_path):
    path = saved(tmp_path / "m.pt", {"a": TENSORS["n"], "f": __import__("fractions").Fraction(1, 2)}, "zip")
    with pytest.raises(ModelError, match=r"'fractions.Fraction'.*\?ignore=fractions.Fraction"):
        read_checkpoint(path)
    for ignored in ("fractions.Fraction", "fractions"):
        assert repr(read_checkpoint(path, ignore=(ignored,))["f"]) == "<record of fractions.Fraction>"


# Hostile files: each would write a file, and none may


HOSTILE = {
    "open": lambda target: Calls(open, target, "w"),
    "exec": lambda target: Calls(exec, f"open({target!r}, 'w').close()"),
    "eval": lambda target: Calls(eval, f"open({target!r}, 'w').close()"),
    "system": lambda target: Calls(os.system, f"touch {target}"),
    "mkdir": lambda target: Calls(os.mkdir, target),
    "popen": lambda target: Calls(subprocess.check_call, ["touch", target]),
    "touch": lambda target: Calls(Path(target).touch),
    "torch": lambda target: Calls(torch.save, {}, target),
    "import": lambda target: Calls(builtins.__import__, "antigravity"),
}
REFUSED = {name: name_of(HOSTILE[name]("x").call[0]) for name in HOSTILE if name != "touch"}
REFUSED |= {"touch": "builtins.getattr"}  # how a method is pickled
REFUSED |= {"popen": "commands.check_call"}  # as Python 2 had it, which is what torch's pickles speak


@pytest.mark.parametrize("kind", [name for name in HOSTILE if name != "import"])
def test_what_the_tests_below_refuse_would_really_write(tmp_path, kind):
    target = tmp_path / "written"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a file that was opened and left
        pickle.loads(pickle.dumps(HOSTILE[kind](str(target)), 2))
    assert target.exists()


def zip_file(path, value):
    return saved(path, value, "zip")


def stream_file(path, value):
    return saved(path, value, "stream")


def module_zip(path, value):
    return saved(path, WrittenModule(value), "zip")


def module_stream(path, value):
    return saved(path, WrittenModule(value), "stream")


def zip_with_other_pickle(path, value):
    source = saved(path.with_suffix(".good"), {"state_dict": TENSORS}, "zip")
    return replaced(source, path, f"{path.stem}/data.pkl", pickle.dumps(value, 2))


def modern_pickle_in_zip(path, value):
    source = saved(path.with_suffix(".good"), {"state_dict": TENSORS}, "zip")
    return replaced(source, path, f"{path.stem}/data.pkl", pickle.dumps(value, 5))


def bare_pickle(path, value):
    path.write_bytes(pickle.dumps(value, 4))
    return path


def pickle_named_safetensors(path, value):
    return bare_pickle(path.with_suffix(".safetensors"), value)


def pickle_named_msgpack(path, value):
    return bare_pickle(path.with_suffix(".msgpack"), value)


def before_the_object(path, value):
    """In the first of a stream's five pickles, where torch has a number."""
    path.write_bytes(pickle.dumps(value, 2) + saved(path, TENSORS, "stream").read_bytes())
    return path


def behind_the_object(path, value):
    """In the last of a stream's five pickles, the names of the storages."""
    content = saved(path, {"a": 1}, "stream").read_bytes()
    path.write_bytes(content[: -len(pickle.dumps([], 2))] + pickle.dumps(value, 2))
    return path


FORMATS = [
    zip_file,
    stream_file,
    module_zip,
    module_stream,
    zip_with_other_pickle,
    modern_pickle_in_zip,
    bare_pickle,
    pickle_named_safetensors,
    pickle_named_msgpack,
    before_the_object,
    behind_the_object,
]


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("written", FORMATS, ids=lambda one: one.__name__)
def test_a_hostile_file_writes_nothing_and_its_name_is_said(tmp_path, written, kind):
    target = tmp_path / "target" / "written"
    target.parent.mkdir()
    path = written(tmp_path / "m.ckpt", HOSTILE[kind](str(target)))
    said = REFUSED[kind].replace("commands", "(commands|subprocess)")
    for read in (read_checkpoint, read_pickled_module):
        with pytest.raises(ModelError, match=rf"would import .*'{said}'"):
            read(path)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("form", IS_ZIP)
def test_a_hostile_name_that_is_ignored_still_does_nothing(tmp_path, form, kind):
    target = tmp_path / "target" / "written"
    target.parent.mkdir()
    path = saved(tmp_path / "m.ckpt", {"a": TENSORS["n"], "evil": HOSTILE[kind](str(target))}, form)
    if REFUSED[kind].startswith("posix."):
        with pytest.raises(ModelError, match="reaches into the system and is never read"):
            read_checkpoint(path, ignore=(REFUSED[kind],))
    elif kind == "touch":  # what getattr would give is called in turn, and a record cannot be called
        with pytest.raises(ModelError, match="cannot be read"):
            read_checkpoint(path, ignore=("builtins.getattr",))
    else:
        found = read_checkpoint(path, ignore=(REFUSED[kind],))
        assert isinstance(found["evil"], Record)
        assert found["a"] == 7
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("form", IS_ZIP)
def test_a_bystander_that_could_write_does_not(tmp_path, form):
    target = tmp_path / "written.npy"
    path = saved(tmp_path / "m.ckpt", {"a": TENSORS["n"], "evil": Calls(np.save, str(target), [1])}, form)
    assert isinstance(read_checkpoint(path)["evil"], Record)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()


def test_names_hidden_in_odd_ways_are_refused(tmp_path):
    odd = {
        "b'cbuiltins\\neval\\n'": b"\x80\x02cbuiltins\neval\n.",
        "python 2": b"\x80\x02c__builtin__\neval\n.",
        "instance": b"\x80\x02(X\x01\x00\x00\x001ibuiltins\neval\n.",
        "from the memo": b"\x80\x04X\x08\x00\x00\x00builtins\x94X\x04\x00\x00\x00eval\x940h\x00h\x01\x93.",
        "never called": b"\x80\x02cbuiltins\neval\n0N.",
    }
    for content in odd.values():
        (tmp_path / "m.pt").write_bytes(content)
        with pytest.raises(ModelError, match=r"would import 'builtins.eval'"):
            read_checkpoint(tmp_path / "m.pt")


def test_a_name_by_number_is_refused(tmp_path):
    import copyreg

    source = saved(tmp_path / "m.good", TENSORS, "zip")
    copyreg.add_extension("builtins", "eval", 200)
    try:
        path = replaced(source, tmp_path / "m.pt", "m/data.pkl", b"\x80\x02\x82\xc8X\x01\x00\x00\x001\x85R.")
        with pytest.raises(ModelError, match="cannot be read"):
            read_checkpoint(path)
    finally:
        copyreg.remove_extension("builtins", "eval", 200)


def test_an_extension_of_flax_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ModelError, match="extension 9 is none of Flax's"):
        read_checkpoint(flax_file(tmp_path / "m.msgpack", {"a": msgpack.ExtType(9, packed(np.ones(1)).data)}))


def test_an_array_of_objects_is_refused(tmp_path):
    tree = {"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))}
    with pytest.raises(ModelError, match="an array of 'object'"):
        read_checkpoint(flax_file(tmp_path / "m.msgpack", tree))


def test_a_flax_file_that_promises_more_than_it_holds_is_refused_at_once(tmp_path):
    for content in (b"\x81\xa1a\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x81\xa1a\xc9\xff\xff\xff\xff\x01"):
        (tmp_path / "m.msgpack").write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read"):
            read_checkpoint(tmp_path / "m.msgpack")


# Modules saved whole


UTILS = """
import torch
from torch import nn
class Conv2d(nn.Module):
    def __init__(self, n_in, n_out, kw):
        super().__init__()
        self.n_in, self.use_float16, self.device = n_in, True, torch.device("cpu")
        self.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw))
        self.b = nn.Parameter(torch.zeros(n_out))
"""
ENCODER = """
from collections import OrderedDict
from functools import partial
import torch
from torch import nn
from dall_e.utils import Conv2d
class EncoderBlock(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.id_path = nn.Identity()
        self.res_path = nn.Sequential(OrderedDict([("relu_1", nn.ReLU()), ("conv_1", Conv2d(n, n, 3))]))
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.device, self.names, self.absent = torch.device("cpu"), {"group_1", "group_2"}, None
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("not_kept", torch.arange(4), persistent=False)
        self.register_parameter("none", None)
        self.nothing = None
        block = EncoderBlock(4)
        self.blocks = nn.Sequential(OrderedDict([
            ("input", Conv2d(3, 4, 7)),
            ("group_1", nn.Sequential(OrderedDict([("block_1", block), ("pool", nn.MaxPool2d(kernel_size=2))]))),
            ("group_2", nn.Sequential(OrderedDict([("block_1", block), ("up", nn.Upsample(scale_factor=2))]))),
        ]))
"""


@pytest.fixture
def dall_e(package):
    package.add("dall_e", "")
    package.add("dall_e.utils", UTILS)
    module = package.add("dall_e.encoder", ENCODER)
    return types.SimpleNamespace(Encoder=module.Encoder, remove=package.remove)


@pytest.mark.parametrize("form", IS_ZIP)
def test_a_module_saved_whole_gives_its_state_dict_without_its_package(tmp_path, form, dall_e):
    module = dall_e.Encoder()
    expected = module.state_dict()
    saved(tmp_path / "encoder.pkl", module, form)
    dall_e.remove()
    found = read_pickled_module(tmp_path / "encoder.pkl")
    assert set(found) == set(expected)
    assert "blocks.group_2.block_1.res_path.conv_1.w" in found
    same(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("form", IS_ZIP)
def test_a_module_saved_whole_is_refused_where_nobody_asked_for_one(tmp_path, form, dall_e):
    saved(tmp_path / "encoder.pkl", dall_e.Encoder(), form)
    with pytest.raises(ModelError, match=r"would import 'dall_e.encoder.Encoder'.*\?ignore=dall_e.encoder.Encoder"):
        read_checkpoint(tmp_path / "encoder.pkl")


def test_the_older_format_brings_sources_along_and_they_are_left_alone(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(WrittenModule(), path, _use_new_zipfile_serialization=False)
    assert b"A module that carries something along." in path.read_bytes()
    found = read_pickled_module(path, ignore=(WrittenModule.__module__,))
    assert set(found) == {"conv.weight", "conv.bias"}


def test_a_module_inside_a_training_checkpoint_is_found(tmp_path):
    path = saved(tmp_path / "m.pt", {"epoch": 1, "model": nn.Linear(2, 1)}, "zip")
    assert set(read_pickled_module(path)) == {"weight", "bias"}


def test_a_plain_state_dict_is_as_good_as_a_module(tmp_path):
    same(read_pickled_module(saved(tmp_path / "m.pt", TENSORS, "zip")), TENSORS)


def record(**state):
    found = Record()
    found.__setstate__(state)
    return found


def test_a_module_that_holds_itself_comes_to_an_end():
    module = record(_parameters={"w": torch.ones(1)})
    module.state["_modules"] = {"again": module}
    assert len(state_dict_of(module, PATH)) <= 101


@pytest.mark.parametrize(
    "state",
    [
        None,
        5,
        {"_parameters": 5},
        {"_modules": [1]},
        {"_parameters": {"a": 1, 2: torch.ones(1)}},
        {"_buffers": record()},
    ],
)
def test_a_module_with_anything_in_its_tables_holds_no_tensors(state):
    module = Record()
    module.__setstate__(state)
    with pytest.raises(ModelError, match=r"'model.ckpt' holds no tensors by name"):
        state_dict_of(module, PATH)


# State dicts


@pytest.mark.parametrize("key", ["state_dict", "model", "ema"])
def test_a_state_dict_is_found_where_trainers_keep_it(key):
    same(state_dict_of({"epoch": 1, "step": torch.tensor(1), key: {**TENSORS, "note": "text"}}, PATH), TENSORS)


def test_a_state_dict_by_itself_is_found_though_one_of_its_tensors_has_such_a_name():
    same(
        state_dict_of({"model": TENSORS["n"], "b": TENSORS["a.bias"]}, PATH),
        {"model": TENSORS["n"], "b": TENSORS["a.bias"]},
    )


def test_of_several_the_first_key_counts_and_the_caller_can_choose():
    value = {"ema": {"a": torch.ones(1)}, "model": {"a": torch.zeros(1)}}
    assert state_dict_of(value, PATH)["a"] == 0
    assert state_dict_of(value, PATH, keys=("ema",))["a"] == 1


def test_the_prefix_of_distributed_training_is_taken_off_only_if_all_have_it():
    assert list(state_dict_of({"module.a": torch.ones(1), "module.b": torch.ones(1)}, PATH)) == ["a", "b"]
    assert list(state_dict_of({"module.a": torch.ones(1), "b": torch.ones(1)}, PATH)) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"epoch": 1, "b": 2, "c": 3, "d": 4}, "the keys 'epoch', 'b', 'c' and 1 more"),
        ([1], "list"),
        (None, "NoneType"),
    ],
)
def test_where_there_are_no_tensors_it_is_said_what_there_is(value, said):
    with pytest.raises(
        ModelError, match=f"under 'state_dict', 'model', 'ema', but {said}; save the model's state_dict"
    ):
        state_dict_of(value, PATH)


def test_parts_are_chosen_by_prefix():
    assert list(without(TENSORS, "a.")) == ["n"]
    assert list(without(TENSORS, "n", "a.b")) == ["a.weight"]
    assert list(without(TENSORS)) == list(TENSORS)
    assert list(under(TENSORS, "a.")) == ["weight", "bias"]


def test_a_shape_is_told_and_a_missing_key_named():
    assert shape_of(TENSORS, "a.weight", PATH) == (2, 3)
    with pytest.raises(ModelError, match=r"'model.ckpt' has no key 'c' among its 3: 'a.weight', 'a.bias', 'n'"):
        shape_of(TENSORS, "c", PATH)


# Filling a module


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def empty_network():
    with torch.device("meta"):
        return network()


def test_a_module_built_of_nothing_is_filled_and_stands_still():
    torch.manual_seed(0)
    source, module = network().eval(), empty_network()
    fill(module, source.state_dict(), path=PATH)
    held = [*module.parameters(), *module.buffers()]
    assert not any(one.is_meta or one.requires_grad for one in held)
    assert not module.training
    assert not module[1].training
    images = torch.rand(2, 3, 5, 5)
    torch.testing.assert_close(module(images), source(images))


def test_tensors_are_taken_as_they_are():
    tensors = network().state_dict()
    module = empty_network()
    fill(module, tensors, path=PATH)
    assert module[0].weight.data_ptr() == tensors["0.weight"].data_ptr()
    assert module[1].running_mean.data_ptr() == tensors["1.running_mean"].data_ptr()


@pytest.mark.parametrize("on_disk", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_floating_point_is_widened_and_whole_numbers_stay(on_disk):
    tensors = {
        name: one.to(on_disk) if one.is_floating_point() else one for name, one in network().state_dict().items()
    }
    module = empty_network()
    fill(module, tensors, path=PATH)
    assert {one.dtype for one in module.parameters()} == {torch.float32}
    assert module[1].num_batches_tracked.dtype == torch.int64
    torch.testing.assert_close(module[0].weight.data, tensors["0.weight"].float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_can_be_asked_for(dtype):
    module = empty_network()
    fill(module, network().state_dict(), path=PATH, dtype=dtype)
    assert {one.dtype for one in (*module.parameters(), *module.buffers())} == {dtype, torch.int64}


def test_whole_numbers_on_disk_become_what_the_model_has():
    tensors = network().state_dict()
    tensors["1.bias"], tensors["1.num_batches_tracked"] = (
        torch.ones(4, dtype=torch.int32),
        torch.tensor(3, dtype=torch.int32),
    )
    module = empty_network()
    fill(module, tensors, path=PATH)
    assert (module[1].bias.dtype, module[1].num_batches_tracked.dtype) == (torch.float32, torch.int64)


def test_what_is_stretched_on_disk_becomes_solid():
    tensors = network().state_dict()
    tensors["1.bias"] = torch.ones(1).expand(4)
    module = empty_network()
    fill(module, tensors, path=PATH)
    assert module[1].bias.is_contiguous()


class Tied(nn.Module):
    """One layer used twice, one parameter under two names, one buffer under two names."""

    def __init__(self):
        super().__init__()
        layer = nn.Linear(2, 2)
        self.stack = nn.ModuleList([layer, layer])
        self.embed, self.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("one", torch.ones(2))
        self.register_buffer("two", self.one)


@pytest.mark.parametrize("left_out", [(), ("head.weight",), ("embed.weight", "stack.0.weight", "one")], ids=str)
def test_what_is_one_tensor_stays_one(left_out):
    source = Tied()
    tensors = {name: one for name, one in source.state_dict().items() if name not in left_out}
    with torch.device("meta"):
        module = Tied()
    fill(module, tensors, path=PATH)
    assert module.head.weight is module.embed.weight
    assert module.stack[0].weight is module.stack[1].weight
    assert module.one is module.two
    same(module.state_dict(), source.state_dict())


def test_one_tensor_that_differs_in_the_file_is_an_error():
    tensors = {**Tied().state_dict(), "head.weight": torch.zeros(3, 2)}
    with pytest.raises(ModelError, match=r"'embed.weight' and 'head.weight' are one tensor in this model but differ"):
        fill(Tied(), tensors, path=PATH)


def test_missing_tensors_are_counted_and_named():
    tensors = without(network().state_dict(), "1.")
    with pytest.raises(
        ModelError,
        match=r"'model.ckpt' lacks 5 of the model's 7 tensors \('1.weight', '1.bias', '1.running_mean' and 2 more\)",
    ):
        fill(empty_network(), tensors, path=PATH)


def test_tensors_left_over_are_counted_and_named():
    tensors = {**network().state_dict(), "loss.weight": torch.ones(1)}
    with pytest.raises(ModelError, match=r"holds 1 that the model has no place for \('loss.weight'\)"):
        fill(empty_network(), tensors, path=PATH)


def test_missing_and_left_over_are_said_together():
    tensors = {name.replace("1.", "norm."): one for name, one in network().state_dict().items()}
    with pytest.raises(ModelError, match=r"lacks 5 of .* and holds 5 that the model has no place for \('norm.weight'"):
        fill(empty_network(), tensors, path=PATH)


def test_another_shape_is_said_with_both():
    tensors = {**network().state_dict(), "0.bias": torch.ones(5)}
    with pytest.raises(
        ModelError, match=r"'0.bias' has shape \(5,\) where the model expects \(4,\) \(1 of 7 tensors differ\)"
    ):
        fill(empty_network(), tensors, path=PATH)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_that_are_not_finite_are_counted(bad, dtype):
    tensors = network().state_dict()
    tensors["0.weight"] = tensors["0.weight"].to(dtype)
    tensors["0.weight"][0, 0, 0, :2] = bad
    with pytest.raises(ModelError, match=r"2 of 108 numbers of '0.weight' are NaN or infinite as float32"):
        fill(empty_network(), tensors, path=PATH)


def test_numbers_too_large_for_the_dtype_asked_for_are_counted():
    tensors = {**network().state_dict(), "0.bias": torch.tensor([1.0, 1e6, 1e6, 1.0])}
    with pytest.raises(ModelError, match=r"2 of 4 numbers of '0.bias' are NaN or infinite as float16"):
        fill(empty_network(), tensors, path=PATH, dtype=torch.float16)


def quantised():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantize")
        return torch.quantize_per_tensor(torch.ones(4), 1.0, 0, torch.qint8)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: torch.ones(4).to_sparse(), "is a sparse tensor"),
        (lambda: torch.ones(4, device="meta"), "is an empty tensor"),
        (quantised, "is a quantised tensor"),
    ],
    ids=["sparse", "empty", "quantised"],
)
def test_unusual_tensors_are_refused(made, said):
    tensor = made()
    with pytest.raises(ModelError, match=f"'0.bias' {said}; save it as plain dense numbers"):
        fill(empty_network(), {**network().state_dict(), "0.bias": tensor}, path=PATH)


def test_floating_point_where_whole_numbers_belong_is_refused():
    tensors = {**network().state_dict(), "1.num_batches_tracked": torch.tensor(1.5)}
    with pytest.raises(
        ModelError, match=r"'1.num_batches_tracked' has numbers of float32 where the model expects int64"
    ):
        fill(empty_network(), tensors, path=PATH)


def test_a_module_that_was_refused_is_as_before():
    module = network()
    before = {name: one.clone() for name, one in module.state_dict().items()}
    tensors = {**network().state_dict(), "1.running_var": torch.full((4,), float("nan"))}
    with pytest.raises(ModelError, match=r"1.running_var"):
        fill(module, tensors, path=PATH)
    same(module.state_dict(), before)
    assert module.training
    assert module[0].weight.requires_grad


class Computed(nn.Module):
    def __init__(self, is_buffer):
        super().__init__()
        self.inner = nn.Module()
        if is_buffer:
            self.inner.register_buffer("mask", torch.ones(2), persistent=False)
        else:
            self.inner.mask = torch.ones(2)


@pytest.mark.parametrize("is_buffer", [True, False], ids=["buffer", "attribute"])
def test_what_a_file_cannot_bring_must_not_be_empty(is_buffer):
    fill(Computed(is_buffer), {}, path=PATH)
    with torch.device("meta"):
        module = Computed(is_buffer)
    with pytest.raises(ModelError, match=r"Computed computes 'inner.mask' for itself and does not save it"):
        fill(module, {}, path=PATH)


# Broken files


PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; download it again"),
        (PNG, "begins with b'.x89PNG.*neither safetensors nor a checkpoint of torch"),
        (b"hi", "begins with b'hi'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "is a web page and not the file itself"),
        (pickle.dumps({"a": 1}, 2), "is a Python pickle but none of torch's"),
        (struct.pack("<Q", 10**12) + b"{" + bytes(50), "begins with"),
    ],
    ids=["empty", "png", "short", "lfs", "html", "pickle", "endless header"],
)
def test_what_is_no_checkpoint_is_told_apart(tmp_path, content, said):
    (tmp_path / "m.ckpt").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_checkpoint(tmp_path / "m.ckpt")


@pytest.mark.parametrize("content", [b"", b"hello", PNG, b"\x80", b"\x81\xa1a", b"\x01", msgpack.packb({}) + b"x"])
def test_what_only_bears_the_name_of_flax_is_refused(tmp_path, content):
    if content == b"\x80":
        content = msgpack.packb([1, 2])
    (tmp_path / "m.msgpack").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read|is no tree of msgpack"):
        read_checkpoint(tmp_path / "m.msgpack")


def test_a_flax_file_under_another_name_is_told_how_to_be_named(tmp_path):
    flax_file(tmp_path / "m.ckpt", {"a": packed(np.ones(3))})
    with pytest.raises(ModelError, match=r"nor does its name end in .msgpack as Flax's do"):
        read_checkpoint(tmp_path / "m.ckpt")


def test_an_absent_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"none.pt' cannot be opened: No such file or directory; check the path"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="is a folder; name the file in it that holds the weights"):
        read_checkpoint(tmp_path)


def test_other_zip_archives_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.ones(2))
    with pytest.raises(ModelError, match=r"is a zip archive without torch's a.npy/data.pkl"):
        read_checkpoint(tmp_path / "m.npz")
    source = saved(tmp_path / "m.pt", TENSORS, "zip")
    with pytest.raises(ModelError, match="is TorchScript, which is code; save the model's state_dict"):
        read_checkpoint(replaced(source, tmp_path / "script.pt", "m/constants.pkl", b""))


def whole_files(folder):
    """One small checkpoint in every format, as (bytes, ending)."""
    value = {"state_dict": network().state_dict(), "args": argparse.Namespace(a=1), "x": np.ones(2)}
    forms = {form: saved(folder / form, value, form).read_bytes() for form in IS_ZIP}
    save_file(network().state_dict(), folder / "safetensors")
    tree = {"a": {"b": packed(np.ones((2, 3), "f4"))}, "c": packed(np.arange(5))}
    return {
        "zip": (forms["zip"], ".pt"),
        "stream": (forms["stream"], ".pt"),
        "safetensors": ((folder / "safetensors").read_bytes(), ".safetensors"),
        "flax": (msgpack.packb(tree), ".msgpack"),
    }


FORMS = ["zip", "stream", "safetensors", "flax"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_cut_short_is_refused(tmp_path, form):
    content, ending = whole_files(tmp_path)[form]
    path = tmp_path / f"cut{ending}"
    path.write_bytes(content)
    read_checkpoint(path)
    for length in {1, 5, 9, 20, *(len(content) * part // 20 for part in range(1, 20)), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match="cut" + ending):
            read_checkpoint(path)


def refusal_of(path, *, is_filled):
    """What is said against a checkpoint, or "" where it opens."""
    try:
        found = read_checkpoint(path)
        if is_filled:
            fill(network(), state_dict_of(found, path), path=path)
    except ModelError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, whole_files(folder)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=80, derandomize=True)
@given(data=st.data())
def test_altered_bytes_open_or_are_refused_and_nothing_else(whole, form, data):
    folder, files = whole
    content, ending = files[form]
    altered = bytearray(content)
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for at, byte in data.draw(st.lists(places, min_size=1, max_size=8)):
        altered[at] = byte
    path = folder / f"altered{ending}"
    path.write_bytes(altered[: data.draw(st.integers(0, len(altered))) or None])
    assert "\n" not in refusal_of(path, is_filled=form != "flax")


def test_a_protocol_that_the_safe_reader_does_not_speak_is_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "m.pt", pickle_protocol=4)
    with pytest.raises(ModelError, match=r"cannot be read .*Unsupported operand 149\).* convert it to safetensors"):
        read_checkpoint(tmp_path / "m.pt")


def test_torch_s_advice_to_read_without_safety_is_not_passed_on(tmp_path):
    path = saved(tmp_path / "m.pt", {"a": Calls(Path("x").touch)}, "zip")
    with pytest.raises(ModelError, match="call reduce for unrecognized function") as caught:
        read_checkpoint(path, ignore=("builtins.getattr",))
    assert "weights_only" not in str(caught.value)
