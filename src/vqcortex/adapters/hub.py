"""Where a model's files are: a path on this machine, or a repository of the Hugging Face hub that is fetched and kept.

A path that exists is never looked up anywhere. A hub id is "owner/name", or "owner/name/path/to/file" for one file of
the repository; `?revision=` pins a branch, a tag or a commit. The library's own cache and switches hold: HF_HOME,
HF_HUB_OFFLINE=1, HF_ENDPOINT, HF_TOKEN. Nothing that a repository holds is executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from vqcortex.adapters.family import Spec, expanded
from vqcortex.errors import ConfigError, MissingExtra, ModelError

# owner/name, and whatever follows inside the repository; a path that starts with a dot, a slash or ~ is none.
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[^/].*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(spec: Spec, *patterns: str) -> Path:
    """The file or folder that a model's name means, fetched from the hub if it is not on this machine.

    Args:
        spec: The name; `place` with `subfolder`.
        patterns: Files needed of a whole repository, as in "*.safetensors", below the subfolder; none: all of them.
            A path, or one file of a repository, is returned whatever they say.
    Raises:
        ModelError: There is no such path, repository, revision or file; or the hub cannot be reached and the files
            were never fetched; or the repository asks its users to accept terms first.
        MissingExtra: A hub id, and huggingface-hub is not installed.
    """
    return locate_first(spec, patterns)


def locate_first(spec: Spec, *choices: Sequence[str]) -> Path:
    """Like `locate`, with the first of several choices of patterns that the repository has anything of.

    Raises:
        ModelError: As in `locate`; or it has nothing of any choice.
        MissingExtra: As in `locate`.
    """
    path = expanded(spec.place)
    if spec.place and path.exists():
        return _local(spec, path)
    match = _HUB_ID.fullmatch(spec.place)
    if match is None:
        raise ModelError(
            f"{spec.place!r} of model {spec.text!r} does not exist, and a hub id is owner/name: correct the path"
        )
    repo, file = match["repo"], match["file"]
    if file is not None:
        return _one_file(spec, repo, "/".join(part for part in (spec.subfolder, file) if part))
    for patterns in choices:
        folder = _snapshot(spec, repo, patterns)
        if folder is not None:
            return folder
    wanted = " or ".join(", ".join(patterns) or "anything" for patterns in choices)
    where = f"folder {spec.subfolder!r} of hub repository {repo!r}" if spec.subfolder else f"hub repository {repo!r}"
    known = "as far as it was fetched" if _is_offline() else f"at revision {_revision(spec) or 'main'!r}"
    raise ModelError(
        f"{where} holds nothing like {wanted}, {known}; name the folder that does: {repo}#FOLDER, "
        f"or one file: {repo}/PATH"
        + ("; HF_HUB_OFFLINE is set: unset it to fetch what is missing" if _is_offline() else "")
    )


def commit_of(path: Path) -> str | None:
    """The commit that a file or folder of the hub's cache belongs to; None for any other path."""
    parts = path.absolute().parts
    pairs = pairwise(parts)
    return next((name for before, name in pairs if before == "snapshots" and _COMMIT.fullmatch(name)), None)


def pinned(spec: Spec, path: Path) -> Spec:
    """The same name at the very commit that `path` was found at; unchanged for a path outside the hub's cache."""
    commit = commit_of(path)
    is_local = expanded(spec.place).exists()
    return spec if commit is None or is_local else replace(spec, options={**spec.options, "revision": commit})


def _local(spec: Spec, path: Path) -> Path:
    if _revision(spec) is not None:
        raise ConfigError(f"revision={_revision(spec)!r} of {spec.place!r}: a path has no revisions; leave it out")
    found = path / spec.subfolder if spec.subfolder else path
    if not found.exists():
        inside = ", ".join(sorted(one.name for one in path.iterdir())[:8]) if path.is_dir() else "a file, no folder"
        raise ModelError(f"{str(path)!r} has no folder {spec.subfolder!r}; it is: {inside}; correct what follows the #")
    return found


def _revision(spec: Spec) -> str | None:
    return spec.options.get("revision")


def _one_file(spec: Spec, repo: str, file: str) -> Path:
    hub = _hub()
    return Path(_fetched(spec, repo, lambda: hub.hf_hub_download(repo, file, revision=_revision(spec)), file))


def _snapshot(spec: Spec, repo: str, patterns: Sequence[str]) -> Path | None:
    """The folder of a snapshot with files of these patterns; None if there are none."""
    hub = _hub()
    inside = f"{spec.subfolder.strip('/')}/" if spec.subfolder else ""
    wanted = [f"{inside}{one}" for one in patterns or ("*",)]
    found = _fetched(
        spec, repo, lambda: hub.snapshot_download(repo, revision=_revision(spec), allow_patterns=wanted), "its files"
    )
    root = Path(found)
    names = (one.relative_to(root).as_posix() for one in root.rglob("*") if one.is_file())
    return root / inside if any(fnmatch(name, one) for name in names for one in wanted) else None


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra(
            "a model of the hub needs huggingface-hub; install it with: pip install 'vqcortex[hub]', "
            "or name a path on this machine"
        ) from error
    return huggingface_hub


def _is_offline() -> bool:
    return bool(import_module("huggingface_hub.constants").HF_HUB_OFFLINE)


def _fetched(spec: Spec, repo: str, fetch: Callable[[], str], what: str) -> str:
    """What the library fetched; its failures in one line each, the most telling first."""
    hub = import_module("huggingface_hub.errors")
    revision = _revision(spec) or "main"
    nothing = f"{spec.place!r} is no path on this machine, and"
    try:
        return fetch()
    except hub.LocalEntryNotFoundError as error:
        if _is_offline():
            reason = f"HF_HUB_OFFLINE is set and {what} of hub repository {repo!r} at {revision!r} were never fetched"
            raise ModelError(f"{nothing} {reason}; unset it, or fetch them where there is a network") from error
        raise ModelError(
            f"{nothing} the hub cannot be reached ({_first_line(error.__cause__ or error)}) to fetch {what} of "
            f"{repo!r} at {revision!r}, which was not done before; check the network, or name a path"
        ) from error
    except hub.GatedRepoError as error:
        raise ModelError(
            f"hub repository {repo!r} is gated: accept its terms at https://huggingface.co/{repo}, "
            "then log in with: hf auth login"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelError(
            f"{nothing} the hub has no repository {repo!r} that you may read; correct the name, "
            "or log in with: hf auth login"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelError(
            f"hub repository {repo!r} has no revision {revision!r}; give a branch, a tag or a commit it has"
        ) from error
    except hub.EntryNotFoundError as error:
        raise ModelError(
            f"hub repository {repo!r} has no file {what!r} at revision {revision!r}; correct the path; "
            f"a folder is named after a #: {repo}#FOLDER"
        ) from error
    except hub.HFValidationError as error:
        raise ModelError(f"{nothing} {_first_line(error)}; a hub id is owner/name") from error
    except Exception as error:  # the library passes on whatever its HTTP client raises
        raise ModelError(
            f"cannot fetch {what} of hub repository {repo!r}: {_first_line(error)}; "
            "check the network and try again, or name a path"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
