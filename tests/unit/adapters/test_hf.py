"""What folders of transformers look like, whole models among them, and what can be wrong; numbers: tests/parity."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, caching, files_of, go_offline, serving
from safetensors.torch import load_file, save_file

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.hf import recognise, wrap
from vqcortex.errors import ConfigError, MissingExtra, ModelError

DATA = Path(__file__).parents[2] / "data" / "golden"
CHAMELEON, EMU3, JANUS = DATA / "hf_chameleon_vqvae", DATA / "hf_emu3_vqvae", DATA / "hf_janus_vqvae"
KINDS = {"chameleon": CHAMELEON, "emu3": EMU3, "janus": JANUS}
CODES = "quantize.embedding.weight"


def opened(path, options="size=16"):
    return load_model(f"transformers:{path}?{options}")


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


def change(folder, **changed):
    (folder / "config.json").write_text(json.dumps({**settings_of(folder), **changed}))


@pytest.fixture
def folder(tmp_path):
    """A copy of Janus' tokenizer, to be spoilt."""
    return shutil.copytree(JANUS, tmp_path / "janus")


def whole_model(kind):
    """A tiny language model around the tokenizer, as the library makes it."""
    import transformers

    text = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    vq = settings_of(KINDS[kind])
    names = {"vocabulary_map": {"<image>": 3}}
    if kind == "chameleon":
        config = transformers.ChameleonConfig(**text, **names, vq_config=vq)
        return transformers.ChameleonForConditionalGeneration(config)
    if kind == "emu3":
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = transformers.Emu3Config(text_config={**text, **ids}, **names, vq_config=vq)
        return transformers.Emu3ForConditionalGeneration(config)
    seeing = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
              "projection_dim": 16, "mlp_ratio": 1}  # fmt: skip
    vq = {**vq, "projection_dim": 16, "image_token_embed_dim": 64}
    config = transformers.JanusConfig(text_config={"model_type": "llama", **text}, vision_config=seeing, vq_config=vq)
    return transformers.JanusForConditionalGeneration(config)


def part_of(model):
    return next(part for name, part in model.named_modules() if name.endswith("vqmodel"))


# --- alone


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_or_its_file_is_recognised_and_says_so(kind):
    model = load_model(KINDS[kind])
    assert model.family == "transformers"
    assert model.recognised == f"a config.json of model_type '{kind}_vqgan': {kind.title()} of transformers"
    assert load_model(KINDS[kind] / "model.safetensors").identity == model.identity


def test_nothing_else_is_recognised(tmp_path):
    found = {folder.name for folder in sorted(DATA.iterdir()) if recognise(Files(folder))}
    assert found == {"hf_chameleon_vqvae", "hf_emu3_vqvae", "hf_janus_vqvae"}
    assert recognise(Files(JANUS / "expected.safetensors")) is None
    assert recognise(Files(tmp_path)) is None


def test_sizes_come_from_the_config():
    assert load_model(CHAMELEON).size == (16, 16)
    assert load_model(JANUS).size == (16, 16)
    assert load_model(EMU3).grid == (64, 64)  # nothing says it: that of the smallest images of its processor


def test_pickled_weights_are_read_where_there_are_no_others(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert opened(folder).identity == opened(JANUS).identity


# --- pixels


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config", "processor_config"])
def test_the_range_of_pixels_is_the_preprocessor_s(tmp_path, nested):
    emu3 = shutil.copytree(EMU3, tmp_path / "emu3")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 1 / 255}
    file = emu3 / ("processor_config.json" if nested else "preprocessor_config.json")
    file.write_text(json.dumps({"image_processor": settings} if nested else settings))
    found = opened(emu3).network.prepare(torch.ones(1, 3, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]))
    assert opened(emu3).identity != opened(EMU3).identity


def test_a_preprocessor_that_does_not_normalise_is_believed(tmp_path):
    emu3 = shutil.copytree(EMU3, tmp_path / "emu3")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "do_normalize": False}
    (emu3 / "preprocessor_config.json").write_text(json.dumps(settings))
    torch.testing.assert_close(opened(emu3).network.prepare(torch.ones(1, 3, 1, 1)), torch.ones(1, 3, 1, 1))


