"""Weights on disk: whole, unaltered, finite."""

import pytest
import torch
from safetensors.torch import save_file

from vqcortex.errors import ModelError, StudyError
from vqcortex.weights import halved, load_weights, save_training_state, save_weights


def test_weights_come_back_and_half_precision_is_widened(tmp_path):
    digest = save_weights({"b": torch.ones(2).half(), "a": torch.tensor(3)}, tmp_path / "w")
    found = load_weights(tmp_path / "w", digest)
    assert found["b"].dtype == torch.float32
    assert found["a"].item() == 3


def test_equal_weights_are_equal_bytes(tmp_path):
    one, two = torch.rand(3), torch.rand(2)
    assert save_weights({"a": one, "b": two}, tmp_path / "x") == save_weights({"b": two, "a": one}, tmp_path / "y")


def test_shipped_matrices_are_half_and_the_rest_stays():
    given = {"kernel": torch.ones(2, 3), "norm": torch.ones(3), "seen": torch.tensor([[1, 2]])}
    found = halved(given)
    assert [found[name].dtype for name in given] == [torch.float16, torch.float32, torch.int64]
    assert all(torch.equal(found[name].to(one), one) for name, one in given.items())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="do not exist"):
        load_weights(tmp_path / "none")


def test_another_hash_is_refused(tmp_path):
    save_weights({"a": torch.ones(1)}, tmp_path / "w")
    with pytest.raises(ModelError, match="was altered or cut short"):
        load_weights(tmp_path / "w", "0" * 64)


def test_a_file_cut_short_is_refused(tmp_path):
    save_weights({"a": torch.ones(100)}, tmp_path / "w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:50])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_counted_and_refused(tmp_path, bad):
    save_file({"a": torch.tensor([1.0, bad, bad])}, tmp_path / "w")
    with pytest.raises(ModelError, match="2 of 3 numbers of 'a' are NaN or infinite"):
        load_weights(tmp_path / "w")


def test_a_training_state_loads_without_running_code(tmp_path):
    save_training_state({"step": 3, "weights": {"a": torch.ones(2)}}, tmp_path / "s")
    assert torch.load(tmp_path / "s", weights_only=True)["step"] == 3


def test_a_state_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write"):
        save_training_state({}, tmp_path / "file" / "s")
