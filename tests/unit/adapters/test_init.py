"""Opening models: by name, by path, live, from installed packages."""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vqcortex.adapters as adapters
from vqcortex.adapters import FAMILIES, GROUP, families, family_of, generator_of, load_model
from vqcortex.adapters.family import Family
from vqcortex.adapters.protocol import ENCODE, Adapter, Generator
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError, UnknownName

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
VAR = GOLDEN / "var_vqvae" / "vae_ch32v64z8.pth"
MISHA = GOLDEN / "mishalaskin_vqvae" / "vqvae_data_tiny.pth"


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_the_toy_opens_and_generates():
    model = load_model("toy:2x2")
    assert isinstance(model, Adapter)
    assert isinstance(model, Generator)
    assert model.grid == (2, 2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("zoo:fashon", "Did you mean 'zoo:fashion'"),
        ("fashion", "Did you mean 'zoo:fashion'"),
        ("tou", "Did you mean 'toy'"),
        ("tamming:vqgan", "Did you mean 'taming:PATH'"),
        ("rosinalty:vqvae.pt", "Did you mean 'rosinality:PATH'"),
        ("./nowhere.pt", "or the path of a checkpoint"),
    ],
)
def test_an_unknown_model_says_what_was_meant(name, hint):
    with pytest.raises(UnknownName, match=hint):
        load_model(name)


def test_families_are_listed():
    assert {"toy", "zoo", "mishalaskin", "rosinality", "var", "zalando"} <= set(FAMILIES)
    assert [family.name for family in families()] == sorted(FAMILIES)


def test_every_line_of_the_registry_names_its_family():
    assert {name: family_of(name).name for name in FAMILIES} == {name: name for name in FAMILIES}


def test_an_unknown_family_is_refused():
    with pytest.raises(UnknownName, match=r"no model family named 'tou'; known: .*Did you mean 'toy'"):
        family_of("tou")


def test_a_model_that_cannot_generate_says_what_to_do():
    mute = types.SimpleNamespace(**{name: getattr(ToyAdapter(), name) for name in dir(Adapter) if name[0] != "_"})
    for name in ("name", "family", "identity", "grid", "size", "levels", "concepts", "k", "d", "codebook", "device"):
        setattr(mute, name, getattr(ToyAdapter(name="mute"), name))
    mute.abilities = frozenset({ENCODE})
    assert isinstance(mute, Adapter)
    with pytest.raises(ConfigError, match="'mute' cannot generate images; encode real ones"):
        generator_of(mute)
    assert generator_of(ToyAdapter()).grid == (4, 4)


def test_half_floats_have_no_business_on_the_cpu():
    with pytest.raises(ConfigError, match=r"dtype=float16 .* has no convolutions on the CPU; use \?dtype=bfloat16"):
        load_model(f"mishalaskin:{MISHA}?dtype=float16")
    assert load_model(f"mishalaskin:{MISHA}?dtype=bfloat16").dtype == torch.bfloat16


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="device='cuda:99' is not on this machine"):
        load_model("toy", "cuda:99")


# ---------------------------------------------------------------------------------------------------------------------
# Paths


def test_a_path_is_recognised_and_says_by_what():
    model = load_model(MISHA)
    assert model.family == "mishalaskin"
    assert model.name == f"mishalaskin:{MISHA}"
    assert "vector_quantization.embedding.weight" in model.recognised
    assert load_model(model.name).recognised == ""


def test_a_path_may_have_options():
    model = load_model(f"{VAR}?scales=1,2,3,5,8")
    assert (model.family, model.grid) == ("var", (1, 103))


def test_a_path_with_strange_signs_in_it_is_a_path(tmp_path):
    place = tmp_path / "what? #1 model.pth"
    place.write_bytes(MISHA.read_bytes())
    assert load_model(place).family == "mishalaskin"


def test_a_folder_called_like_an_embedded_model_does_not_stand_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("toy", "zoo:fashion"):
        (tmp_path / name).mkdir()
        assert load_model(name).name == name


def test_a_relative_path_opens_from_anywhere_afterwards(tmp_path, monkeypatch):
    (tmp_path / "model.pth").write_bytes(MISHA.read_bytes())
    monkeypatch.chdir(tmp_path)
    name = load_model("model.pth").name
    monkeypatch.chdir("/")
    assert load_model(name).family == "mishalaskin"


