"""DALL-E mini's VQGAN: the way from Flax names to ours, and what is said of broken files."""

import json
import shutil
import types

import msgpack
import numpy as np
import pytest
import torch
from damage import SAID, cut_short, damaged, said
from parity.golden import DATA

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.taming import ModelSizes, Sizes, TamingNetwork
from vqcortex.adapters.vqgan_jax import FlaxNetwork, build_network, recognise, torch_names, wrap
from vqcortex.checkpoints import read_checkpoint
from vqcortex.errors import ConfigError, ModelError

FOLDER = DATA / "vqgan_jax"
FILE = FOLDER / "flax_model.msgpack"
TREE = read_checkpoint(FILE)
TENSORS = torch_names(TREE)


def flax_tree(tensors):
    """The way back: a Flax tree from taming's names."""
    tree = {}
    for name, tensor in tensors.items():
        *above, leaf = name.split(".")
        parts: list[str] = []
        for part in above:
            if part.isdigit():
                parts[-1] += f"_{part}"
            else:
                parts.append(part)
        is_norm = parts[-1].startswith("norm")
        leaf = "embedding" if parts[-1] == "embedding" else {"weight": "scale" if is_norm else "kernel"}.get(leaf, leaf)
        at = tree
        for part in parts:
            at = at.setdefault(part, {})
        at[leaf] = tensor.permute(2, 3, 1, 0) if leaf == "kernel" else tensor
    return tree


def packed(tree, path):
    """Written as flax.serialization does."""

    def extension(tensor):
        array = tensor.contiguous().numpy()
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

    path.write_bytes(msgpack.packb(tree, default=extension))
    return path


