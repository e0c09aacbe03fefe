"""The main job: every stage of a study, one after the other, each skipped while it is still true."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.pipelines import settings as all_settings
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import RunSettings
from vqcortex.pipelines.study import Study

# In order: the settings class of a stage and the function that does it. The page is a face, one floor up, so it is
# named and not imported.
STEPS = (
    ("TokensSettings", "vqcortex.pipelines.tokens:make_tokens"),
    ("TrainSettings", "vqcortex.pipelines.train:train"),
    ("JudgesSettings", "vqcortex.pipelines.judges:prepare_judges"),
    ("SanitySettings", "vqcortex.pipelines.sanity:sanity"),
    ("TrustSettings", "vqcortex.pipelines.trust:trust"),
    ("ScoreSettings", "vqcortex.pipelines.score:score"),
    ("ConceptsSettings", "vqcortex.pipelines.concepts:pool_concepts"),
    ("InteractionsSettings", "vqcortex.pipelines.interactions:interactions"),
    ("TraverseSettings", "vqcortex.pipelines.traverse:traverse"),
    ("SearchSettings", "vqcortex.pipelines.search:search"),
    ("EvaluateSettings", "vqcortex.pipelines.evaluate:evaluate"),
    ("EditabilitySettings", "vqcortex.pipelines.editability:editability"),
    ("ReportSettings", "vqcortex.report.stage:report"),
)


def run(settings: RunSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Study:
    """Explain a model's tokens from end to end: tokens, extractors, trust, scores, concepts, search, edits, page.

    Before anything is explained, the explanation is examined (sanity) and weighed (trust), with judges that are trained
    where none lie with the model. A model that cannot decode has no pictures: its stages up to the search are done,
    then a ModelError says so.

    Kill it anywhere and call it again: it goes on, and ends with the same bytes. A stage whose settings and inputs
    are unchanged is not done again.

    Args:
        settings: All there is to set; the defaults explain the embedded model.
        progress: Told how far it is.
        engine: Where the pieces of every stage are done; the result is the same on any.
    Returns:
        The study: its `table(name)` reads any table, and `report/report.html` in its folder is the page.
    Raises:
        TrustError: Trust is low, and `require_trust` asks for more.
        VqCortexError: Anything the caller can mend; the message says how.
    """
    settings.check()
    for name, path in STEPS:
        module, _, function = path.partition(":")
        getattr(import_module(module), function)(narrowed(settings, name), progress=progress, engine=engine)
    return Study(settings.out)


def narrowed(settings: RunSettings, name: str) -> Any:
    """The part of the settings that one stage knows."""
    own = getattr(all_settings, name)
    return own(**{one.name: getattr(settings, one.name) for one in fields(own)})


def demo_settings(*, out: Path, seed: int = 0, device: str = "cpu", batch: int = 250) -> RunSettings:
    """The main job on the embedded model, sized for a few minutes on two CPU cores."""
    return RunSettings(
        out=out, seed=seed, device=device, batch=batch, model="zoo:fashion",
        per_concept=200, shard=500, minibatch=128, epochs=12, step_every=8,
        sanity_images=20, sanity_draws=2, sanity_steps=2, trust_maps=40,
        draws=10, steps=100, search_images=3, region="2:5,2:5", evaluate_images=120,
        shares=(1.0, 5.0, 10.0, 20.0, 40.0), traverse_images=60, verify=20,
        together_images=16, editability_images=16,
    )  # fmt: skip
