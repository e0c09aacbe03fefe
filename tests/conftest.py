"""What several test folders share: a small study of the toy world, where the truth is known."""

import hashlib

import hypothesis
import pytest
import torch

from vqcortex.pipelines.run import run
from vqcortex.pipelines.settings import RunSettings

# A busy machine must not fail a test: nothing here is timed.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def switches() -> tuple:
    """What a test may switch for its whole process, and every later test would feel: sums depend on the threads."""
    return torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _switched_back():
    """A test leaves the process as it found it."""
    before = switches()
    yield
    after = switches()
    torch.set_num_threads(before[0])
    torch.set_grad_enabled(before[1])
    torch.set_default_dtype(before[2])
    assert after == before, "this test left torch's threads, gradients, default type or tf32 switched"


def settings_of(out, **changed) -> RunSettings:
    """A run that takes seconds."""
    same = {
        "model": "toy", "companions": ("pictures",), "per_concept": 30, "shard": 60, "epochs": 12, "minibatch": 32,
        "draws": 2, "steps": 8,
        "sanity_images": 16, "sanity_draws": 1, "sanity_steps": 2, "permuted_epochs": 1, "trust_maps": 16,
        "scratch": 2, "search_images": 2, "evaluate_images": 24, "traverse_images": 14, "verify": 3,
        "top": 4, "clusters": 4,
        "editability_images": 12, "editability_tokens": (1, 4),
        "keep": 3, "positions": (1, 3), "resamples": 10, "interval_resamples": 100, "examples": 2, "restarts": 2,
        "shares": (10.0, 40.0), "fills": ("black", "mean_code"),
    }  # fmt: skip
    return RunSettings(out=out, **{**same, **changed})


def hashes_of(folder) -> dict[str, str]:
    """Every file a study answers for."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="session")
def toy_settings():
    return settings_of


@pytest.fixture(scope="session")
def hashes():
    return hashes_of


@pytest.fixture(scope="session")
def toy_study(tmp_path_factory):
    """A finished study; tests only read it."""
    return run(settings_of(tmp_path_factory.mktemp("toy") / "study"))
