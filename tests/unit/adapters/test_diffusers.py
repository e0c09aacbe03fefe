"""What diffusers folders look like, and what can be wrong with them; the numbers are in tests/parity."""

import copy
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import OLDER, caching, files_of, go_offline, serving, snapshot
from safetensors.torch import load_file, save_file

from vqcortex.adapters import load_model
from vqcortex.adapters.diffusers import CLASS, FAMILY, STEM, recognise, wrap
from vqcortex.adapters.family import Files
from vqcortex.errors import ConfigError, MissingExtra, ModelError

DATA = Path(__file__).parents[2] / "data" / "golden"
PLAIN, AMUSED, MOVQ = DATA / "diffusers_vqmodel", DATA / "diffusers_amused_vqmodel" / "vqvae", DATA / "diffusers_movq"


@pytest.fixture
def folder(tmp_path):
    """A copy of the plain model, to be spoilt."""
    return shutil.copytree(PLAIN, tmp_path / "model")


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline's folder, as save_pretrained writes it, around the model of aMUSEd."""
    root = tmp_path / "pipeline"
    shutil.copytree(AMUSED, root / "vqvae")
    index = {"_class_name": "SomePipeline", "vqvae": ["diffusers", CLASS], "transformer": ["diffusers", "UVit2DModel"]}
    write(root / "model_index.json", index)
    (root / "transformer").mkdir()
    write(root / "transformer" / "config.json", {"_class_name": "UVit2DModel", "sample_size": 6})
    return root


def write(path, value):
    path.write_text(json.dumps(value))


def change(folder, **changed):
    write(folder / "config.json", {**json.loads((folder / "config.json").read_text()), **changed})


def weights_of(folder):
    return folder / f"{STEM}.safetensors"


def spoil(folder, edit):
    tensors = load_file(weights_of(folder))
    edit(tensors)
    save_file(tensors, weights_of(folder))


def opened(path, options="size=16"):
    return load_model(f"diffusers:{path}?{options}")


# --- where the model is


def test_a_folder_is_recognised_and_says_so():
    model = load_model(PLAIN)
    assert model.family == "diffusers"
    assert model.recognised == "a config.json of class VQModel: diffusers"
    assert model.identity == load_model(f"diffusers:{PLAIN}").identity


def test_weights_beside_a_config_are_a_model():
    model = load_model(weights_of(PLAIN))
    assert model.recognised == "weights beside a config.json of class VQModel: diffusers"
    assert model.identity == load_model(PLAIN).identity


def test_nothing_else_is_recognised(tmp_path):
    found = {folder.name: recognise(Files(folder)) for folder in sorted(DATA.iterdir())}
    assert {name for name, why in found.items() if why} == {
        "diffusers_vqmodel", "diffusers_amused_vqmodel", "diffusers_movq",
    }  # fmt: skip
    assert recognise(Files(tmp_path)) is None
    write(tmp_path / "config.json", {"_class_name": "AutoencoderKL"})
    assert recognise(Files(tmp_path)) is None
    assert recognise(Files(tmp_path / "config.json")) is None


def test_a_pipeline_s_folder_leads_to_its_model(pipeline):
    model = load_model(pipeline)
    assert "'vqvae' is a VQModel" in model.recognised
    assert model.identity == load_model(f"diffusers:{pipeline}#vqvae").identity
    (pipeline / "model_index.json").unlink()
    assert load_model(pipeline).family == "diffusers"  # by the usual names


def test_two_models_in_a_pipeline_ask_for_a_choice(pipeline):
    shutil.copytree(MOVQ, pipeline / "movq")
    write(pipeline / "model_index.json", {"movq": ["diffusers", CLASS], "vqvae": ["diffusers", CLASS]})
    with pytest.raises(ModelError, match="holds 2 VQModels; write one of #movq, #vqvae"):
        opened(pipeline)
    assert load_model(f"diffusers:{pipeline}#movq?size=16").d == 4


