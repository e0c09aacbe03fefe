"""The main job on models made by official code: their pictures are noise, the machinery is what is shown."""

import pytest
import torch
from parity.golden import CASES
from PIL import Image

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import GENERATE

FOLDERS = ("taming_net2net", "openai_dvae", "rosinality_vqvae2", "var_vqvae")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two kinds of pictures: reddish noise and bluish noise."""
    folder = tmp_path_factory.mktemp("photos")
    rng = torch.Generator().manual_seed(0)
    for name, strong in (("red", 0), ("blue", 2)):
        (folder / name).mkdir()
        for number in range(30):
            pixels = torch.randint(0, 120, (16, 16, 3), generator=rng, dtype=torch.uint8)
            pixels[..., strong] += 130
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_foreign_model_is_explained_from_end_to_end(folder, photos, tmp_path, toy_settings):
    from vqcortex.pipelines.run import run

    name = next(case.name() for case in CASES if case.folder == folder)
    model = load_model(name)
    source = {"concepts": model.concepts[:2]} if GENERATE in model.abilities else {"images": f"imagefolder:{photos}"}
    small = {
        "region": "0:1,0:1",
        "epochs": 2,
        "width": 16,
        "steps": 3,
        "judge_epochs": 1,
        "fills": ("black", "mean_code", "resampled_codes"),
    }
    study = run(toy_settings(tmp_path / "study", model=name, **{**source, **small}))
    page = (study.path("report") / "report.html").read_text()
    assert model.family in page
    cells = study.table("traversal_cells").rows
    assert cells
    for cell in cells:
        starts = [0]
        for level in model.levels:
            starts.append(starts[-1] + level.length)
        if len(model.levels) > 1:
            level = next(level for level, end in zip(model.levels, starts[1:], strict=True) if cell["column"] < end)
            assert level.codes[0] <= cell["code"] < level.codes[1]
    assert {row["arm"] for row in study.table("image_level").rows} >= {"random", "centre", "brightness"}
    assert study.table("concept_tokens").rows
