"""LlamaGen's files: where the state dict is, which sizes it tells, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqcortex.adapters.codes import TableCodes, UnitCodes
from vqcortex.adapters.family import Files, Spec
from vqcortex.adapters.llamagen import (
    FAMILY,
    HalfSizes,
    LlamaGenNetwork,
    half_sizes,
    network_from,
    recognise_llamagen,
    wrap_llamagen,
)
from vqcortex.errors import ConfigError, ModelError

DATA = Path(__file__).parents[2] / "data" / "golden"
FILE = DATA / "llamagen_vq" / "vq_ds2_tiny.pt"
EXPECTED = load_file(DATA / "llamagen_vq" / "expected.safetensors")


def open_at(place=FILE, **options):
    query = "&".join(f"{key}={value}" for key, value in {"size": 16, **options}.items())
    return FAMILY.open(Spec.read(f"llamagen:{place}?{query}"))


def state_of() -> dict[str, torch.Tensor]:
    saved = torch.load(FILE, weights_only=True)["model"]
    return {key: value.float() for key, value in saved.items() if key != "quantize.codebook_used"}


@pytest.mark.parametrize("under", ["model", "ema", "state_dict", None])
def test_the_state_dict_may_be_in_several_places(tmp_path, under):
    torch.save(state_of() if under is None else {under: state_of(), "steps": 3}, tmp_path / "vq.pt")
    assert open_at(tmp_path / "vq.pt").identity == open_at().identity


def test_model_comes_before_its_average(tmp_path):
    other = {key: value + 1 for key, value in state_of().items()}
    torch.save({"ema": other, "model": state_of()}, tmp_path / "vq.pt")
    assert open_at(tmp_path / "vq.pt").identity == open_at().identity


def test_the_log_of_used_codes_is_no_part_of_the_model():
    model = open_at()
    assert not [key for key in model.module.state_dict() if "used" in key]
    assert {one.dtype for one in model.module.parameters()} == {torch.float32}


def test_a_folder_with_one_file_opens_and_with_two_asks_which(tmp_path):
    shutil.copy(FILE, tmp_path / "vq_ds16_c2i.pt")
    assert open_at(tmp_path).identity == open_at().identity
    save_file(state_of(), tmp_path / "vq_ds16_c2i.safetensors")
    assert open_at(tmp_path).identity == open_at().identity
    shutil.copy(FILE, tmp_path / "vq_ds8_c2i.pt")
    with pytest.raises(ModelError, match=r"holds 2 models: vq_ds16_c2i\.safetensors, vq_ds8_c2i\.pt; write llamagen:"):
        open_at(tmp_path)


def test_a_folder_without_a_model_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"holds no vq_ds\*\.pt and no model\.safetensors, but notes\.txt"):
        open_at(tmp_path)
    assert recognise_llamagen(Files(tmp_path)) is None


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_a_folder_as_pushed_to_the_hub_opens_and_its_config_can_switch_unit_length_off(tmp_path, nested):
    save_file(state_of(), tmp_path / "model.safetensors")
    assert isinstance(open_at(tmp_path).network.codes, UnitCodes)
    config = {"codebook_size": 64, "codebook_l2_norm": False}
    (tmp_path / "config.json").write_text(json.dumps({"config": config} if nested else config))
    model = open_at(tmp_path)
    assert isinstance(model.network.codes, TableCodes)
    assert torch.equal(model.codebook, EXPECTED["codebook_raw"])


PRESETS = {"VQ-16": (1, 1, 2, 2, 4), "VQ-8": (1, 2, 2, 4)}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_shapes_tell_the_presets(name):
    factors = PRESETS[name]
    widths = tuple(128 * one for one in factors)
    last = (False,) * (len(factors) - 1) + (True,)
    encoder = HalfSizes(widths=widths, blocks=2, attention=last, first=128, inputs=3, outputs=256)
    decoder = HalfSizes(widths=widths[::-1], blocks=3, attention=last[::-1], first=512, inputs=256, outputs=3)
    with torch.device("meta"):
        network = LlamaGenNetwork(encoder, decoder, 16384, 8)
    tensors, path = network.state_dict(), Path("file.pt")
    assert half_sizes(tensors, "encoder", path) == encoder
    assert half_sizes(tensors, "decoder", path) == decoder
    assert network.stride == {"VQ-16": 16, "VQ-8": 8}[name]


def test_encoder_and_decoder_may_be_of_other_widths():
    encoder = HalfSizes(widths=(32, 64), blocks=1, attention=(False, True), first=32, inputs=3, outputs=8)
    decoder = HalfSizes(widths=(96, 32), blocks=2, attention=(True, False), first=96, inputs=8, outputs=3)
    torch.manual_seed(0)
    whole = LlamaGenNetwork(encoder, decoder, 16, 4)
    torch.nn.init.normal_(whole.codes.weight)
    again = network_from(whole.state_dict(), Path("file.pt"))
    pixels = torch.rand(2, 3, 6, 10)
    with torch.no_grad():
        assert torch.equal(again.choose(pixels).tokens, whole.choose(pixels).tokens)
        assert again.decode(torch.zeros(1, 4, 3, 5)).shape == (1, 3, 6, 10)


# --- what is wrong


def saved(tmp_path, **changed) -> Path:
    state = {**state_of(), **{key.replace("/", "."): value for key, value in changed.items()}}
    torch.save({"model": {key: value for key, value in state.items() if value is not None}}, tmp_path / "vq.pt")
    return tmp_path / "vq.pt"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quantize.embedding.weight", None, r"'quantize\.embedding\.weight'"),
        ("decoder.conv_blocks.1.res.0.conv1.weight", None, r"'decoder\.conv_blocks\.1\.res\.0\.conv1\.weight'"),
        ("encoder.norm_out.bias", None, r"lacks 1 .*'encoder\.norm_out\.bias'"),
        ("decoder.more", torch.zeros(1), r"no place for.*'decoder\.more'"),
        ("encoder.norm_out.bias", torch.zeros(7), r"has shape \(7,\) where the model expects \(32,\)"),
        ("encoder.norm_out.bias", torch.full((32,), torch.nan), "32 of 32 numbers of 'encoder.norm_out.bias' are NaN"),
        ("quantize.embedding.weight", torch.zeros(64), r"has shape \(64,\) but codes by channels"),
        ("encoder.conv_in.weight", torch.zeros(40, 3, 3, 3), "encoder has 40 channels, which cannot be normalised"),
        ("encoder.conv_in.weight", torch.zeros(32, 1, 3, 3), "encoder has 2 levels from 1 channels"),
        ("encoder.conv_in.weight", torch.zeros(32), r"has shape \(32,\) but a convolution's"),
        ("encoder.conv_blocks.2.res.0.conv1.weight", torch.zeros(32, 32, 3, 3), "encoder has 3 levels .* 2 to 3"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, key, value, message):
    with pytest.raises(ModelError, match=message):
        open_at(saved(tmp_path, **{key: value}))


def test_a_truncated_file_is_refused(tmp_path):
    (tmp_path / "vq_ds16_c2i.pt").write_bytes(FILE.read_bytes()[:300_000])
    with pytest.raises(ModelError, match=r"vq_ds16_c2i\.pt"):
        open_at(tmp_path / "vq_ds16_c2i.pt")
    assert recognise_llamagen(Files(tmp_path)) is None


def test_an_unknown_option_and_a_size_that_does_not_fit_are_refused():
    with pytest.raises(ConfigError, match="no option 'heads'"):
        open_at(heads=3)
    with pytest.raises(ConfigError, match="not a multiple of the 2 pixels"):
        open_at(size=15)


def test_nothing_else_is_taken_for_one():
    kinds = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}
    looked_at = [path for folder in sorted(DATA.iterdir()) if folder.is_dir() and folder.name != "llamagen_vq"
                 for path in (folder, *sorted(folder.rglob("*")))
                 if path.is_dir() or (path.suffix in kinds and path.name != "expected.safetensors")]  # fmt: skip
    assert len(looked_at) > 6
    assert [path for path in looked_at if recognise_llamagen(Files(path))] == []


# --- live models


def live(module="tokenizer.tokenizer_image.vq_model", unit=True):
    model = network_from(state_of(), FILE)
    model.quantize.l2_norm = unit
    model.__class__ = type("VQModel", (LlamaGenNetwork,), {"__module__": module})
    return model


def test_a_live_model_is_wrapped_and_shares_its_weights():
    model = live()
    adapter = wrap_llamagen(model)
    assert torch.equal(adapter.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
    assert (adapter.name, adapter.family, adapter.size) == ("live:VQModel", "llamagen", (256, 256))
    assert adapter.network.codes.weight.data_ptr() == model.codes.weight.data_ptr()


def test_a_live_model_without_unit_length_is_taken_at_its_word():
    assert isinstance(wrap_llamagen(live(unit=False)).network.codes, TableCodes)


def test_other_live_objects_are_left_alone():
    assert wrap_llamagen(live(module="mine.vq_model")) is None
    assert wrap_llamagen(object()) is None
