"""A study: one folder that the commands fill stage by stage.

A finished stage carries `stage.json`: its settings, the hashes of what it read, the versions, and the hash of every
file it wrote. It is skipped while all of that still holds and redone otherwise. A stage at work carries
`partial.json`; killed and started again with the same settings it goes on from the whole files it has.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

from vqcortex import __version__
from vqcortex.config import plain
from vqcortex.errors import StudyError
from vqcortex.files import hash_of_bytes, hash_of_file, write_json
from vqcortex.pipelines.settings import WITHOUT_EFFECT, StudySettings
from vqcortex.results import Table, Trust, load_table

FORMAT = 1
RECORD, PARTIAL, LOG = "stage.json", "partial.json", "log"
Continues = Callable[[Mapping[str, Any]], bool]
# In order; judges only where none lie with the model.
STAGES = (
    "tokens", "train", "judges", "sanity", "trust", "score", "concepts", "interactions", "traverse", "search",
    "evaluate", "editability", "report",
)  # fmt: skip


@final
class Study:
    """A study folder.

    Args:
        folder: Where it lies; made if absent.
    Raises:
        StudyError: The folder cannot be written, or holds something that is not a study.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        mark = self.folder / "study.json"
        if mark.exists():
            about = read_json(mark)
            if about.get("format") != FORMAT:
                raise StudyError(
                    f"study {str(self.folder)!r} has format {about.get('format')!r}, this version reads {FORMAT}; "
                    "choose another --out, or the version of vqcortex that made it"
                )
            return
        if self.folder.is_file():
            raise StudyError(f"{str(self.folder)!r} is a file; a study is a folder: choose another --out")
        if self.folder.is_dir() and any(not one.name.startswith(".") for one in self.folder.iterdir()):
            raise StudyError(
                f"{str(self.folder)!r} holds files but no study.json, so it is not a study; "
                "choose an empty or new folder with --out"
            )
        write_json(mark, {"format": FORMAT})

    def path(self, stage: str) -> Path:
        """Folder of a stage."""
        return self.folder / stage

    def record(self, stage: str) -> dict[str, Any]:
        """What stage.json of a finished stage says.

        Raises:
            StudyError: The stage is not finished.
        """
        path = self.path(stage) / RECORD
        if not path.is_file():
            raise StudyError(
                f"study {str(self.folder)!r} has no finished stage {stage!r}; "
                f"run 'vqcortex {stage} --out {self.folder}' first"
            )
        return read_json(path)

    def fingerprint(self, stage: str) -> str:
        """A hash of everything a finished stage wrote."""
        return hash_of_bytes(json.dumps(self.record(stage)["outputs"], sort_keys=True).encode())

    def table(self, name: str) -> Table:
        """Read a table by its name, whichever stage wrote it.

        Raises:
            StudyError: No finished stage has a table of that name; the message lists those there are.
        """
        found = {
            path.stem: path for path in sorted(self.folder.glob("*/*.json")) if path.with_suffix(".parquet").exists()
        }
        if name not in found:
            raise StudyError(
                f"study {str(self.folder)!r} has no table {name!r}; it has: {', '.join(found) or 'none yet'}"
            )
        return load_table(found[name])

    @property
    def trust(self) -> Trust:
        """How far its explanations can be trusted, and why; unknown until `vqcortex trust` or `run` has measured it."""
        from vqcortex.pipelines.stamps import trust_of

        return trust_of(self)

    def fingerprints(self, *stages: str) -> dict[str, str]:
        """Fingerprints of those of these stages that are finished."""
        return {one: self.fingerprint(one) for one in stages if (self.path(one) / RECORD).is_file()}

    def is_whole(self, stage: str, key: Mapping[str, Any]) -> bool:
        """Whether the stage was finished with this key and its files are as it left them."""
        path = self.path(stage) / RECORD
        if not path.is_file():
            return False
        record = read_json(path)
        return record["key"] == key and all(
            (self.path(stage) / name).is_file() and hash_of_file(self.path(stage) / name) == digest
            for name, digest in record["outputs"].items()
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second process on the same study."""
        try:
            import fcntl
        except ImportError:  # no such lock on Windows
            yield
            return
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"study {str(self.folder)!r} is being written by another process; "
                    "wait for it or choose another --out"
                ) from error
            yield


def read_json(path: Path, mend: str = "remove it and run the same command again") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: Of the file.
        mend: What to do if it is none; by default as of a file that a stage wrote.

    Raises:
        StudyError: The file is not one.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"{str(path)!r} cannot be read ({error}); {mend}") from error
    if not isinstance(value, dict):
        raise StudyError(f"{str(path)!r} holds {type(value).__name__}, not an object; {mend}")
    return value


def stage_key(stage: str, settings: StudySettings, own: type, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What a stage's result is a function of: the settings of its class that have an effect, and its inputs."""
    names = own.__dataclass_fields__  # type: ignore[attr-defined]
    wanted = {name: value for name, value in plain(settings).items() if name in names and name not in WITHOUT_EFFECT}
    return {"stage": stage, "vqcortex": __version__, "settings": wanted, "inputs": dict(sorted(inputs.items()))}


def run_stage(
    study: Study,
    key: Mapping[str, Any],
    work: Callable[[Path], None],
    continues: Continues | None = None,
) -> bool:
    """Do a stage's work unless it is whole; return whether anything was done.

    Args:
        study: The study.
        key: From `stage_key`.
        work: Fills the stage's folder; may find whole files of an earlier, killed run with the same key in it, or of
            a run that this one `continues`.
        continues: Whether what was done under an earlier key is a beginning of this work; None: never.
    """
    stage = key["stage"]
    folder = study.path(stage)
    with study.locked():
        if study.is_whole(stage, key):
            return False
        if continues is not None and (before := _begun(study, stage)) is not None and continues(before):
            write_json(folder / PARTIAL, dict(key))
        _prepare(folder, key)
        work(folder)
        outputs = {str(path.relative_to(folder)): hash_of_file(path) for path in _written(folder)}
        write_json(folder / RECORD, {"key": key, "outputs": outputs, "versions": versions()})
        (folder / PARTIAL).unlink(missing_ok=True)
    return True


def _begun(study: Study, stage: str) -> dict[str, Any] | None:
    """Key of what lies in a stage's folder, if that is whole as far as it goes: finished, or at work when killed."""
    folder = study.path(stage)
    if (folder / RECORD).is_file():
        key: dict[str, Any] = study.record(stage)["key"]
        return key if study.is_whole(stage, key) else None
    return _json_of(folder / PARTIAL)


def _prepare(folder: Path, key: Mapping[str, Any]) -> None:
    """Empty the folder, unless it holds part of the same work: then only what a killed writer left half-done goes."""
    partial = folder / PARTIAL
    if _json_of(partial) == key:
        (folder / RECORD).unlink(missing_ok=True)
        for torn in folder.rglob(".*.part"):
            torn.unlink(missing_ok=True)
        return
    if folder.exists():
        ours = not any(folder.iterdir()) or (folder / RECORD).exists() or partial.exists()
        if not ours:
            raise StudyError(
                f"{str(folder)!r} holds files that no stage of this study wrote; move them away and run again"
            )
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise StudyError(
                f"cannot clear {str(folder)!r}: {error.strerror}; mend its permissions and run again"
            ) from error
    write_json(partial, dict(key))


def _json_of(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None: there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _written(folder: Path) -> list[Path]:
    """Files a stage answers for: not its own records, temporary files, or logs that carry the time of day."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in (RECORD, PARTIAL)
        and not path.name.startswith(".")
        and LOG not in path.relative_to(folder).parts
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"vqcortex": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "pyarrow", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def command_of(stage: str, settings: Mapping[str, Any]) -> str:
    """The command line that re-creates a stage, from the settings in its record."""
    parts = [f"vqcortex {stage}"]
    for name, value in sorted(settings.items()):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parts += [flag] if value else []
        elif isinstance(value, list):
            parts += [f"{flag} {_quoted(one)}" for one in value]
        elif value is not None and value != "":
            parts.append(f"{flag} {_quoted(value)}")
    return " ".join(parts)


def _quoted(value: Any) -> str:
    text = str(value)
    return f'"{text}"' if not text or any(sign in text for sign in " >;&|*'") else text
