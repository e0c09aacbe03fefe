"""Saving and loading trained extractors; torn and foreign folders."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from vqcortex.errors import ModelError
from vqcortex.extractors.checkpoint import (
    ABOUT,
    WEIGHTS,
    TrainedExtractor,
    facts_of,
    identity_of,
    load_trained,
    settings_of,
)
from vqcortex.extractors.protocol import build_extractor


def trained(seed=0, **changed):
    module = build_extractor("conv8", 3, (2, 3), 2, seed, width=4, depth=2, hidden=(8,)).eval()
    values = {
        "extractor": "conv8",
        "settings": settings_of(module),
        "concepts": ("cat", "dog"),
        "d": 3,
        "grid": (2, 3),
        "model_identity": "abcdef0123456789",
        "temperature": 1.25,
        "metrics": {"top1": 0.75},
        "module": module,
    }
    return TrainedExtractor(**{**values, **changed})


def test_what_is_saved_comes_back(tmp_path):
    one = trained()
    identity = one.save_trained(tmp_path)
    again = load_trained(tmp_path, one.model_identity)
    assert identity == one.identity == again.identity
    assert facts_of(again) == facts_of(one)
    assert (again.concepts, again.grid, again.metrics) == (("cat", "dog"), (2, 3), {"top1": 0.75})
    x = torch.randn(2, 3, 2, 3)
    assert not again.module.training
    assert torch.equal(again.module(x), one.module(x))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        trained().save_trained(tmp_path / folder)
    for name in (WEIGHTS, ABOUT):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_identity_follows_what_decides_the_numbers():
    one = trained()
    assert trained().identity == one.identity
    assert replace(one, metrics={}).identity == one.identity
    others = [
        trained(seed=1), replace(one, temperature=1.5), replace(one, concepts=("dog", "cat")),
        replace(one, model_identity="0" * 16),
    ]  # fmt: skip
    assert len({one.identity, *(other.identity for other in others)}) == 5


def test_another_model_is_refused(tmp_path):
    trained().save_trained(tmp_path)
    with pytest.raises(ModelError, match="trained on tokens of model abcdef012345 but is asked to read those of 999"):
        load_trained(tmp_path, "999")


@pytest.mark.parametrize("name", [WEIGHTS, ABOUT])
def test_a_missing_file_is_named(tmp_path, name):
    trained().save_trained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=f"cannot read '.*{name}': No such file"):
        load_trained(tmp_path)


def test_cut_weights_are_noticed(tmp_path):
    trained().save_trained(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:-5])
    with pytest.raises(ModelError, match="does not match its identity"):
        load_trained(tmp_path)


def test_an_altered_description_is_noticed(tmp_path):
    trained().save_trained(tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "concepts": ["dog", "cat"]}))
    with pytest.raises(ModelError, match="does not match its identity"):
        load_trained(tmp_path)


@pytest.mark.parametrize("text", ["{", "\xff\xfe"])
def test_a_broken_description_is_refused(tmp_path, text):
    trained().save_trained(tmp_path)
    (tmp_path / ABOUT).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="is not JSON"):
        load_trained(tmp_path)


@pytest.mark.parametrize("value", [[], {"d": 3}])
def test_a_foreign_description_is_refused(tmp_path, value):
    trained().save_trained(tmp_path)
    (tmp_path / ABOUT).write_text(json.dumps(value))
    with pytest.raises(ModelError, match=r"lacks concepts.*no description of an extractor"):
        load_trained(tmp_path)


def test_a_later_format_is_refused(tmp_path):
    trained().save_trained(tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(ModelError, match="has format 2, this version reads 1"):
        load_trained(tmp_path)


def forged(folder, weights, **facts):
    """A folder whose identity is right although its content is not what `save_trained` would write."""
    trained().save_trained(folder)
    about = json.loads((folder / ABOUT).read_text()) | facts
    about["identity"] = identity_of({key: about[key] for key in facts_of(trained())}, weights)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / ABOUT).write_text(json.dumps(about))


def test_nan_weights_are_refused(tmp_path):
    state = trained().module.state_dict() | {"head.bias": torch.tensor([0.0, float("nan")])}
    forged(tmp_path, save(state))
    with pytest.raises(ModelError, match=r"NaN or infinite numbers in head\.bias"):
        load_trained(tmp_path)


def test_weights_of_another_size_are_refused(tmp_path):
    state = build_extractor("conv8", 3, (2, 3), 3, 0, width=4, depth=2, hidden=(8,)).state_dict()
    forged(tmp_path, save(state))
    with pytest.raises(ModelError, match=r"wrong shapes: head\.weight \(3, 8\) instead of \(2, 8\)"):
        load_trained(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"extractor": "conv9"}, "no extractor named 'conv9'"), ({"settings": {"width": 4}}, "settings of 'conv8' are")],
)
def test_an_extractor_that_cannot_be_built_is_refused(tmp_path, facts, message):
    forged(tmp_path, save(trained().module.state_dict()), **facts)
    with pytest.raises(ModelError, match=f"cannot be built: {message}"):
        load_trained(tmp_path)


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    forged(tmp_path, b"nonsense")
    with pytest.raises(ModelError, match="cannot be built"):
        load_trained(tmp_path)


def test_weights_are_plain_safetensors(tmp_path):
    trained().save_trained(tmp_path)
    assert set(load((tmp_path / WEIGHTS).read_bytes())) == set(trained().module.state_dict())
