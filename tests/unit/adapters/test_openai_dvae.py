"""OpenAI's dVAE: files of every form, halves, and what is said of broken ones."""

import os
import sys
import types

import pytest
import torch
from damage import SAID, cut_short, damaged, said
from parity.golden import DATA
from safetensors.torch import save_file
from torch import nn

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.openai_dvae import Decoder, Encoder, Sizes, build_dvae, recognise, sizes_of, wrap
from vqcortex.errors import ConfigError, ModelError

FOLDER = DATA / "openai_dvae"
HALVES = {half: torch.load(FOLDER / f"{half}_state_dict.pt", weights_only=True) for half in ("encoder", "decoder")}


def saved(folder, name="encoder.pt", tensors=HALVES["encoder"]):
    torch.save(tensors, folder / name)
    return folder / name


class Conv2d(nn.Module):
    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)


def tree_of(tensors):
    """Modules inside modules, as the official class has them, with layers that hold no numbers between them."""
    root = nn.Module()
    for key in (key for key in tensors if key.endswith(".w")):
        at = root
        *above, last, _ = key.split(".")
        for name in above:
            if name not in dict(at.named_children()):
                at.add_module(name, nn.Sequential())
            at = at.get_submodule(name)
        at.add_module(f"relu_{last}", nn.ReLU())
        at.add_module(last, Conv2d(tensors[key], tensors[f"{key[:-1]}b"]))
    return root


@pytest.fixture
def dall_e(monkeypatch):
    """A stand-in for the official package; not importable once the test has removed it."""
    package = types.ModuleType("dall_e")
    for name, half in (("encoder", "Encoder"), ("decoder", "Decoder")):
        module = types.ModuleType(f"dall_e.{name}")
        kind = type(half, (nn.Module,), {"__module__": module.__name__})
        setattr(module, half, kind)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        setattr(package, name, module)
    utils = types.ModuleType("dall_e.utils")
    monkeypatch.setattr(Conv2d, "__module__", "dall_e.utils")
    utils.Conv2d = Conv2d
    monkeypatch.setitem(sys.modules, "dall_e.utils", utils)
    monkeypatch.setitem(sys.modules, "dall_e", package)
    return package


def live(package, half):
    found = getattr(getattr(package, half), half.capitalize())()
    found.blocks = tree_of(HALVES[half]).blocks
    return found


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # of the stand-ins, when they are saved
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_modules_that_were_saved_whole_open_without_their_package(tmp_path, dall_e, monkeypatch, is_zip):
    for half in HALVES:
        torch.save(live(dall_e, half), tmp_path / f"{half}.pkl", _use_new_zipfile_serialization=is_zip)
    for name in [name for name in sys.modules if name.startswith("dall_e")]:
        monkeypatch.delitem(sys.modules, name)
    assert load_model(tmp_path).identity == load_model(FOLDER).identity
    assert load_model(tmp_path / "decoder.pkl").abilities == {"decode"}
    assert not any(name.startswith("dall_e") for name in sys.modules)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["openai-dvae:", ""], ids=["named", "recognised"])
def test_a_module_that_would_run_a_command_is_refused_and_does_not_run_it(tmp_path, is_zip, name):
    module = tree_of(HALVES["encoder"])
    module.extra = Hostile(tmp_path / "ran")
    torch.save(module, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ModelError, match=r"(posix|os)\.system"):
        load_model(f"{name}{tmp_path / 'encoder.pkl'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", SAID)
@pytest.mark.parametrize("half", HALVES)
def test_a_damaged_half_is_refused_by_name(tmp_path, half, how):
    key = "blocks.group_2.block_1.res_path.conv_2.w"
    path = saved(tmp_path, f"{half}.pt", damaged(HALVES[half], key, how))
    with pytest.raises(ModelError, match=said(how, key)):
        load_model(f"openai-dvae:{path}")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = cut_short(FOLDER / "encoder_state_dict.pt", tmp_path / "encoder.pt")
    with pytest.raises(ModelError, match=r"encoder\.pt' cannot be read"):
        load_model(f"openai-dvae:{path}")


def test_groups_that_contradict_each_other_are_refused(tmp_path):
    path = saved(tmp_path, tensors={key: one for key, one in HALVES["encoder"].items() if "group_2.block_2" not in key})
    with pytest.raises(ModelError, match=r"lacks 8 of the model's \d+ tensors \('blocks\.group_2\.block_2"):
        load_model(f"openai-dvae:{path}")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key 'blocks\.input\.w'"):
        load_model(f"openai-dvae:{DATA / 'min_dalle' / 'vqgan' / 'detoker.pt'}")


def test_a_layer_that_is_no_convolution_is_refused(tmp_path):
    path = saved(tmp_path, tensors=HALVES["encoder"] | {"blocks.input.w": torch.zeros(8, 3)})
    with pytest.raises(ModelError, match=r"'blocks\.input\.w' has shape \(8, 3\) where a convolution has four axes"):
        load_model(f"openai-dvae:{path}")