def test_a_pipeline_without_such_a_model_is_named(tmp_path):
    write(tmp_path / "model_index.json", {"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]})
    with pytest.raises(
        ModelError, match=r"holds no VQModel, neither a config\.json nor a part of that class: model_index"
    ):
        opened(tmp_path)
    write(tmp_path / "model_index.json", {"movq": ["diffusers", CLASS]})
    with pytest.raises(ModelError, match="has no folder 'movq'"):
        opened(tmp_path)


# --- which file


def test_the_most_precise_file_is_read(folder):
    tensors = load_file(weights_of(folder))
    half = {name: one.half() for name, one in tensors.items()}
    weights_of(folder).rename(folder / f"{STEM}.ema.safetensors")
    for name in ("bf16", "fp16"):
        save_file(half, folder / f"{STEM}.{name}.safetensors")
    assert opened(folder).identity == opened(PLAIN).identity
    chosen = opened(folder, "size=16&variant=fp16")
    assert chosen.identity != opened(PLAIN).identity
    assert torch.equal(chosen.codebook, half["quantize.embedding.weight"].float())


def test_pickled_weights_are_read_where_there_are_no_others(folder):
    torch.save(load_file(weights_of(folder)), folder / f"{STEM}.bin")
    weights_of(folder).unlink()
    assert opened(folder).identity == opened(PLAIN).identity


def test_an_absent_variant_is_named_with_those_there_are(folder):
    with pytest.raises(ModelError, match="has no variant 'fp16'; it has: the one without a name"):
        opened(folder, "variant=fp16")
    with pytest.raises(ModelError, match="has no variant 'bf16'; it has: fp16"):
        opened(MOVQ, "variant=bf16")


def test_a_folder_without_weights_is_named(folder):
    weights_of(folder).unlink()
    with pytest.raises(
        ModelError, match=rf"holds no {STEM}\.safetensors or \.bin: config\.json, expected\.safetensors"
    ):
        opened(folder)


# --- on the hub


@pytest.mark.parametrize("place", ["owner/name", "owner/name#vqvae"])
def test_of_a_pipeline_on_the_hub_one_file_of_weights_is_fetched(pipeline, place, tmp_path, monkeypatch):
    for name in (f"{STEM}.fp16.safetensors", f"{STEM}.bin"):
        (pipeline / "vqvae" / name).write_bytes(b"not wanted")
    (pipeline / "transformer" / f"{STEM}.safetensors").write_bytes(b"not wanted")
    with caching(monkeypatch, tmp_path / "cache"), serving(monkeypatch, files_of(pipeline)) as asked:
        model = load_model(f"diffusers:{place}")
        assert {path for path in asked if path.endswith((".bin", ".safetensors"))} == {
            path for path in asked if path.endswith(f"/vqvae/{STEM}.safetensors")
        }
        assert model.size == (24, 24)  # the pipeline's other configs were read
        asked.clear()
        go_offline(monkeypatch)
        assert load_model(f"diffusers:{place}").identity == model.identity
        assert asked == []
    assert model.identity == load_model(f"diffusers:{AMUSED}?size=24").identity


def test_a_model_that_has_only_half_precision_on_the_hub_is_found(tmp_path, monkeypatch):
    with caching(monkeypatch, tmp_path), serving(monkeypatch, files_of(MOVQ)):
        assert load_model("diffusers:owner/name?size=16").identity == opened(MOVQ).identity
        assert load_model("diffusers:owner/name?size=16&variant=fp16").identity == opened(MOVQ).identity
        with pytest.raises(ModelError, match=r"holds nothing like .*\.bf16\.safetensors or .*\.bf16\.bin"):
            load_model("diffusers:owner/name?variant=bf16")


def test_a_revision_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    with caching(monkeypatch, tmp_path):
        go_offline(monkeypatch)
        snapshot(tmp_path, files_of(PLAIN))
        snapshot(tmp_path, files_of(MOVQ), commit=OLDER, ref="v1")
        assert load_model("diffusers:owner/name").d == 3
        assert load_model("diffusers:owner/name?revision=v1").d == 4


# --- what the model is like


def test_the_range_of_pixels_is_that_of_the_pipeline(pipeline):
    change(pipeline / "vqvae", mid_block_add_attention=False)
    unit = load_model(f"diffusers:{pipeline}?size=32").identity
    assert unit == load_model(f"diffusers:{pipeline}?size=32&pixels=unit").identity
    assert unit != load_model(f"diffusers:{pipeline}?size=32&pixels=signed").identity


@pytest.mark.parametrize(("pipeline_class", "same"), [("AmusedPipeline", "unit"), ("LDMPipeline", "signed")])
def test_the_range_of_a_model_with_attention_is_told_by_its_pipeline(tmp_path, pipeline_class, same):
    shutil.copytree(PLAIN, tmp_path / "vqvae")
    write(tmp_path / "model_index.json", {"_class_name": pipeline_class, "vqvae": ["diffusers", CLASS]})
    for place in (f"{tmp_path}", f"{tmp_path}#vqvae", f"{tmp_path}/vqvae"):
        model = load_model(f"diffusers:{place}?size=16")
        assert model.identity == opened(PLAIN, f"size=16&pixels={same}").identity


def test_the_size_is_that_of_the_pipeline_or_the_config_or_256(pipeline, folder):
    assert load_model(pipeline).size == (24, 24)  # 6 x 6 latents of 4 pixels
    assert load_model(folder).size == (256, 256)  # the class's default of 32 says nothing
    change(folder, sample_size=65)
    assert load_model(folder).size == (64, 64)
    assert load_model(f"diffusers:{folder}?size=8x10").grid == (4, 5)


def test_unknown_options_are_named(folder):
    with pytest.raises(ConfigError, match=r"no option 'colour'; known: dtype, ignore, pixels, revision, size, variant"):
        opened(folder, "colour=red")
    with pytest.raises(ConfigError, match=r"pixels='half' .* is unknown; known: signed, unit"):
        opened(folder, "pixels=half")


def test_settings_without_weights_are_part_of_the_identity(folder):
    change(folder, norm_num_groups=8)
    assert opened(folder).identity != opened(PLAIN).identity


# --- what can be wrong


def test_another_class_is_refused(folder):
    change(folder, _class_name="AutoencoderKL")
    with pytest.raises(ModelError, match="is of class 'AutoencoderKL' where 'VQModel' is needed; name the folder"):
        opened(folder)


def test_another_model_s_config_is_refused(folder):
    change(folder, num_vq_embeddings=65)
    with pytest.raises(ModelError, match=r"'quantize\.embedding\.weight' has shape \(64, 3\) where .* \(65, 3\)"):
        opened(folder)
    shutil.copy(MOVQ / "config.json", folder)
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's \d+ tensors"):
        opened(folder)


@pytest.mark.parametrize("wrong", [{"block_out_channels": "wide"}, {"act_fn": "??"}, {"down_block_types": ["No"]}])
def test_a_config_without_sense_is_blamed(folder, wrong):
    change(folder, **wrong)
    with pytest.raises(ModelError, match=r"config\.json' describes no model that can be built"):
        opened(folder)


def test_a_config_that_is_cut_off_is_blamed(folder):
    (folder / "config.json").write_text('{"_class_name": "VQ')
    with pytest.raises(ModelError, match=r"config\.json' is not JSON"):
        opened(folder)


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="holds no VQModel"):
        opened(folder)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        opened(weights_of(folder))


def test_truncated_weights_are_refused(folder):
    content = weights_of(folder).read_bytes()
    weights_of(folder).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="SafetensorError"):
        opened(folder)


