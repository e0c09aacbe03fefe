"""A hub of our own on this machine, and the cache that the hub's library leaves behind: nothing leaves the machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import huggingface_hub.utils
import pytest
from huggingface_hub import constants, file_download

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def snapshot(cache: Path, files: Mapping[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
    """What the library leaves behind after fetching the repository owner/name."""
    folder = cache / "models--owner--name"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    for name, content in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "snapshots" / commit


@contextmanager
def caching(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Path]:
    """The library with an empty cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    forget_connections()
    yield cache
    forget_connections()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_connections()


def forget_connections() -> None:
    """The library keeps its connections, and whether it was offline, for later calls."""
    getattr(huggingface_hub, "close_session", getattr(huggingface_hub.utils, "reset_sessions", None))()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes]) -> Iterator[list[str]]:
    """A hub that has the repositories owner/name, owner/gated and owner/broken; yields the paths it was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Hub,), {"asked": asked, "files": files}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """As with HF_ENDPOINT, which the library reads when it is imported."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for place in (constants, file_download):  # older versions keep a second name
        monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


class Hub(BaseHTTPRequestHandler):
    """The little of the hub's interface that fetching needs."""

    asked: list[str]
    files: Mapping[str, bytes]

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def log_message(self, *_):
        pass

    def answer(self, is_whole):
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.api("/".join(parts[2:4]), *parts[4:6])
        if parts[2:3] == ["resolve"] and "/".join(parts[:2]) == "owner/name":
            file = "/".join(parts[4:])
            if file in self.files:
                mark = f'"{file}"'.replace("/", "-")
                return self.send(200, self.files[file], is_whole, {"ETag": mark, "X-Repo-Commit": COMMIT})
            return self.send(404, b"", is_whole, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self.send(404, b"", is_whole, {"X-Error-Code": "RepoNotFound"})

    def api(self, repo, kind="", revision="main"):
        if repo == "owner/gated":
            return self.send(403, b"", True, {"X-Error-Code": "GatedRepo"})
        if repo == "owner/broken":
            return self.send(400, b"", True, {})
        if repo != "owner/name":
            return self.send(404, b"", True, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.send(404, b"", True, {"X-Error-Code": "RevisionNotFound"})
        tree = [{"type": "file", "path": name, "size": len(one), "oid": "0" * 40} for name, one in self.files.items()]
        about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
        return self.send(200, json.dumps(tree if kind == "tree" else about).encode(), True, {})

    def send(self, code, content, is_whole, headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if is_whole:
            self.wfile.write(content)