def test_two_halves_of_different_models_are_refused(tmp_path):
    saved(tmp_path)
    smaller = HALVES["decoder"] | {"blocks.input.w": HALVES["decoder"]["blocks.input.w"][:, :60].clone()}
    saved(tmp_path, "decoder.pt", smaller)
    with pytest.raises(ModelError, match="the encoder has 64 codes, the decoder 60"):
        load_model(f"openai-dvae:{tmp_path}")


def test_two_halves_of_different_depth_are_refused(tmp_path):
    saved(tmp_path)
    shallow = {key: one for key, one in HALVES["decoder"].items() if "group_4" not in key}
    shallow["blocks.output.conv.w"] = torch.zeros(6, 16, 1, 1)
    saved(tmp_path, "decoder.pt", shallow)
    with pytest.raises(ModelError, match="the encoder has 8 pixels per token side, the decoder 4"):
        load_model(f"openai-dvae:{tmp_path}")


@pytest.mark.parametrize("half", HALVES)
def test_the_same_half_twice_is_refused(tmp_path, half):
    for name in ("encoder.pt", "decoder.pt"):
        saved(tmp_path, name, HALVES[half])
    with pytest.raises(ModelError, match=f"is a second {half}; name one encoder and one decoder"):
        load_model(f"openai-dvae:{tmp_path}")


def test_names_may_be_swapped(tmp_path):
    saved(tmp_path, "decoder.pt", HALVES["encoder"])
    saved(tmp_path, "encoder.pt", HALVES["decoder"])
    assert load_model(tmp_path).identity == load_model(FOLDER).identity


def test_a_folder_without_either_half_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has neither encoder nor decoder of a dVAE"):
        load_model(f"openai-dvae:{tmp_path}")


def test_safetensors_are_read_too(tmp_path):
    for half, tensors in HALVES.items():
        save_file(tensors, tmp_path / f"{half}.safetensors")
    assert load_model(tmp_path).identity == load_model(FOLDER).identity


def test_the_official_file_comes_before_others_of_the_same_half(tmp_path):
    saved(tmp_path, "encoder.pt")
    saved(tmp_path, "encoder_old.pt", {"a": torch.zeros(1)})
    assert load_model(tmp_path).abilities == {"encode", "logits"}


def test_an_encoder_alone_has_its_output_weights_as_codes():
    model = load_model(FOLDER / "encoder_state_dict.pt")
    torch.testing.assert_close(model.codebook, HALVES["encoder"]["blocks.output.conv.w"][:, :, 0, 0])
    tokens = torch.arange(64).view(1, 8, 8)
    assert torch.equal(model.nearest(model.embed(tokens)), tokens)
    with pytest.raises(ModelError, match="cannot decode, its files hold no such half"):
        model.decode(model.embed(tokens))


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="has no option 'pixels'; known: "):
        load_model(f"openai-dvae:{FOLDER}?pixels=signed")


def test_released_sizes_are_read_from_shapes(tmp_path):
    encoder = Sizes(first=256, widths=(256, 512, 1024, 2048), blocks=2, k=8192)
    decoder = Sizes(first=128, widths=(2048, 1024, 512, 256), blocks=2, k=8192)
    with torch.device("meta"):
        halves = Encoder(encoder), Decoder(decoder)
    assert [sizes_of(half.state_dict(), tmp_path) for half in halves] == [encoder, decoder]
    assert (encoder.stride, decoder.stride, encoder.gain) == (8, 8, 1 / 64)


@pytest.mark.parametrize("half", HALVES)
def test_a_live_module_is_wrapped_and_shares_its_weights(dall_e, half):
    module = live(dall_e, half)
    model = wrap(module)
    assert model.name == f"live:{half.capitalize()}"
    assert model.abilities == load_model(FOLDER / f"{half}_state_dict.pt").abilities
    part = getattr(model.network, half)
    assert part.blocks["input"].w.data_ptr() == module.blocks.input.w.data_ptr()


def test_other_live_modules_are_not_wrapped():
    assert wrap(nn.Linear(1, 1)) is None


def test_it_runs_in_half_the_bits():
    exact, half = (
        build_dvae({FOLDER / name: tensors for name, tensors in HALVES.items()}, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    tokens = torch.arange(64).view(1, 8, 8)
    with torch.no_grad():
        apart = half.finish(half.decode(half.codes.embed(tokens)).float()) - exact.finish(
            exact.decode(exact.codes.embed(tokens))
        )
    assert 0 < apart.abs().max() < 0.2


def test_files_of_other_kinds_are_not_recognised(tmp_path):
    (tmp_path / "encoder.pt").write_bytes(b"nothing")
    (tmp_path / "decoder.txt").write_text("nothing")
    assert recognise(Files(tmp_path)) is None
    assert recognise(Files(DATA / "min_dalle")) is None