def test_wrong_tensors_are_named(folder):
    key = "post_quant_conv.weight"
    whole = weights_of(folder).read_bytes()
    for edit, match in (
        (lambda tensors: tensors.pop(key), f"lacks 1 of the model's .*'{key}'"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "holds 1 that the model has no place for .*'extra'"),
        (lambda tensors: tensors.update({key: torch.ones(2, 2)}), rf"'{key}' has shape \(2, 2\) where"),
        (lambda tensors: tensors[key].view(-1)[:2].fill_(torch.nan), f"2 of 9 numbers of '{key}' are NaN"),
    ):
        weights_of(folder).write_bytes(whole)
        spoil(folder, edit)
        with pytest.raises(ModelError, match=match):
            opened(folder)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"'vqcortex\[diffusers\]'"):
        opened(PLAIN)


# --- live objects


@pytest.fixture(scope="module")
def live():
    from diffusers import VQModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    return VQModel(**blocks, block_out_channels=[8, 8, 16], norm_num_groups=4, num_vq_embeddings=30, sample_size=20)


def test_a_live_model_is_used_as_it_is(live):
    model = load_model(live)
    assert model.name == "live:VQModel"
    assert model.network.model is live
    assert model.size == (20, 20)
    assert (model.k, model.d, model.grid) == (30, 3, (5, 5))
    assert not live.training
    pixels = torch.rand(2, 3, 20, 12)
    tokens = model.encode(pixels)
    with torch.no_grad():
        official = live.decode(live.encode(2 * pixels - 1).latents).sample
        torch.testing.assert_close(model.decode(model.embed(tokens)), (official / 2 + 0.5).clamp(0, 1))


def test_half_precision_stays_half_in_a_live_model(live):
    model = wrap(copy.deepcopy(live).to(torch.bfloat16))
    assert model.dtype == torch.bfloat16
    assert model.decode(model.embed(model.encode(torch.rand(1, 3, 8, 8)))).dtype == torch.float32


def test_the_model_inside_a_live_pipeline_is_found(live):
    class AmusedPipeline(SimpleNamespace):
        __module__ = "diffusers.pipelines.amused.pipeline_amused"

    model = wrap(AmusedPipeline(vqvae=live, transformer=None))
    assert model.name == "live:AmusedPipeline"
    assert model.network.model is live
    assert model.identity != load_model(live).identity  # [0, 1] instead of [-1, 1]


@pytest.mark.parametrize("other", [torch.nn.Linear(1, 1), 3, SimpleNamespace(vqvae=None)], ids=["layer", "int", "box"])
def test_other_objects_are_none_of_this_family(other):
    assert wrap(other) is None


def test_a_diffusers_object_without_a_vq_model_is_none_of_this_family():
    class Other(SimpleNamespace):
        __module__ = "diffusers.pipelines.other"

    assert wrap(Other(vqvae=3)) is None


def test_the_family_says_what_it_can_do():
    assert FAMILY.abilities == ("encode", "decode")
