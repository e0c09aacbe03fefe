"""MaskGIT-VQGAN: files of every form, and what is said of broken ones."""

import pytest
import torch
from damage import SAID, cut_short, damaged, said
from parity.golden import DATA
from safetensors.torch import save_file
from torch import nn

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.maskgit import MaskGitNetwork, Sizes, build_maskgit, recognise, sizes_of, wrap
from vqcortex.errors import ConfigError, ModelError

FILE = DATA / "maskgit_vqgan" / "maskgit-vqgan-tiny.bin"
TENSORS = torch.load(FILE, weights_only=True)


def saved(folder, tensors, name="maskgit-vqgan.bin"):
    torch.save(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("how", SAID)
def test_a_damaged_file_is_refused_by_name(tmp_path, how):
    key = "decoder.up.1.upsample_conv.weight"
    path = saved(tmp_path, damaged(TENSORS, key, how))
    with pytest.raises(ModelError, match=said(how, key)):
        load_model(f"maskgit:{path}")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"short\.bin' cannot be read"):
        load_model(f"maskgit:{cut_short(FILE, tmp_path / 'short.bin')}")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key 'encoder\.down\.0\.block\.0\.conv1\.weight'"):
        load_model(f"maskgit:{DATA / 'min_dalle' / 'vqgan' / 'detoker.pt'}")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("quantize.embedding.weight", (64, 8), "has codes of 8 numbers but the latent has 12 channels"),
        ("quantize.embedding.weight", (64,), r"has shape \(64,\) but a codebook is \(k, d\)"),
        ("encoder.conv_in.weight", (32, 3), r"has shape \(32, 3\) but a convolution's"),
        ("encoder.down.1.block.0.conv1.weight", (33, 64, 3, 3), "a level of 33 channels cannot be normalised in 32"),
        ("decoder.conv_in.weight", (64, 12, 3, 3), r"'decoder\.conv_in\.weight' has shape \(64, 12, 3, 3\) where"),
    ],
    ids=["codes", "flat table", "flat kernel", "odd width", "decoder"],
)
def test_shapes_that_contradict_each_other_are_refused(tmp_path, key, shape, message):
    path = saved(tmp_path, TENSORS | {key: torch.zeros(shape)})
    with pytest.raises(ModelError, match=message):
        load_model(f"maskgit:{path}")


def test_a_level_that_is_missing_is_refused(tmp_path):
    path = saved(tmp_path, {key: one for key, one in TENSORS.items() if not key.startswith("encoder.down.1.")})
    with pytest.raises(ModelError, match=r"holds \d+ that the model has no place for"):
        load_model(f"maskgit:{path}")


def test_a_folder_without_it_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no maskgit-vqgan\*\.bin or"):
        load_model(f"maskgit:{tmp_path}")


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="has no option 'weights'; known: "):
        load_model(f"maskgit:{FILE}?weights=raw")


def test_a_repository_of_its_own_opens_as_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert (model.family, model.identity) == ("maskgit", load_model(FILE).identity)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_distributed_training_changes_nothing(tmp_path, prefix):
    path = saved(tmp_path, {"state_dict": {f"{prefix}{key}": one for key, one in TENSORS.items()}})
    assert load_model(path).identity == load_model(FILE).identity


def test_the_size_is_that_of_the_released_model_unless_it_is_said():
    assert load_model(FILE).size == (256, 256)
    assert load_model(f"maskgit:{FILE}?size=16x32").grid == (8, 16)


def test_released_sizes_are_read_from_shapes(tmp_path):
    sizes = Sizes(first=128, widths=(128, 128, 256, 256, 512), blocks=2, k=1024, d=256)
    with torch.device("meta"):
        network = MaskGitNetwork(sizes)
    assert sizes_of(network.state_dict(), tmp_path) == sizes
    assert sizes.stride == 16


@pytest.mark.parametrize(
    ("module", "name"), [("modeling.titok", "PretrainedTokenizer"), ("muse.modeling_maskgit_vqgan", "MaskGitVQGAN")]
)
def test_a_live_module_is_wrapped_and_shares_its_weights(module, name):
    found = type(name, (nn.Module,), {"__module__": module})()
    inner = build_maskgit(TENSORS, FILE)
    found.encoder, found.decoder, found.quantize = inner.encoder, inner.decoder, inner.quantize
    model = wrap(found)
    assert (model.name, model.k) == (f"live:{name}", 64)
    assert model.network.encoder.conv_in.weight.data_ptr() == inner.encoder.conv_in.weight.data_ptr()


def test_other_live_modules_are_not_wrapped():
    assert wrap(nn.Linear(1, 1)) is None


def test_a_folder_of_something_else_is_not_recognised(tmp_path):
    assert recognise(Files(tmp_path)) is None
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert recognise(Files(tmp_path)) is None