def test_a_file_of_no_known_family_says_what_it_begins_with(tmp_path):
    save_file({"one": torch.zeros(2), "two": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ModelError, match=r"is of no family that is known \(.*\): the file's state dict begins with one"
    ):
        load_model(tmp_path / "x.safetensors")
    torch.save({"epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="the file holds no state dict; write FAMILY:PATH"):
        load_model(tmp_path / "x.pt")


def test_a_folder_of_no_known_family_says_what_it_holds(tmp_path):
    with pytest.raises(ModelError, match="the folder holds nothing; write FAMILY:PATH"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"the folder holds notes\.txt; write FAMILY:PATH"):
        load_model(tmp_path)


def test_files_that_two_families_know_are_asked_about(tmp_path, monkeypatch):
    both = [
        Family(name=name, title="", formats="x", abilities=(), open=lambda _: ToyAdapter(), recognise=lambda _: "yes")
        for name in ("left", "right")
    ]
    monkeypatch.setattr(adapters, "families", lambda: iter(both))
    with pytest.raises(ModelError, match=r"could be of 2 families; write left:.* or right:"):
        load_model(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Live objects


def test_an_adapter_is_taken_as_it_is():
    toy = ToyAdapter(grid=(2, 3))
    assert load_model(toy) is toy


def test_a_live_object_of_no_known_family_says_what_to_do():
    with pytest.raises(
        ModelError, match=r"no family knows live objects of torch\.nn.*Linear; implement .* or wrap its"
    ):
        load_model(nn.Linear(2, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Installed packages

PACKAGE = """
from vqcortex.adapters.family import Family
from vqcortex.adapters.toy import ToyAdapter

def opened(spec):
    return ToyAdapter(grid=(1, 2), name=spec.text, family="pastel")

FAMILY = Family(
    name="pastel", title="Pastels", formats="nothing", abilities=("encode", "decode"), open=opened,
    recognise=lambda files: "a file named pastel" if files.path.name == "pastel" else None,
)
OTHER = "no family"
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that is installed while the test runs: its code and its dist-info stand on the path."""

    def install(*lines: str, code: str = PACKAGE) -> None:
        (tmp_path / "pastel_models.py").write_text(code)
        about = tmp_path / "pastel_models-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pastel-models\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    sys.modules.pop("pastel_models", None)


def test_a_family_of_an_installed_package_opens_like_ours(installed, tmp_path):
    installed("pastel = pastel_models:FAMILY")
    assert family_of("pastel").title == "Pastels"
    assert load_model("pastel:anything").name == "pastel:anything"
    assert "pastel" in [family.name for family in families()]
    (tmp_path / "pastel").touch()
    assert load_model("pastel:" + str(tmp_path / "pastel")).grid == (1, 2)
    with pytest.raises(UnknownName, match="Did you mean 'pastel:PATH'"):
        load_model("pastle:anything")


def test_ours_cannot_be_replaced(installed):
    installed("toy = pastel_models:FAMILY")
    assert load_model("toy").grid == (4, 4)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("pastel = pastel_models:NOTHING", PACKAGE, "of entry point 'pastel_models:NOTHING' cannot be loaded"),
        ("pastel = nowhere_at_all:FAMILY", PACKAGE, r"cannot be loaded \(No module named 'nowhere_at_all'\); mend or"),
        (
            "pastel = pastel_models:FAMILY",
            "1 / 0",
            r"cannot be loaded \(division by zero\); mend or remove the package",
        ),
        ("pastel = pastel_models:OTHER", PACKAGE, r"'pastel_models:OTHER' is str, not a vqcortex\.adapters\.family"),
        ("paste = pastel_models:FAMILY", PACKAGE, "'paste' = 'pastel_models:FAMILY' brings a family named 'pastel'"),
    ],
)
def test_a_broken_package_is_named(installed, line, code, message):
    installed(line, code=code)
    with pytest.raises(ModelError, match=message):
        load_model(f"{line.split()[0]}:anything")
    assert load_model("toy").grid == (4, 4)
