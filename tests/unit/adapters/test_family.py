"""Names of models taken apart, and files looked at from outside."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vqcortex.adapters.family import Family, Files, Spec, expanded, file_in, table_shape
from vqcortex.adapters.protocol import ENCODE
from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError

# What may stand in a path or hub id without meaning anything in a model's name.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="#?:\0", exclude_categories=["Cs", "Cc"]), max_size=20)
WORDS = st.from_regex(r"[a-z][a-z0-9_-]{1,8}", fullmatch=True)
OPTIONS = st.dictionaries(
    WORDS, st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1), max_size=3
)

# ---------------------------------------------------------------------------------------------------------------------
# Spec


@pytest.mark.parametrize(
    ("text", "family", "place", "subfolder", "options"),
    [
        ("taming:/models/vqgan", "taming", "/models/vqgan", "", {}),
        ("diffusers:amused/amused-256#vqvae?size=256", "diffusers", "amused/amused-256", "vqvae", {"size": "256"}),
        ("toy", "", "toy", "", {}),
        ("./model.pt?dtype=bfloat16&size=64x32", "", "./model.pt", "", {"dtype": "bfloat16", "size": "64x32"}),
        (r"C:\models\vqgan", "", r"C:\models\vqgan", "", {}),
        ("var:x.pth?scales=1,2,3", "var", "x.pth", "", {"scales": "1,2,3"}),
        ("taming:a:b", "taming", "a:b", "", {}),
    ],
)
def test_a_name_is_taken_apart(text, family, place, subfolder, options):
    spec = Spec.read(text)
    assert (spec.family, spec.place, spec.subfolder, dict(spec.options)) == (family, place, subfolder, options)
    assert spec.text == text


@given(WORDS, TEXTS.filter(bool), TEXTS, OPTIONS)
def test_what_is_put_together_is_taken_apart_again(family, place, subfolder, options):
    made = Spec(text="", family=family, place=place, subfolder=subfolder, options=options).settled(family)
    again = Spec.read(made.text)
    assert (again.family, again.place, again.subfolder, dict(again.options)) == (
        family, made.place, subfolder, options,
    )  # fmt: skip
    assert again.settled(family).text == made.text


def test_a_home_that_nobody_has_is_a_path_like_any_other():
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert expanded("~/x") == Path.home() / "x"


def test_a_path_that_exists_is_made_absolute(tmp_path, monkeypatch):
    (tmp_path / "model.pt").touch()
    monkeypatch.chdir(tmp_path)
    spec = Spec.read("./model.pt?size=64").settled("taming", "by its keys")
    assert spec.text == f"taming:{tmp_path / 'model.pt'}?size=64"
    assert (spec.family, spec.recognised) == ("taming", "by its keys")
    assert Spec.read("hub/id").settled("diffusers").text == "diffusers:hub/id"


@pytest.mark.parametrize("text", ["x:y?", "x:y?size", "x:y?size=1&more", "x:y?size=1&size=2"])
def test_half_an_option_is_refused(text):
    with pytest.raises(ConfigError, match=r"in model .* is not OPTION=VALUE&OPTION=VALUE; write \?size=256, say"):
        Spec.read(text)


def test_unknown_options_are_refused_with_the_known_ones():
    spec = Spec.read("var:x?sice=3")
    with pytest.raises(ConfigError, match="has no option 'sice'; known: dtype, ignore, revision, scales, size"):
        spec.check("scales")
    Spec.read("var:x?size=3&scales=1,2").check("scales")


@pytest.mark.parametrize(("text", "size"), [("64", (64, 64)), ("64x32", (64, 32))])
def test_sizes_are_read(text, size):
    assert Spec.read(f"x:y?size={text}").size((1, 2)) == size
    assert Spec.read("x:y").size((1, 2)) == (1, 2)


@pytest.mark.parametrize("text", ["", "0", "64x", "x64", "64x32x3", "big", "-4", "4.5", "0x8"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError, match=rf"size='{text}' of model .* is not pixels; write \?size=256 or \?size=256x"):
        Spec.read(f"x:y?size={text}").size((1, 1))


def test_number_types_are_read():
    assert Spec.read("x:y").dtype() == torch.float32
    assert Spec.read("x:y?dtype=bfloat16").dtype() == torch.bfloat16
    with pytest.raises(
        ConfigError, match=r"dtype='half' of model 'x:y.*' is unknown; known: float32, bfloat16, float16"
    ):
        Spec.read("x:y?dtype=half").dtype()


def test_names_to_ignore_are_a_list():
    assert Spec.read("x:y?ignore=__main__.Config,other.Thing,").ignore == ("__main__.Config", "other.Thing")
    assert Spec.read("x:y").ignore == ()


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_path_to_nothing_is_refused(tmp_path):
    with pytest.raises(ModelError, match="nowhere' does not exist; name a checkpoint file or a model's folder"):
        Files(tmp_path / "nowhere")


def test_a_folder_is_looked_at_from_outside(tmp_path):
    for name in ("a.ckpt", "b.ckpt", "c.pt"):
        (tmp_path / name).touch()
    (tmp_path / "d.ckpt").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}))
    files = Files(tmp_path)
    assert files.find("*.ckpt") == tmp_path / "b.ckpt"
    assert files.find("*.bin", "*.pt") == tmp_path / "c.pt"
    assert files.find("*.bin") is None
    assert files.config == {"model_type": "x"}
    assert (files.checkpoint, files.tensors) == (None, {})
    assert not files.has("a")


def test_a_config_that_is_no_table_counts_as_none(tmp_path):
    assert Files(tmp_path).config == {}
    (tmp_path / "config.json").write_text("[1]")
    assert Files(tmp_path).config == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json' is not JSON .*; restore it from where the model came from"):
        _ = Files(tmp_path).config


def test_a_file_shows_its_keys(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path / "x.safetensors")
    files = Files(tmp_path / "x.safetensors")
    assert files.find("*") is None
    assert files.config == {}
    assert files.has("a", "b")
    assert not files.has("a", "c")
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    assert Files(tmp_path / "x.pt").tensors == {}


def test_the_checkpoint_of_a_path_is_found_or_missed(tmp_path):
    with pytest.raises(ModelError, match=r"the folder .* holds no \*\.pth or \*\.pt; name the checkpoint file itself"):
        file_in(tmp_path, "*.pth", "*.pt")
    (tmp_path / "x.pt").touch()
    assert file_in(tmp_path, "*.pth", "*.pt") == file_in(tmp_path / "x.pt", "*.pth") == tmp_path / "x.pt"
    with pytest.raises(ModelError, match="does not exist"):
        file_in(tmp_path / "y.pt", "*.pt")


def test_a_codebook_has_two_axes_and_fits_the_latent(tmp_path):
    tensors = {"table": torch.zeros(64, 8), "flat": torch.zeros(64), "empty": torch.zeros(0, 8)}
    assert table_shape(tensors, "table", tmp_path, d=8) == (64, 8)
    assert table_shape(tensors, "table", tmp_path, d=64, is_transposed=True) == (8, 64)
    with pytest.raises(ModelError, match=r"'flat' has shape \(64,\) but a codebook is \(k, d\), codes by channels"):
        table_shape(tensors, "flat", tmp_path)
    with pytest.raises(ModelError, match=r"'empty' has shape \(0, 8\) but a codebook is \(d, k\), channels by codes"):
        table_shape(tensors, "empty", tmp_path, is_transposed=True)
    with pytest.raises(
        ModelError, match="'table' has codes of 8 numbers but the latent has 9 channels; the file mixes"
    ):
        table_shape(tensors, "table", tmp_path, d=9)
    with pytest.raises(ModelError, match="has no key 'other'"):
        table_shape(tensors, "other", tmp_path)


def test_a_family_recognises_nothing_unless_it_says_how(tmp_path):
    family = Family(name="x", title="X", formats="a file", abilities=(ENCODE,), open=lambda _: ToyAdapter())
    assert family.recognise(Files(tmp_path)) is None
    assert family.wrap(object()) is None
    assert family.levels == "one"
