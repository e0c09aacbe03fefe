"""Which published network a state dict is, and what is said about broken ones."""

import json
from pathlib import Path

import pytest
import torch

from vqcortex.errors import ModelError
from vqcortex.extractors.published import NETS, load_published, recognised

KEYS = json.loads((Path(__file__).parents[2] / "data" / "cortex_published" / "keys.json").read_text())[
    "state_dict_keys"
]


def light_state(net):
    """Every key in its full shape, in the memory of one number each."""
    return {
        key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape) for key, (shape, dtype) in KEYS[net].items()
    }


def test_the_fixture_names_every_network():
    assert sorted(KEYS) == sorted(NETS)


@pytest.mark.parametrize("net", sorted(NETS))
def test_a_network_is_recognised_by_its_keys(net):
    assert NETS[recognised(light_state(net), "file")] == NETS[net]


@pytest.mark.parametrize("net", sorted(NETS))
def test_every_key_of_ours_has_its_published_name(net):
    from dataclasses import asdict

    from vqcortex.extractors import EXTRACTORS
    from vqcortex.extractors.protocol import network_from, overridden

    known = NETS[net]
    concepts = KEYS[net][known.head][0][0]
    settings = EXTRACTORS[known.extractor].default_settings(256, (16, 16), concepts)
    ours = network_from(known.extractor, asdict(overridden(known.extractor, settings, known.overrides)))
    shapes = {known.name_of(key): list(value.shape) for key, value in ours.state_dict().items()}
    assert shapes == {key: shape for key, (shape, _) in KEYS[net].items()}


def test_a_file_and_its_state_dict_load_alike(tmp_path):
    state = {f"module.{key}": value for key, value in light_state("dalle_net3").items()}
    torch.save(state, tmp_path / "best_model.pth")
    net = load_published(tmp_path / "best_model.pth")
    assert not net.training
    assert net.settings.attends_over_batch
    assert net.settings.concepts == 2
    assert net(torch.randn(2, 256, 16, 16)).tolist() == [[0, 0], [0, 0]]


def test_the_weights_are_copies():
    state = {key: value.clone() for key, value in light_state("dalle_net3").items()}
    net = load_published(state)
    state["fc.bias"] += 1
    assert net.head.bias.tolist() == [0, 0]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match="no published network named 'net1'; known: dalle_net1"):
        load_published(light_state("vqgan_net1"), "net1")


def test_missing_keys_are_named():
    state = light_state("vqgan_net3")
    del state["layer1.1.bn1.weight"], state["fc1.bias"]
    with pytest.raises(ModelError, match=r"lack layer1\.1\.bn1\.weight, fc1\.bias;"):
        load_published(state)


def test_unknown_keys_are_counted():
    state = light_state("vqgan_net3") | {f"extra{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(ModelError, match="hold unknown extra0, extra1, extra2 and 2 more"):
        load_published(state)


def test_wrong_shapes_are_shown():
    state = light_state("vqgan_net3") | {"fc1.weight": torch.zeros(2048, 7)}
    with pytest.raises(ModelError, match=r"wrong shapes: fc1\.weight \(2048, 7\) instead of \(2048, 512\)"):
        load_published(state)


def test_nan_weights_are_refused():
    state = light_state("dalle_net3") | {"norm.bias": torch.full((512,), float("nan"))}
    with pytest.raises(ModelError, match=r"NaN or infinite numbers in norm\.bias"):
        load_published(state)


def test_another_network_than_named_is_refused():
    with pytest.raises(ModelError, match=r"have no fc3\.weight with one row per concept"):
        load_published(light_state("vqgan_net3"), "vqgan_net1")


def test_foreign_weights_are_not_recognised():
    with pytest.raises(ModelError, match=r"hold 1 keys .*encoder.* belong to no published network"):
        load_published({"encoder.weight": torch.zeros(1)})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read '.*best_model.pth': No such file"):
        load_published(tmp_path / "best_model.pth")


def test_a_torn_file_is_refused(tmp_path):
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ModelError, match=r"torn.pth' is no readable state dict"):
        load_published(tmp_path / "torn.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"conv1_1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"evil.pth' is no readable state dict"):
        load_published(tmp_path / "evil.pth")


def test_a_whole_training_state_is_no_state_dict(tmp_path):
    torch.save({"epoch": 3, "model": {}}, tmp_path / "last.pth")
    with pytest.raises(ModelError, match="not a state dict of tensors by name"):
        load_published(tmp_path / "last.pth")
