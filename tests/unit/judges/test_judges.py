"""Judges: calibrated, independent of the model's weights, checked on opening."""

import json
import shutil

import pytest
import torch

from vqcortex.adapters.zoo import ZOO
from vqcortex.errors import ModelError
from vqcortex.judges import ARCHITECTURES, CalibratedJudge, load_judges


def test_the_zoo_has_two_judges_of_different_architecture():
    judges = load_judges("zoo:fashion")
    assert len({type(judge.network) for judge in judges}) == 2
    assert len({judge.name for judge in judges}) == 2


def test_judges_speak_calibrated_log_probabilities():
    pixels = torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    for judge in load_judges("zoo:fashion"):
        logs = judge(pixels)
        torch.testing.assert_close(logs.exp().sum(1), torch.ones(4))
        torch.testing.assert_close(logs, (judge.network(pixels) / judge.temperature).log_softmax(1))


def test_company_changes_no_verdict():
    pixels = torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    for judge in load_judges("zoo:fashion"):
        torch.testing.assert_close(torch.cat([judge(one[None]) for one in pixels]), judge(pixels))


def test_toy_judges_see_the_colour():
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 8, 8)
    for judge in load_judges("toy"):
        assert judge.concepts[int(judge(red).argmax())] == "red"


def test_no_judges_is_an_error_that_says_where_they_were_sought(tmp_path):
    with pytest.raises(ModelError, match=r"no judges lie with .*judges\.json"):
        load_judges(str(tmp_path))


def test_altered_judges_are_refused(tmp_path):
    shutil.copytree(ZOO / "fashion", tmp_path / "j")
    about = json.loads((tmp_path / "j/judges.json").read_text())
    about["judges"][0]["sha256"] = "0" * 64
    (tmp_path / "j/judges.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="was altered"):
        load_judges(str(tmp_path / "j"))


@pytest.mark.parametrize("name", ["cct", "cnn", "patch"])
def test_architectures_build_from_settings(name):
    network = ARCHITECTURES[name]({"concepts": 3, "width": 8}).eval()
    assert network(torch.rand(2, 3, 28, 28)).shape == (2, 3)


def test_a_judge_is_held_still():
    judge = CalibratedJudge(name="a", concepts=("x", "y"), temperature=2.0, network=torch.nn.Dropout())
    assert not judge.network.training
