"""A study is the same on every engine, to the byte."""

import inspect
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

import pytest
import torch
from engines import Pickling, Processes

from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.pipelines.run import STEPS, run

# What every stage hands to an engine, by its name; a stage that stops doing so must say so here.
MAPPED = {
    "_make_shard", "_small_shard", "_codes_of_shard", "_score_shard", "_pool_shard", "places_of_shard", "_edited",
    "_measure_concept", "_traverse_concept",
    "_search_part", "_first_of_shard", "_image_level", "_concept_level", "_codebook_level", "_scratch_rows",
    "_counted_shard", "_believed",
    "_concept", "_cluster", "_check", "_asked", "_mapped",
}  # fmt: skip


def test_both_engines_are_engines():
    assert isinstance(Pickling(), Engine)
    assert isinstance(Processes(None), Engine)


@pytest.mark.parametrize("path", [path for _, path in STEPS] + ["vqcortex.pipelines.run:run"])
def test_every_stage_takes_an_engine_and_is_serial_by_default(path):
    module, _, name = path.partition(":")
    taken = inspect.signature(getattr(import_module(module), name)).parameters["engine"]
    assert taken.default is SERIAL


def test_a_study_whose_work_goes_through_pickle_has_the_same_bytes(toy_study, toy_settings, tmp_path, hashes):
    engine = Pickling()
    study = run(toy_settings(tmp_path / "s"), engine=engine)
    assert hashes(study.folder) == hashes(toy_study.folder)
    assert set(engine.names) == MAPPED


@pytest.mark.slow
def test_a_study_made_in_other_processes_has_the_same_bytes(toy_study, toy_settings, tmp_path, hashes):
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        study = run(toy_settings(tmp_path / "s"), engine=Processes(pool))
    assert hashes(study.folder) == hashes(toy_study.folder)
