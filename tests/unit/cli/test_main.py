"""The command line: thin, typed, and never a traceback for a mistake the user can mend."""

import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from vqcortex.adapters.zoo import zoo_names
from vqcortex.cli import main as door
from vqcortex.extractors.checkpoint import WEIGHTS


@pytest.fixture
def vqcortex(monkeypatch, capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vqcortex", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            door.main()
        found = capsys.readouterr()
        return int(stop.value.code or 0), found.out, found.err

    return call


@pytest.fixture
def copied(toy_study, tmp_path):
    """A finished study that may be spoilt."""
    shutil.copytree(toy_study.folder, tmp_path / "copy")
    return tmp_path / "copy"


def is_one_mistake(found: tuple[int, str, str], *words: str) -> bool:
    """Exit code 2, one error that has all the words, no traceback."""
    code, _, err = found
    said = " ".join(err.split())  # the console may wrap a long line
    assert code == 2, err
    assert said.count("error: ") == 1, err
    assert "Traceback" not in err
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} not in: {said}"
    return True


@pytest.mark.parametrize("command", [*door.COMMANDS, "demo", "doctor", "models", "version", "worlds"])
def test_every_command_has_help(vqcortex, command):
    code, out, _ = vqcortex(command, "--help")
    assert code == 0
    assert "Usage:" in out


def test_models_lists_what_can_be_opened_and_chosen(vqcortex):
    code, out, _ = vqcortex("models", "--methods")
    assert code == 0
    for name in [
        *(f"zoo:{one}" for one in zoo_names()),
        "toy",
        "conv8",
        "tis",
        "token_selection",
        "mean_code",
        "imagefolder",
    ]:
        assert name in out


def test_a_stage_at_a_time_fills_a_study_and_says_where(vqcortex, tmp_path):
    out = tmp_path / "s"
    code, said, _ = vqcortex("tokens", "--out", out, "--model", "toy:2x2", "--per-concept", "10")
    assert code == 0
    assert said.split()[-1].replace("\n", "").endswith("tokens")
    assert (out / "tokens" / "stage.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tokens", "--model", "zoo:fashon"), ("no embedded model named 'zoo:fashon'", "Did you mean 'zoo:fashion'")),
        (("tokens", "--model", "toy", "--concepts", "rad"), ("no concept 'rad'", "Did you mean 'red'")),
        (("tokens", "--model", "toy", "--per-concept", "3"), ("per-concept=3 must be at least 10",)),
        (("tokens", "--model", "toy", "--device", "tpu"), ("device='tpu' is not on this machine", "--device")),
        (("tokens", "--model", "toy", "--images", "imagefolder:/no/such"), ("/no/such",)),
        (("tokens", "--model", "toy", "--images", "imagfolder:x"), ("imagfolder", "imagefolder")),
        (("train",), ("no finished stage 'tokens'", "run 'vqcortex tokens")),
        (("run", "--draws", "0", "--batch", "0"), ("2 settings wrong", "draws=0", "batch=0")),
    ],
)
def test_a_mistake_is_one_line_with_value_rule_and_next_step(vqcortex, tmp_path, words, said):
    assert is_one_mistake(vqcortex(*words, "--out", tmp_path / "s"), *said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--extractor", "conv9"), ("no extractor named 'conv9'", "Did you mean 'conv8'")),
        (("score", "--method", "tiss"), ("no attribution method named 'tiss'", "Did you mean 'tis'")),
        (("concepts", "--positions", "5", "--positions", "99"), ("99", "4x4")),
        (("search", "--region", "2:6,0:4"), ("2:6,0:4", "4")),
        (("search", "--pairs", "red>blu"), ("no concept 'blu'", "Did you mean 'blue'")),
        (("search", "--pairs", "red"), ("'red' must be SOURCE>TARGET",)),
        (("evaluate", "--judges", "/no/judges"), ("no judges lie with '/no/judges'",)),
        (("evaluate", "--fills", "blak"), ("no fill named 'blak'", "Did you mean 'black'")),
    ],
)
def test_a_mistake_in_a_later_stage_spoils_nothing(vqcortex, copied, words, said, hashes):
    before = hashes(copied)
    assert is_one_mistake(vqcortex(*words, "--out", copied), *said)
    assert hashes(copied) == before


