from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
FILES = ("common", "tis", "search", "swaps", "pooling", "adapters", "draws", "evaluation", "geometry", "run")


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
    for name in FILES:
        sys.modules.pop(name)


@pytest.fixture
def in_process(bench, monkeypatch):
    """Memory measured in this process: the figures are worthless, but starting six more takes half a minute."""
    monkeypatch.setattr(bench.tis, "grown_apart", bench.tis.grown)
    monkeypatch.setattr(bench.geometry, "grown_apart", bench.geometry.grown)


def run(bench, *words):
    bench.run.main(["--small", "--repeats", "1", "--threads", str(torch.get_num_threads()), *words])


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("tis", [10, 10, 13, 1]),
        ("search", [3]),
        ("swaps", [20, 1, 1, 1] * 2),
        ("pooling", [100]),
        ("adapters", [1 / 1.05] * 4),
        ("draws", [4] * 3),
        ("evaluation", [30, 30]),
        ("geometry", [1, 1] * 4 + [3]),
    ],
)
def test_every_benchmark_runs_at_toy_size(bench, name, targets):
    result = bench.run.measure(name, small=True, repeats=2)
    compared = result["comparisons"]
    assert [one["at_least"] for one in compared if one["at_least"]] == targets
    assert all(0 < one["times"] < math.inf for one in compared)
    assert all(
        one[who]["low"] <= one[who]["median"] <= one[who]["high"] for one in compared for who in ("ours", "theirs")
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))


def test_all_who_score_give_one_score_where_there_is_no_noise(bench):
    case = bench.tis.case_of(bench.tis.SMALL)
    found = {name: variant(case, 1, 0.0).double().detach() for name, variant in bench.tis.VARIANTS.items()}
    assert len(found) == 4
    for name, scores in found.items():
        torch.testing.assert_close(scores, found["ours"], rtol=1e-4, atol=1e-9, msg=name)


def test_operations_are_counted_both_ways(bench):
    case = bench.tis.Case(torch.nn.Linear(3, 5).eval(), torch.randn(1, 3), torch.zeros(1, dtype=torch.int64))
    assert bench.tis.operations_of(case, draws=4) == 4 * 2 * (2 * 3 * 5)


def test_the_product_has_as_many_operations(bench):
    assert bench.tis.product_of(2 * 30**3)().shape == (30, 30)


def test_memory_is_measured_in_a_fresh_process(bench):
    assert bench.tis.grown_apart(bench.tis.SMALL, "ours", 1) >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be told to begin again")
