"""taming's files: which are read, how sizes are found, and what is said when they are wrong."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from vqcortex.adapters.family import Files, Spec
from vqcortex.adapters.taming import (
    FAMILY,
    Decoder,
    Encoder,
    ModelSizes,
    Sizes,
    TamingNetwork,
    config_in,
    network_from,
    read_config,
    recognise_taming,
    sizes_in,
    sizes_of,
    weights_in,
    wrap_taming,
)
from vqcortex.errors import ConfigError, ModelError

DATA = Path(__file__).parents[2] / "data" / "golden"
VQGAN, GUMBEL, EMA = DATA / "taming_vqgan", DATA / "taming_gumbel", DATA / "taming_ema"


def open_at(place, **options):
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return FAMILY.open(Spec.read(f"taming:{place}" + (f"?{query}" if query else "")))


def state_of(folder=EMA) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {key: value.float() for key, value in saved.items() if not key.startswith("loss.")}


def config_of(folder=EMA) -> dict:
    return yaml.safe_load((folder / "configs" / "model.yaml").read_text())


def folder_of(path, state=None, config=None, weights="checkpoints/last.ckpt", text="configs/model.yaml") -> Path:
    """A model's folder; `config` None leaves it out."""
    (path / weights).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state_of() if state is None else state}, path / weights)
    if config is not None:
        (path / text).parent.mkdir(parents=True, exist_ok=True)
        (path / text).write_text(yaml.safe_dump(config))
    return path


def changed(folder=EMA, group="ddconfig", **settings) -> dict:
    config = config_of(folder)
    place = config["model"]["params"]
    (place[group] if group else place).update(settings)
    return config


# --- which files


def test_last_comes_before_model_before_the_newest(tmp_path):
    for name in ("epoch=000012.ckpt", "epoch=9.ckpt", "model.ckpt", "last.ckpt"):
        folder_of(tmp_path, weights=f"checkpoints/{name}")
    found = []
    while (path := weights_in(tmp_path)) is not None:
        found.append(path.name)
        path.unlink()
    assert found == ["last.ckpt", "model.ckpt", "epoch=000012.ckpt", "epoch=9.ckpt"]


def test_the_safetensors_twin_is_preferred(tmp_path):
    folder_of(tmp_path, config=config_of())
    twin = {**state_of(), "quant_conv.bias": torch.full((16,), 7.0)}
    save_file(twin, tmp_path / "checkpoints" / "last.safetensors")
    assert (open_at(tmp_path).network.quant_conv.bias == 7).all()


def test_a_folder_with_safetensors_alone_opens(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_file(state_of(), tmp_path / "checkpoints" / "last.safetensors")
    assert open_at(tmp_path, size=16).grid == (8, 8)
    assert recognise_taming(Files(tmp_path)) is not None


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ("ckpts/last.ckpt", "configs/2021-04-03T19-39-50-project.yaml"),
        ("ckpts/model.ckpt", "configs/project.yaml"),
        ("model.ckpt", "config.yaml"),
        ("checkpoints/epoch=000003.ckpt", "configs/other.yaml"),
    ],
)
def test_file_names_may_vary(tmp_path, weights, text):
    folder_of(tmp_path, config=config_of(), weights=weights, text=text)
    model = open_at(tmp_path)
    assert (model.size, model.grid) == ((16, 16), (8, 8))
    assert "EMAVQ" in recognise_taming(Files(tmp_path))


def test_a_config_of_the_trainer_is_passed_over(tmp_path):
    folder_of(tmp_path, config=config_of(), text="configs/2021-01-01-project.yaml")
    (tmp_path / "configs" / "2021-01-02-project.yaml").write_text("lightning: {trainer: {gpus: 1}}\n")
    assert config_in(tmp_path).path.name == "2021-01-01-project.yaml"


def test_weights_beside_no_config_are_not_taken(tmp_path):
    folder_of(tmp_path, weights="model.ckpt")
    assert weights_in(tmp_path) is None
    with pytest.raises(ModelError, match=r"has no checkpoint in checkpoints/ or ckpts/.*model\.ckpt"):
        open_at(tmp_path)