def test_the_preprocessor_of_janus_is_that_of_its_other_tower(folder):
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert opened(folder).identity == opened(JANUS).identity


@pytest.mark.parametrize("wrong", [{"image_mean": 0.5}, {"image_std": [1, 1, "x"]}, {"rescale_factor": "1/255"}])
def test_a_preprocessor_without_sense_is_blamed(tmp_path, wrong):
    emu3 = shutil.copytree(EMU3, tmp_path / "emu3")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], **wrong}
    (emu3 / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=rf"preprocessor_config\.json' has {next(iter(wrong))} .* restore it"):
        opened(emu3)


# --- inside a language model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of whole models in many parts, made once each."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made: dict[str, Path] = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            model = whole_model(kind)
            part_of(model).load_state_dict(load_file(KINDS[kind] / "model.safetensors"), strict=False)
            model.save_pretrained(made[kind], max_shard_size="100KB")
        return made[kind]

    return make


def places_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_opened_from_its_language_model(saved, kind, tmp_path):
    folder = shutil.copytree(saved(kind), tmp_path / kind)
    places = places_of(folder)
    needed = {file for key, file in places.items() if "vqmodel." in key}
    spared = set(places.values()) - needed
    assert spared  # the language model's own files: never read, so they need not be there
    for name in spared:
        (folder / name).unlink()
    model = load_model(folder)
    assert model.recognised == f"a config.json of model_type '{kind}': {kind.title()} of transformers"
    alone = opened(KINDS[kind])
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.encode(pixels), alone.encode(pixels))
    assert torch.equal(model.codebook, alone.codebook)


def test_the_grid_of_a_whole_janus_is_that_of_its_vision_tower(saved):
    assert load_model(saved("janus")).grid == (4, 4)  # 16 pixels in patches of 4; the part's own config says 8


def test_a_language_model_in_one_file_is_opened_too(saved, tmp_path):
    folder = saved("chameleon")
    together = {}
    for name in set(places_of(folder).values()):
        together.update(load_file(folder / name))
    shutil.copy(folder / "config.json", tmp_path)
    save_file(together, tmp_path / "model.safetensors")
    assert opened(tmp_path).identity == opened(CHAMELEON).identity


def test_a_missing_part_is_named(saved, tmp_path):
    folder = shutil.copytree(saved("chameleon"), tmp_path / "copy")
    file = next(file for key, file in places_of(folder).items() if key.endswith(CODES))
    (folder / file).unlink()
    with pytest.raises(ModelError, match=f"{file}' cannot be (read|opened)"):
        opened(folder)


def test_a_language_model_without_its_tokenizer_is_named(saved, tmp_path):
    folder = shutil.copytree(saved("chameleon"), tmp_path / "copy")
    kept = {key: file for key, file in places_of(folder).items() if "vqmodel" not in key}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": kept}))
    with pytest.raises(ModelError, match=r"has 0 keys 'quantize\.embedding\.weight' where the image tokenizer has one"):
        opened(folder)


# --- on the hub


def test_of_a_language_model_on_the_hub_only_its_tokenizer_is_fetched(saved, tmp_path, monkeypatch):
    folder = saved("chameleon")
    spared = set(places_of(folder).values()) - {file for key, file in places_of(folder).items() if "vqmodel." in key}
    with caching(monkeypatch, tmp_path), serving(monkeypatch, files_of(folder)) as asked:
        model = opened("owner/name")
        fetched = {path.rsplit("/", 1)[1] for path in asked if "/resolve/" in path}
        assert "config.json" in fetched
        assert spared
        assert not fetched & spared
        asked.clear()
        go_offline(monkeypatch)
        assert opened("owner/name").identity == model.identity
        assert asked == []
    assert model.identity == opened(CHAMELEON).identity