def test_judges_that_lie_with_the_model_are_told_and_nothing_is_trained(vqcortex, copied, hashes):
    before = hashes(copied)
    code, said, _ = vqcortex("judges", "--out", copied)
    assert code == 0
    assert "nothing was trained: judges lie with 'toy'" in said
    assert " ".join(said.split()).endswith(f"done: {copied}")
    assert hashes(copied) == before


def test_a_truncated_shard_is_named(vqcortex, copied):
    shard = sorted((copied / "tokens").glob("*.parquet"))[1]
    shard.write_bytes(shard.read_bytes()[:-40])
    assert is_one_mistake(vqcortex("train", "--out", copied), shard.name)


def test_a_store_of_another_model_is_refused(vqcortex, copied):
    manifest = copied / "tokens" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"model": "toy"', '"model": "toy:4x4"'))
    other = manifest.read_text()
    start = other.index('"identity": "') + len('"identity": "')
    manifest.write_text(other[:start] + "0" * 64 + other[start + 64 :])
    assert is_one_mistake(vqcortex("train", "--out", copied), "written with", "identity")


def test_nan_weights_are_refused(vqcortex, copied):
    weights = load_file(copied / "train" / WEIGHTS)
    next(one for one in weights.values() if one.dim() > 1).view(-1)[0] = float("nan")
    save_file(weights, copied / "train" / WEIGHTS)
    assert is_one_mistake(vqcortex("score", "--out", copied), "train it again")


def test_a_half_written_study_says_what_to_do(vqcortex, copied):
    (copied / "study.json").write_text("{")
    assert is_one_mistake(vqcortex("score", "--out", copied), "study.json", "remove it and run the same command again")


def test_a_study_that_cannot_be_written_is_one_line(vqcortex, tmp_path):
    (tmp_path / "file").write_text("")
    assert is_one_mistake(vqcortex("tokens", "--model", "toy", "--out", tmp_path / "file" / "study"), "cannot write")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from vqcortex.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 1500, 60_000])
def test_a_disk_that_takes_no_more_bytes_loses_nothing_and_is_one_line(tmp_path, limit):
    pytest.importorskip("resource", reason="file size limits exist on Unix only")
    words = [
        "run",
        "--model",
        "toy",
        "--out",
        tmp_path / "s",
        "--per-concept",
        "10",
        "--epochs",
        "1",
        "--minibatch",
        "32",
    ]
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert is_one_mistake((found.returncode, found.stdout, found.stderr), "File too large")
    assert not list(tmp_path.rglob("*.part"))


def test_keyboard_interrupt_says_how_to_go_on(vqcortex, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(door, "app", stop)
    code, _, err = vqcortex()
    assert code == 130
    assert "goes on from here" in err


def test_out_of_memory_names_the_knob(vqcortex, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError("9 GB")

    monkeypatch.setattr(door, "app", full)
    assert is_one_mistake(vqcortex(), "--batch", "9 GB")


def test_trust_is_told_without_being_asked_and_can_be_required(vqcortex, copied):
    code, said, _ = vqcortex("sanity", "--out", copied, "--independent-limit", "0", "--permuted-epochs", "0")
    assert code == 0
    assert "fail: randomised_weights, mean rank correlation" in said
    assert vqcortex("trust", "--out", copied)[1].startswith("trust: low")
    code, said, _ = vqcortex("concepts", "--out", copied, "--keep", "3", "--positions", "3")
    assert code == 0
    assert "trust: low" in said
    assert "bad: sanity check randomised_weights" in said
    code, _, err = vqcortex("search", "--out", copied, "--require-trust")
    assert code == 3
    assert "is low, but it is required" in err
    assert "Traceback" not in err
