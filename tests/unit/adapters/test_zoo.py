"""The embedded models are whole, and altered ones are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import Likely, Steerable
from vqcortex.adapters.zoo import ZOO, load_zoo, open_model
from vqcortex.errors import ConfigError, ModelError, ShapeError
from vqcortex.files import hash_of_file

FASHION = ZOO / "fashion"


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(FASHION, tmp_path / "fashion")
    return tmp_path / "fashion"


def test_everything_shipped_fits_in_six_megabytes():
    assert sum(path.stat().st_size for path in FASHION.iterdir()) <= 6_000_000


def test_an_altered_file_is_refused(copy):
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="was altered or cut short"):
        open_model(copy, "zoo:fashion")


def test_nan_weights_are_refused_even_with_a_fitting_hash(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["codes"][3, 2] = torch.nan
    save_file(tensors, copy / "model.safetensors")
    about = json.loads((copy / "model.json").read_text())
    about["model"]["sha256"] = hash_of_file(copy / "model.safetensors")
    (copy / "model.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="1 of 8192 numbers of 'codes' are NaN or infinite"):
        open_model(copy, "zoo:fashion")


def test_a_missing_file_is_named(copy):
    (copy / "prior.safetensors").unlink()
    with pytest.raises(ModelError, match=r"prior\.safetensors' do not exist"):
        open_model(copy, "zoo:fashion")


def test_a_changed_setting_is_noticed(copy):
    about = json.loads((copy / "model.json").read_text())
    about["model"]["settings"]["wide"] += 1
    (copy / "model.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="does not fit its settings"):
        open_model(copy, "zoo:fashion")


def test_the_card_tells_the_figures_that_were_measured():
    figures = json.loads((FASHION / "figures.json").read_text())
    card = (FASHION / "README.md").read_text()
    assert f"{figures['test_mse']:.4f}" in card
    assert all(f"{one['accuracy']:.2%}" in card for one in figures["judges"].values())
    assert figures["test_mse"] <= 0.020
    assert figures["codes_alive"] >= 0.95 * figures["codes"]


def test_the_model_knows_its_classes():
    assert load_zoo("fashion").concepts[8] == "Bag"


def test_it_is_one_level_and_can_do_everything():
    model = load_zoo("fashion")
    assert (model.family, model.k, model.d, model.device.type) == ("zoo", 256, 32, "cpu")
    assert [(level.name, level.grid, level.codes) for level in model.levels] == [("tokens", (7, 7), (0, 256))]
    assert model.abilities == {"encode", "decode", "generate"}


def test_what_it_draws_is_likelier_for_its_own_concept():
    model = load_zoo("fashion")
    concept = torch.tensor([0, 7])
    tokens = model.generate(concept, ["a", "b"], 0)
    own, other = (
        model.log_probabilities(tokens, one).gather(1, tokens[:, None]).sum((1, 2, 3))
        for one in (concept, concept.flip(0))
    )
    assert isinstance(model, Likely)
    assert (own > other + 10).all()
    every = model.log_probabilities(tokens, concept)
    torch.testing.assert_close(every.exp().sum(1), torch.ones(2, 7, 7))
    tokens[:, 6, 6] += 1  # the last token is read by none
    assert torch.equal(model.log_probabilities(tokens % 256, concept), every)


def test_a_folder_of_the_same_form_opens_by_its_path(copy):
    model = load_model(f"zoo:{copy}")
    assert model.identity == load_zoo("fashion").identity
    assert load_model(model.name).identity == model.identity


def test_a_bias_steers_draws_and_nothing_else():
    plain = load_zoo("fashion")
    concept, ids = torch.tensor([0, 1]), ["a", "b"]
    before = plain.generate(concept, ids, 0)
    bias = torch.zeros(plain.k, 7, 7)
    bias[before[0, 0, 0], 0, 0] = -torch.inf
    steered = plain.with_code_bias(bias)
    assert isinstance(steered, Steerable)
    assert steered.generate(concept, ids, 0)[0, 0, 0] != before[0, 0, 0]
    assert torch.equal(plain.generate(concept, ids, 0), before)
    assert steered.identity != plain.identity
    assert steered.log_probabilities(before, concept)[0, before[0, 0, 0], 0, 0] == -torch.inf
    assert torch.equal(steered.decode(steered.embed(before)), plain.decode(plain.embed(before)))


def test_a_bias_of_a_bias_adds_up():
    plain = load_zoo("fashion")
    bias = torch.randn(plain.k, 7, 7, generator=torch.Generator().manual_seed(0))
    twice = plain.with_code_bias(bias).with_code_bias(-bias)
    assert torch.equal(twice.generate(torch.tensor([3]), ["a"], 0), plain.generate(torch.tensor([3]), ["a"], 0))


def test_a_bias_that_cannot_be_added_is_refused():
    plain = load_zoo("fashion")
    with pytest.raises(ShapeError, match=r"shape \(255, 7, 7\) but this model needs \(256, 7, 7\)"):
        plain.with_code_bias(torch.zeros(255, 7, 7))
    with pytest.raises(ConfigError, match="NaN or plus infinity"):
        plain.with_code_bias(torch.full((256, 7, 7), torch.inf))
    forbidden = torch.zeros(256, 7, 7)
    forbidden[:, 2, 3] = -torch.inf
    with pytest.raises(ConfigError, match=r"leaves no code at position \(2, 3\)"):
        plain.with_code_bias(forbidden)