def test_a_tokenizer_in_one_file_is_opened_from_the_hub(tmp_path, monkeypatch):
    files = {f"vq/{name}": one for name, one in files_of(JANUS).items()}
    with caching(monkeypatch, tmp_path), serving(monkeypatch, files) as asked:
        for place in ("owner/name#vq", f"owner/name#vq?revision={COMMIT}"):
            joint = "&" if "?" in place else "?"
            assert load_model(f"transformers:{place}{joint}size=16").identity == opened(JANUS).identity
        assert not any("expected" in path for path in asked)
        with pytest.raises(
            ModelError, match=r"folder 'nothing' of hub repository 'owner/name' holds nothing like config"
        ):
            load_model("transformers:owner/name#nothing")


# --- what can be wrong


def test_another_model_type_is_refused(folder):
    change(folder, model_type="multi_modality")
    with pytest.raises(ModelError, match="model_type 'multi_modality'; known are 'chameleon' or 'chameleon_vqgan'"):
        opened(folder)


def test_another_model_s_config_is_refused(folder):
    change(folder, num_embeddings=65)
    with pytest.raises(ModelError, match=r"'quantize\.embedding\.weight' has shape \(64, 8\) where .* \(65, 8\)"):
        opened(folder)
    change(folder, model_type="chameleon_vqgan", num_embeddings=64, resolution=16)
    with pytest.raises(ModelError, match=r"lacks|has no place for"):
        opened(folder)


@pytest.mark.parametrize("wrong", [{"num_embeddings": "many"}, {"channel_multiplier": 3}, {"base_channels": 33}])
def test_a_config_without_sense_is_blamed(folder, wrong):
    change(folder, **wrong)
    with pytest.raises(ModelError, match=r"is no config of Janus|describes no model that can be built"):
        opened(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        opened(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds none of model\.safetensors, pytorch_model\.bin but config\.json"):
        opened(folder)


def test_truncated_weights_are_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="SafetensorError"):
        opened(folder)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda tensors: tensors.pop("quant_conv.bias"), "lacks 1 of the model's .*'quant_conv.bias'"),
        (lambda tensors: tensors.pop(CODES), "has 0 keys"),
        (lambda tensors: tensors.update({f"two.{CODES}": torch.ones(1)}), "has 2 keys"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "holds 1 that the model has no place for .*'extra'"),
        (lambda tensors: tensors.update({CODES: torch.ones(2, 8)}), r"has shape \(2, 8\) where"),
        (lambda tensors: tensors[CODES].view(-1)[:3].fill_(torch.inf), f"3 of 512 numbers of '{CODES}' are NaN or inf"),
    ],
    ids=["missing", "no codes", "two codes", "unexpected", "shape", "infinite"],
)
def test_wrong_tensors_are_named(folder, edit, match):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=match):
        opened(folder)


def test_unknown_options_are_named():
    with pytest.raises(ConfigError, match=r"no option 'pixels'; known: dtype, ignore, revision, size"):
        opened(JANUS, "pixels=unit")


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"'vqcortex\[transformers\]'"):
        opened(JANUS)


# --- live objects


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_inside_a_live_language_model_is_used_as_it_is(kind):
    whole = whole_model(kind)
    part = part_of(whole)
    model = load_model(whole)
    assert model.name == f"live:{type(whole).__qualname__}"
    assert model.network.model is part
    assert wrap(part).identity == model.identity
    assert not any(one.requires_grad for one in part.parameters())
    assert any(one.requires_grad for one in whole.parameters())  # the rest is left alone
    pixels = torch.rand(1, 3, 16, 16)
    assert model.encode(pixels).shape == (1, 8, 8)


def test_half_precision_stays_half_in_a_live_model():
    model = wrap(part_of(whole_model("janus")).to(torch.bfloat16))
    assert model.dtype == torch.bfloat16
    assert model.decode(model.embed(model.encode(torch.rand(1, 3, 16, 16)))).dtype == torch.float32


def test_other_objects_are_none_of_this_family():
    from transformers import BertConfig, BertModel

    assert wrap(torch.nn.Linear(1, 1)) is None
    assert wrap("janus") is None
    tiny = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    assert wrap(BertModel(tiny)) is None