def copied(folder, **changed):
    """The golden folder with another config."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def network(seed=0):
    """A network with attention in its lower level, which the golden one does not have."""
    sizes = Sizes(widths=(32, 64), blocks=2, attention=(False, True), z_channels=8, ch=32)
    torch.manual_seed(seed)
    found = TamingNetwork(ModelSizes(encoder=sizes, decoder=sizes, k=32, d=8))
    torch.nn.init.normal_(found.codes.weight)
    return found.eval().requires_grad_(False)


def test_the_way_back_is_the_way_back():
    assert {key: one.shape for key, one in torch_names(flax_tree(TENSORS)).items()} == {
        key: one.shape for key, one in TENSORS.items()
    }
    assert flax_tree(TENSORS)["encoder"]["mid"].keys() == TREE["encoder"]["mid"].keys()


def test_items_of_lists_are_written_out_and_attributes_of_the_middle_are_not():
    one = torch.arange(6.0).view(1, 1, 2, 3)
    tree = {
        "encoder": {
            "down_1": {"attn_0": {"norm": {"scale": torch.ones(2), "bias": torch.ones(2)}}},
            "mid": {"block_1": {"conv1": {"kernel": one, "bias": torch.ones(3)}}},
            "note": "not a tensor",
        },
        "quantize": {"embedding": {"embedding": torch.ones(4, 2)}},
    }
    found = torch_names(tree)
    assert set(found) == {
        "encoder.down.1.attn.0.norm.weight",
        "encoder.down.1.attn.0.norm.bias",
        "encoder.mid.block_1.conv1.weight",
        "encoder.mid.block_1.conv1.bias",
        "quantize.embedding.weight",
    }
    kernel = found["encoder.mid.block_1.conv1.weight"]
    assert kernel.shape == (3, 2, 1, 1)
    assert kernel[2, 0, 0, 0] == one[0, 0, 0, 2]


@torch.no_grad()
def test_attention_comes_once_after_each_block_as_in_taming(tmp_path):
    twin = network()
    path = packed(flax_tree(twin.state_dict()), tmp_path / "flax_model.msgpack")
    model = load_model(f"vqgan-jax:{path}?pixels=signed&size=16")
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.encode(pixels), twin.choose(2 * pixels - 1).tokens)
    tokens = torch.arange(64).view(1, 8, 8) % 32
    torch.testing.assert_close(model.decode(model.embed(tokens)), twin.finish(twin.decode(twin.codes.embed(tokens))))


@pytest.mark.parametrize("how", [how for how in SAID if how != "left over"])
def test_a_damaged_file_is_refused_by_name(tmp_path, how):
    key = "decoder.up.1.upsample.conv.bias"
    path = packed(flax_tree(damaged(TENSORS, key, how)), tmp_path / "flax_model.msgpack")
    with pytest.raises(ModelError, match=said(how, key)):
        load_model(f"vqgan-jax:{path}")


def test_a_tensor_too_many_is_refused_by_name(tmp_path):
    path = packed(flax_tree(TENSORS | {"decoder.up.1.more.bias": torch.zeros(1)}), tmp_path / "flax_model.msgpack")
    with pytest.raises(ModelError, match=r"holds 1 that the model has no place for \('decoder\.up\.1\.more\.bias'\)"):
        load_model(f"vqgan-jax:{path}")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"flax_model\.msgpack' "):
        load_model(f"vqgan-jax:{cut_short(FILE, tmp_path / 'flax_model.msgpack')}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ch": 64}, "says ch=64 but the checkpoint's shapes make it 32"),
        ({"ch_mult": [1, 1, 2]}, r"says ch_mult=\[1, 1, 2\] but the checkpoint's shapes make it \[1, 1\]"),
        ({"num_res_blocks": 2}, "says num_res_blocks=2 but the checkpoint's shapes make it 1"),
        ({"z_channels": 8}, "says z_channels=8 but the checkpoint's shapes make it 16"),
        ({"embed_dim": 8}, "says embed_dim=8 but the checkpoint's shapes make it 16"),
        ({"n_embed": 16384}, "says n_embed=16384 but the checkpoint's shapes make it 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_models_config_is_refused(tmp_path, changed, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"vqgan-jax:{copied(tmp_path, **changed)}")


def test_a_config_that_is_not_json_is_refused(tmp_path):
    copied(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json' is not JSON"):
        load_model(f"vqgan-jax:{tmp_path}")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no flax_model\.msgpack"):
        load_model(f"vqgan-jax:{tmp_path}")


def test_a_file_without_a_tree_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds list and no tree of tensors"):
        load_model(f"vqgan-jax:{tmp_path / 'list.pt'}")


def test_another_tree_is_refused(tmp_path):
    packed({"model": {"kernel": torch.zeros(2, 2)}}, tmp_path / "flax_model.msgpack")
    with pytest.raises(ModelError, match=r"has no key 'quantize\.embedding\.weight'"):
        load_model(f"vqgan-jax:{tmp_path}")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pixels=255", "pixels='255' of model .* is unknown; known: unit .*, signed"),
        ("weights=raw", "no option 'weights'"),
    ],
    ids=["pixels", "unknown"],
)
def test_options_it_does_not_know_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        load_model(f"vqgan-jax:{FOLDER}?{option}")


def test_without_a_config_sizes_come_from_shapes(tmp_path):
    shutil.copy(FILE, tmp_path)
    model = load_model(tmp_path / FILE.name)
    assert (model.family, model.size, model.grid) == ("vqgan-jax", (256, 256), (128, 128))


def test_weights_under_params_are_found(tmp_path):
    path = packed({"params": flax_tree(TENSORS)}, tmp_path / "flax_model.msgpack")
    assert "Flax" in recognise(Files(path))
    assert load_model(f"vqgan-jax:{path}?size=16").identity == load_model(FOLDER).identity


def test_other_flax_models_are_not_recognised(tmp_path):
    path = packed({"model": {"kernel": torch.zeros(2, 2)}}, tmp_path / "flax_model.msgpack")
    (tmp_path / "config.json").write_text('{"model_type": "dallebart"}')
    assert recognise(Files(tmp_path)) is None
    assert recognise(Files(path)) is None


def test_released_sizes_are_read_from_shapes():
    attention = (False, False, False, False, True)
    sizes = Sizes(widths=(128, 128, 256, 256, 512), blocks=2, attention=attention, z_channels=256, ch=128)
    with torch.device("meta"):
        whole = FlaxNetwork(ModelSizes(encoder=sizes, decoder=sizes, k=16384, d=256), signed=False)
    names = torch_names(flax_tree(whole.state_dict()))
    assert {key: one.shape for key, one in names.items()} == {key: one.shape for key, one in whole.state_dict().items()}


def test_a_live_model_is_wrapped():
    def arrays(tree):
        return {key: arrays(one) if isinstance(one, dict) else one.numpy() for key, one in tree.items()}

    kind = type("VQModel", (), {"__module__": "vqgan_jax.modeling_flax_vqgan"})
    found = kind()
    found.params, found.config = arrays(TREE), types.SimpleNamespace(resolution=16)
    assert isinstance(found.params["quantize"]["embedding"]["embedding"], np.ndarray)
    model = wrap(found)
    assert (model.name, model.identity) == ("live:VQModel", load_model(FOLDER).identity)


def test_other_live_modules_are_not_wrapped():
    assert wrap(torch.nn.Linear(1, 1)) is None


def test_a_network_knows_which_pixels_it_was_built_for():
    unit, signed = (build_network(TREE, FILE, signed=one) for one in (False, True))
    pixels = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert unit.prepare(pixels).flatten().unique().tolist() == [0, 1]
    assert signed.prepare(pixels).flatten().unique().tolist() == [-1, 1]