def test_a_config_elsewhere_can_be_named(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(changed(resolution=32)))
    assert open_at(EMA / "checkpoints" / "last.ckpt", config=config).size == (32, 32)


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="no option 'top_k'"):
        open_at(EMA, top_k=3)


def test_a_first_stage_is_found_inside_a_diffusion_model(tmp_path):
    stage = {"target": "ldm.models.autoencoder.VQModelInterface", "params": config_of()["model"]["params"]}
    config = {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {"first_stage_config": stage}}}
    state = {f"first_stage_model.{key}": value for key, value in state_of().items()}
    state["model.diffusion_model.out.weight"] = torch.zeros(3)
    folder_of(tmp_path, state, config, "model.ckpt", "config.yaml")
    assert "LatentDiffusion" in recognise_taming(Files(tmp_path))
    expected = load_file(EMA / "expected.safetensors")
    assert torch.equal(open_at(tmp_path).encode(expected["pixels"]), expected["tokens"])
    assert recognise_taming(Files(tmp_path / "model.ckpt")) is not None
    assert open_at(tmp_path / "model.ckpt").size == (256, 256)


# --- what is left out


class Largest(TorchDispatchMode):
    """Remembers the most bytes that an operation laid down."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        if isinstance(found, torch.Tensor) and not found.is_meta and "view" not in str(function):
            self.bytes = max(self.bytes, found.untyped_storage().nbytes())
        return found


def test_losses_are_never_laid_down():
    with Largest() as largest:
        network = open_at(VQGAN).network
    assert not [key for key in network.state_dict() if key.startswith("loss")]
    assert 0 < largest.bytes < 2**20  # the file itself; a perceptual network's largest tensor alone would be 9 MB
    with Largest() as largest:
        torch.zeros(1).expand(512, 512, 3, 3).clone(memory_format=torch.contiguous_format)
    assert largest.bytes > 2**20


def test_what_training_leaves_is_dropped(tmp_path):
    state = state_of()
    state |= {"model_ema.encoderconv_inweight": torch.zeros(3), "colorize": torch.zeros(3, 7, 1, 1)}
    folder_of(tmp_path, state, config_of())
    assert open_at(tmp_path).identity == open_at(EMA).identity


def test_ids_are_of_the_whole_codebook_even_where_the_official_ones_are_numbered_anew(tmp_path):
    expected = load_file(EMA / "expected.safetensors")
    folder_of(tmp_path, {**state_of(), "quantize.used": torch.tensor([5, 9, 30])}, changed(group="", remap="used.npy"))
    model = open_at(tmp_path)
    assert model.k == 64
    assert torch.equal(model.encode(expected["pixels"]), expected["tokens"])


# --- sizes

F16 = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16], "z_channels": 256}
RELEASED = {
    "taming f16 1024": ("taming.models.vqgan.VQModel", 1024, 256, F16),
    "taming f16 16384": ("taming.models.vqgan.VQModel", 16384, 256, F16),
    "taming gumbel f8": (
        "taming.models.vqgan.GumbelVQ", 8192, 256, {**F16, "ch_mult": [1, 1, 2, 4], "attn_resolutions": [32]},
    ),
    "ldm vq-f4": (
        "ldm.models.autoencoder.VQModelInterface", 8192, 3,
        {"ch": 128, "ch_mult": [1, 2, 4], "attn_resolutions": [], "z_channels": 3},
    ),
    "ldm vq-f4-noattn": (
        "ldm.models.autoencoder.VQModelInterface", 8192, 3,
        {"ch": 128, "ch_mult": [1, 2, 4], "attn_resolutions": [], "z_channels": 3, "attn_type": "none"},
    ),
    "ldm vq-f8": (
        "ldm.models.autoencoder.VQModel", 16384, 4,
        {"ch": 128, "ch_mult": [1, 2, 2, 4], "attn_resolutions": [32], "z_channels": 4},
    ),
    "ldm vq-f16": (
        "ldm.models.autoencoder.VQModel", 16384, 8,
        {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16], "z_channels": 8},
    ),
    "no convolution between levels": (
        "taming.models.vqgan.VQModel", 64, 8, {**F16, "ch_mult": [1, 2], "resamp_with_conv": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_shapes_tell_the_sizes_that_the_config_says(tmp_path, name):
    target, k, d, said = RELEASED[name]
    ddconfig = {"double_z": False, "resolution": 256, "in_channels": 3, "out_ch": 3, "num_res_blocks": 2, **said}
    path = tmp_path / "model.yaml"
    params = {"embed_dim": d, "n_embed": k, "ddconfig": ddconfig}
    path.write_text(yaml.safe_dump({"model": {"target": target, "params": params}}))
    sizes = sizes_in(read_config(path))
    with torch.device("meta"):
        tensors = TamingNetwork(sizes).state_dict()
    found = sizes_of(tensors, path)
    assert (found.k, found.d, found.gumbel) == (k, d, "Gumbel" in target)
    with torch.device("meta"):
        again = TamingNetwork(found).state_dict()
    assert {key: one.shape for key, one in again.items()} == {key: one.shape for key, one in tensors.items()}
    assert found.encoder.attention == found.decoder.attention == sizes.encoder.attention


def test_attention_follows_the_resolution_of_the_config_not_the_size_of_the_image(tmp_path):
    assert open_at(GUMBEL, size=32).network.sizes.encoder.attention == (False, True)
    with pytest.raises(ModelError, match=r"encoder\.down\.1\.attn\.0"):
        open_at(folder_of(tmp_path, state_of(GUMBEL), changed(GUMBEL, resolution=32)))


def test_half_of_an_odd_resolution_is_rounded_down_from_above():
    sizes = sizes_in(config_in(GUMBEL))
    assert sizes.encoder.attention == (False, True)


def test_the_size_is_the_config_s_or_256():
    assert open_at(EMA).size == (16, 16)
    assert open_at(EMA / "checkpoints" / "last.ckpt").size == (256, 256)
    assert open_at(EMA, size="8x24").grid == (4, 12)


def test_the_networks_can_be_had_with_another_epsilon():
    sizes = Sizes(widths=(32, 64), blocks=1, attention=(False, True), z_channels=4, epsilon=1e-5)
    for network in (Encoder(sizes), Decoder(sizes)):
        norms = [one for one in network.modules() if isinstance(one, torch.nn.GroupNorm)]
        assert {one.eps for one in norms} == {1e-5}
    default = Encoder(Sizes(widths=(32,), blocks=1, attention=(False,), z_channels=4))
    assert default.norm_out.eps == 1e-6


def test_an_encoder_can_end_in_twice_the_latent():
    sizes = Sizes(widths=(32, 32), blocks=1, attention=(False, False), z_channels=4, double_z=True)
    with torch.no_grad():
        assert Encoder(sizes)(torch.zeros(1, 3, 8, 8)).shape == (1, 8, 4, 4)


def test_sides_that_are_multiples_of_the_stride_are_enough():
    model = open_at(GUMBEL)
    with torch.no_grad():
        tokens = model.encode(torch.rand(2, 3, 6, 10))
        assert tokens.shape == (2, 3, 5)
        assert model.decode(model.embed(tokens)).shape == (2, 3, 6, 10)


# --- what is wrong


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(group="", n_embed=128), r"'quantize\.embedding\.weight' has shape \(64, 16\).*\(128, 16\)"),
        (changed(ch=64), r"'encoder\.conv_in\.weight' has shape \(32, 3, 3, 3\).*\(64, 3, 3, 3\)"),
        (changed(num_res_blocks=1), r"lacks .*'encoder\.down\.0\.block\.0"),
        (changed(ch_mult=[1]), r"no place for.*'encoder\.down\.0\.downsample"),
        (changed(z_channels=8), r"'encoder\.conv_out\.weight' has shape \(16,"),
    ],
    ids=["codes", "width", "blocks", "levels", "latent"],
)
def test_a_config_for_another_model_is_named_with_key_expected_and_found(tmp_path, config, message):
    with pytest.raises(ModelError, match=rf"(?s){message}.*another model.*model\.yaml"):
        open_at(folder_of(tmp_path, config=config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(double_z=True), "double_z=True: that is an autoencoder"),
        (changed(attn_type="linear"), "attn_type='linear', which no released VQGAN has"),
        (changed(tanh_out=True), "tanh_out=True"),
        (changed(ch=40), "40 channels cannot be normalised in 32 groups"),
        (changed(ch="a"), "says ch='a' where a whole number from 1 up"),
        (changed(ch_mult=2), "says ch_mult=2 where a list"),
        (changed(ch_mult=[]), r"ch_mult=\[\], no levels"),
        (changed(in_channels=19), "images of 19 channels and gives 3"),
        (changed(group="", n_embed=None), "n_embed=None"),
        ({"model": {"target": "taming.models.vqgan.VQModel", "params": {}}}, r"no params\.ddconfig"),
        (
            {"model": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {}}},
            "for 'ldm.models.autoencoder.AutoencoderKL', which this family cannot open",
        ),
        (
            {"model": {"class_path": "src.IBQ.models.ibqgan.VQModel", "init_args": {}}},
            r"for 'src\.IBQ\.models\.ibqgan\.VQModel', which this family cannot open",
        ),
        (
            {"model": {"target": "x.LatentDiffusion", "params": {"first_stage_config": "none"}}},
            r"no model\.params\.first_stage_config",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_config_that_cannot_be_followed_says_why(tmp_path, config, message):
    with pytest.raises(ModelError, match=message):
        open_at(folder_of(tmp_path, config=config))


def test_a_config_that_is_no_yaml_or_no_model_is_named(tmp_path):
    path = tmp_path / "bad.yaml"
    for text, message in (("a: [", "is not plain YAML"), ("!!python/name:os.system x", "is not plain YAML")):
        path.write_text(text)
        with pytest.raises(ModelError, match=message):
            open_at(EMA, config=path)
    path.write_text("data: 3")
    with pytest.raises(ModelError, match="has no 'model' with target"):
        open_at(EMA, config=path)
    with pytest.raises(ModelError, match="is not plain YAML"):
        open_at(EMA, config=tmp_path / "absent.yaml")


def bare(tmp_path, state) -> Path:
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


@pytest.mark.parametrize(
    "key",
    ["quantize.embedding.weight", "encoder.conv_in.weight", "decoder.up.1.block.0.conv1.weight", "quant_conv.bias"],
)
def test_a_missing_key_is_named(tmp_path, key):
    state = state_of()
    del state[key]
    with pytest.raises(ModelError, match=key.replace(".", r"\.")):
        open_at(bare(tmp_path, state))


def test_an_unexpected_key_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no place for.*'decoder\.extra'"):
        open_at(bare(tmp_path, {**state_of(), "decoder.extra": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("decoder.norm_out.weight", (64,), r"has shape \(64,\) where the model expects \(32,\)"),
        ("encoder.conv_in.weight", (32, 3), r"has shape \(32, 3\) but a convolution's"),
        ("encoder.conv_in.weight", (48, 3, 3, 3), "48 channels cannot be normalised"),
        ("quantize.embedding.weight", (64,), r"has shape \(64,\) but codes by channels"),
    ],
)
def test_a_wrong_shape_is_named_with_what_was_expected(tmp_path, key, shape, message):
    with pytest.raises(ModelError, match=message):
        open_at(bare(tmp_path, {**state_of(), key: torch.zeros(shape)}))


def test_an_encoder_with_more_levels_than_the_decoder_is_refused(tmp_path):
    state = {**state_of(), "encoder.down.2.block.0.conv1.weight": torch.zeros(32, 32, 3, 3)}
    with pytest.raises(ModelError, match=r"decoder has 2 levels but the encoder has 'encoder\.down\.2\."):
        open_at(bare(tmp_path, state))


def test_nan_weights_are_refused(tmp_path):
    state = state_of()
    state["encoder.norm_out.bias"][3] = torch.nan
    with pytest.raises(ModelError, match=r"1 of 32 numbers of 'encoder\.norm_out\.bias' are NaN"):
        open_at(bare(tmp_path, state))


def test_a_truncated_file_is_refused(tmp_path):
    shutil.copytree(EMA, tmp_path / "model")
    path = tmp_path / "model" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(ModelError, match=r"last\.ckpt"):
        open_at(tmp_path / "model")


def test_without_yaml_the_command_that_installs_it_is_given(monkeypatch):
    from vqcortex.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtra, match="pip install pyyaml"):
        open_at(EMA)


# --- what is recognised


def test_nothing_else_is_taken_for_a_vqgan():
    mine = {"taming_vqgan", "taming_gumbel", "taming_ema"}
    kinds = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}
    folders = [one for one in sorted(DATA.iterdir()) if one.is_dir() and one.name not in mine]
    looked_at = [path for folder in folders for path in (folder, *sorted(folder.rglob("*")))
                 if path.is_dir() or (path.suffix in kinds and path.name != "expected.safetensors")]  # fmt: skip
    assert len(looked_at) > len(folders)
    assert [path for path in looked_at if recognise_taming(Files(path))] == []


def test_janus_numbers_its_levels_the_other_way_and_is_not_a_vqgan(tmp_path):
    state = {**state_of(), "decoder.up.0.upsample.conv.weight": torch.zeros(32, 32, 3, 3)}
    assert recognise_taming(Files(bare(tmp_path, state))) is None


def test_a_folder_of_another_model_s_config_is_not_recognised(tmp_path):
    folder_of(tmp_path, config={"model": {"target": "x.y.Other", "params": {}}})
    assert recognise_taming(Files(tmp_path)) is None


# --- live models


def live(name, module="taming.models.vqgan", folder=EMA):
    """An object that says it is of an official class, with the official keys."""
    network = network_from(state_of(folder), None, Path("live"))
    network.encoder.resolution = 16
    network.requires_grad_(True)
    kind = type(name, (TamingNetwork,), {"__module__": module})
    network.__class__ = kind
    return network


@pytest.mark.parametrize(
    ("name", "module", "folder"),
    [
        ("VQModel", "taming.models.vqgan", VQGAN),
        ("GumbelVQ", "taming.models.vqgan", GUMBEL),
        ("EMAVQ", "taming.models.vqgan", EMA),
        ("VQModelInterface", "ldm.models.autoencoder", VQGAN),
    ],
    ids=["vq", "gumbel", "ema", "ldm"],
)
def test_a_live_model_is_wrapped_and_shares_its_weights(name, module, folder):
    model = live(name, module, folder)
    adapter = wrap_taming(model)
    expected = load_file(folder / "expected.safetensors")
    assert torch.equal(adapter.encode(expected["pixels"]), expected["tokens"])
    assert (adapter.name, adapter.size) == (f"live:{name}", (16, 16))
    assert f"{module}.{name}" in adapter.recognised
    assert adapter.codebook.data_ptr() == next(iter(model.quantize.children())).weight.data_ptr() or name == "GumbelVQ"
    assert model.encoder.conv_in.weight.requires_grad
    assert not adapter.network.encoder.conv_in.weight.requires_grad


def test_a_live_model_keeps_its_number_type():
    assert wrap_taming(live("EMAVQ").double()).dtype == torch.float64


@pytest.mark.parametrize(("name", "module"), [("VQModel", "mine.vqgan"), ("Net2Net", "taming.models.vqgan")])
def test_other_live_objects_are_left_alone(name, module):
    assert wrap_taming(live(name, module)) is None
    assert wrap_taming(object()) is None


def test_sizes_are_plain_values():
    half = Sizes(widths=(32, 64), blocks=1, attention=(False, True), z_channels=4)
    assert (half.levels, half.stride) == (2, 2)
    assert ModelSizes(encoder=half, decoder=half, k=4, d=2) == ModelSizes(encoder=half, decoder=half, k=4, d=2)