def test_growth_is_what_a_call_adds_to_the_peak(bench):
    # In a fresh process: what earlier tests left free inside the allocator would not count as growth.
    code = (
        f"import sys; sys.path.insert(0, {str(Path(bench.common.__file__).parent)!r}); import torch; import common; "
        "print(common.growth_of(lambda: torch.ones(2**24)), common.growth_of(lambda: None))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    grown, nothing = map(float, shown.split())
    assert grown == pytest.approx(64, abs=8)
    assert nothing < 4


def test_pooling_and_the_loop_count_the_same(bench):
    pooling = bench.pooling
    sizes = pooling.SMALL
    case = pooling.case_of(sizes)
    looped = pooling.loop(
        case.tokens.flatten(1).tolist(), case.importance.flatten(1).tolist(), case.concept.tolist(), list
    )
    mine = {(one.n, one.concept): dict(zip(one.codes.tolist(), one.counts.tolist(), strict=True))
            for one in pooling.pool(case, sizes)}  # fmt: skip
    assert mine == {key: dict(found) for key, found in looped.items()}


def test_pooling_from_files_changes_nothing(bench, tmp_path):
    pooling = bench.pooling
    sizes = pooling.SMALL
    case = pooling.case_of(sizes)
    pooling.write_files(tmp_path, case, sizes)
    assert len(list(tmp_path.iterdir())) == 3
    pairs = zip(pooling.pool_files(tmp_path, case, sizes), pooling.pool(case, sizes), strict=True)
    assert all(one.codes.tolist() == other.codes.tolist() for one, other in pairs)


def test_the_loop_reads_text_and_lists_alike(bench):
    works = bench.pooling.loops(bench.pooling.case_of(bench.pooling.SMALL).first(12))
    assert works["texts"]() == works["lists"]()


def test_adapters_and_the_libraries_do_the_same(bench):
    adapters = bench.adapters
    pixels = adapters.images_of(adapters.SMALL, 0)
    for make in adapters.CASES:
        case = make(adapters.SMALL)
        with torch.no_grad():
            tokens = case.encode(pixels)
            assert torch.equal(case.ours.encode(pixels), tokens)
            assert len(tokens.unique()) > 10  # codes are apart: not one of them is everybody's
            torch.testing.assert_close(case.ours.decode(case.ours.embed(tokens)), case.decode(tokens))


def test_the_curves_and_the_loop_measure_the_same(bench):
    evaluation = bench.evaluation
    case = evaluation.case_of(evaluation.SMALL)
    for fill in case.fills:
        curves, looped = evaluation.batched(case, fill, evaluation.SMALL), evaluation.loop(case, fill, 2)
        for (image, arm, n), chances in looped.items():
            found = curves.removed[curves.arms.index(arm), 0, curves.counts.index(n), :, image]
            assert found.tolist() == pytest.approx(chances, abs=1e-5)


def test_the_fastest_way_counts_only_if_it_orders_positions_as_float32_does(bench):
    geometry, spread = bench.geometry, bench.common.spread_of
    exact, hasty = geometry.Way("float32", spread([2.0]), 1.0), geometry.Way("bfloat16", spread([1.0]), 0.98)

    def ours(agreement):
        ways = {"float32": exact, "bfloat16 folded": geometry.Way("bfloat16", hasty.seconds, agreement)}
        peaks = {"float32": 1e9, "bfloat16": 4e9}
        return list(geometry._compared("w", ways, (25, 26.0), 1e9, peaks, geometry.SMALL))

    rows = ours(0.98)
    assert [row.ours.median for row in rows] == [2000, 2000, 2000, pytest.approx(0.02)]
    assert [row.times for row in rows] == [13, 1, 0.5, pytest.approx(0.5)]
    assert not rows[-1].is_met
    assert "bfloat16 folded 1 images/s, 0.001 TFLOP/s, rank agreement 0.9800" in rows[1].note
    assert "1,000,000 images would take 301 days, ours 23.1 days" in rows[0].note
    faithful = ours(0.995)
    assert [row.times for row in faithful] == [26, 2, 0.25, pytest.approx(2)]


def test_norms_have_seen_grids_and_signals_keep_their_size(bench):
    geometry = bench.geometry
    extractor = geometry.extractor_of("conv8", geometry.SMALL)
    norm = extractor.stages[0][0].norm
    assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    assert not any(part.training for part in extractor.modules())


def test_a_card_is_asked_for_more(bench):
    geometry = bench.geometry
    card = geometry.on(geometry.FULL, "cuda", None)
    assert (card.timed, card.images, card.device) == (20, 256, "cuda")
    assert geometry.on(geometry.FULL, "cpu", 7).images == 7


def test_what_fails_is_printed_and_costs_nothing_else(bench, capsys):
    assert bench.geometry.tried(lambda: 1 // 0) is None
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_results_of_a_card_stand_beside_those_of_the_processor(bench):
    result = {"machine": bench.common.machine(), "size": "full", "comparisons": []}
    card = {**result, "machine": {**result["machine"], "card": "NVIDIA X"}}
    table = bench.run.table_of({"geometry on NVIDIA X": card, "geometry": result})
    assert table.index("### geometry\n") < table.index("### geometry on NVIDIA X\n\nNVIDIA X, ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "cuda", "--only", "tis"), "--device cuda is for --only geometry"),
        (("--images", "0"), "--images 0"),
    ],
)
def test_a_device_or_batch_that_makes_no_sense_is_named(bench, capsys, words, said):
    with pytest.raises(SystemExit, match="2"):
        bench.run.main(["--small", *words])
    assert said in capsys.readouterr().err


def test_things_are_timed_in_turns(bench):
    seen = []
    works = {name: lambda name=name: seen.append(name) for name in "abc"}
    found = bench.common.in_turns(works, 3, once=["b"])
    assert "".join(seen) == "abcacac"
    assert {name: one.repeats for name, one in found.items()} == {"a": 3, "b": 1, "c": 3}


def test_a_comparison_is_a_ratio_of_medians(bench):
    ours, theirs = bench.common.spread_of([2, 1, 9]), bench.common.spread_of([30, 20]).times(0.1)
    one = bench.common.Comparison(work="w", rival="r", unit="s", ours=ours, theirs=theirs, at_least=1.2)
    assert one.times == pytest.approx(1.25)
    assert one.is_met
    assert (theirs.low, theirs.high, theirs.repeats) == (2, 3, 2)


def test_a_run_writes_the_table_and_keeps_what_it_did_not_measure(bench, tmp_path, capsys):
    run(bench, "--only", "search", "--out", str(tmp_path))
    run(bench, "--only", "pooling", "--out", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert sorted(results) == ["pooling", "search"]
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# Benchmarks")
    assert page.count("\n| token selection") == 1
    assert page.count("\n| pooling") == 5
    assert "written:" in capsys.readouterr().out


def test_toy_results_are_not_written_over_real_ones(bench, capsys):
    before = {path: path.read_bytes() for path in FOLDER.glob("*.[jmp]*")}
    run(bench, "--only", "search")
    assert {path: path.read_bytes() for path in FOLDER.glob("*.[jmp]*")} == before
    assert "nothing was written" in capsys.readouterr().out


def test_too_few_threads_are_named(bench, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.run.main(["--small", "--threads", "0"])
    assert "--threads 0" in capsys.readouterr().err


def test_the_page_shows_the_results_beside_it(bench):
    shown = (FOLDER / "README.md").read_text()
    results = bench.run.read_results(FOLDER)
    assert bench.run.table_of(results) in shown
    assert bool(results) != ("Not measured yet" in shown)
    assert all(one["size"] == "full" for one in results.values())
