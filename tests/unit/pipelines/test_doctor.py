"""The doctor as a pipeline: pictures from a folder or a source, findings to a folder."""

import json

import pytest
import torch
from PIL import Image

from vqcortex.adapters import load_model
from vqcortex.errors import ConfigError, DataError
from vqcortex.evaluation.doctor import random_grids
from vqcortex.pipelines.doctor import diagnose
from vqcortex.pipelines.settings import DoctorSettings


@pytest.fixture
def pictures(tmp_path):
    """Pictures that the toy model knows, in class folders."""
    toy = load_model("toy")
    folder = tmp_path / "pictures"
    for number, pixels in enumerate(toy.decode(toy.embed(random_grids(toy, 4, 0)))):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["", "imagefolder:"])
def test_real_pictures_give_a_figure_and_a_strip(pictures, tmp_path, kind):
    out = tmp_path / "out"
    found = diagnose(DoctorSettings(model="toy", images=f"{kind}{pictures}", out=out))
    by_name = {one.check: one for one in found.findings}
    assert by_name["reconstruction"].value == "inf dB (median of 4)"
    with Image.open(out / "strip.png") as strip:
        assert strip.size == (4 * 16, 2 * 16)
    written = json.loads((out / "doctor.json").read_text())
    assert written["verdict"] == found.verdict
    assert [one["check"] for one in written["findings"]] == list(by_name)
    assert written["model"]["codebook"] == "8 codes of 3 numbers"


def test_without_pictures_nothing_is_drawn(tmp_path):
    found = diagnose(DoctorSettings(model="toy:3x2", out=tmp_path))
    assert found.strip is None
    assert not (tmp_path / "strip.png").exists()
    assert found.facts["grid"] == "3x2 for 12x8 pixels"


def test_facts_name_the_size_of_the_network():
    facts = diagnose(DoctorSettings(model="zoo:fashion", limit=2, batch=2)).facts
    assert int(facts["parameters"].replace(",", "")) > 1_000_000
    assert facts["dtype"] == "float32"


def test_one_picture_is_too_few(pictures):
    for path in sorted(pictures.rglob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(DataError, match=r"holds 1 picture\(s\), at least 2"):
        diagnose(DoctorSettings(model="toy", images=str(pictures)))


def test_a_place_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="neither a folder of pictures nor a source"):
        diagnose(DoctorSettings(model="toy", images=str(tmp_path / "absent")))


def test_a_broken_picture_is_named(pictures):
    (pictures / "class0" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png.* cannot be read"):
        diagnose(DoctorSettings(model="toy", images=str(pictures)))


def test_every_wrong_setting_is_listed():
    with pytest.raises(ConfigError, match=r"3 settings wrong: limit=1 .*; batch=0 .*; seed=-1"):
        diagnose(DoctorSettings(limit=1, batch=0, seed=-1))


def test_the_same_pictures_give_the_same_findings(pictures):
    timed = {"throughput", "memory"}
    one, other = (diagnose(DoctorSettings(model="toy", images=str(pictures))).findings for _ in range(2))
    assert [a for a in one if a.check not in timed] == [b for b in other if b.check not in timed]
    assert isinstance(one[0].value, str)
    assert torch.is_grad_enabled()
