"""A server that speaks as much of the hub's HTTP interface as the tests need, and its failures.

Repositories are dictionaries of files in memory; what is pushed is written there. `serving` starts
the server and points the hub's clients at it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Kind = Literal["model", "dataset"]
Fault = Literal[
    "gated", "forbidden", "token", "rate", "server", "busy", "silent", "cut", "cut-once"
]
# Fault -> status, X-Error-Code and message of every answer.
_REFUSALS: dict[str, tuple[int, str, str]] = {
    "gated": (403, "GatedRepo", "Access to this repository is restricted"),
    "forbidden": (403, "", "Forbidden: pass a token that may read this repository"),
    "token": (401, "", "Invalid credentials in Authorization header"),
    "rate": (429, "", "Too many requests"),
    "server": (500, "", "Internal error"),
}
_CUT_FROM = 2_000  # bytes from which a file is cut short
_RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")
_API = re.compile(
    r"/api/(model|dataset)s/(.+?)(?:/(revision|tree|refs|paths-info|preupload|commit)(?:/(.*))?)?"
)


@dataclass
class Repository:
    """Files by path, other revisions by name, and what goes wrong with it."""

    files: dict[str, bytes]
    fault: Fault | None = None
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> dict[str, bytes] | None:
        known = {"main": self.files, **self.revisions}
        commits = {commit(files): files for files in known.values()}
        return {**commits, **known}.get(revision)


def commit(files: dict[str, bytes]) -> str:
    text = "".join(f"{path} {hashlib.sha1(files[path]).hexdigest()}" for path in sorted(files))
    return hashlib.sha1(text.encode()).hexdigest()


def folder_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder as a repository holds them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class HubServer(ThreadingHTTPServer):
    """The server; ``asked`` counts the requests by method and path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[Kind, str], Repository] = {}
        self.asked: Counter[str] = Counter()
        self.uploaded: dict[str, bytes] = {}
        self.stopped = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(
        self, kind: Kind, name: str, files: dict[str, bytes], fault: Fault | None = None
    ) -> Repository:
        self.repositories[kind, name] = Repository(dict(files), fault)
        return self.repositories[kind, name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def repository(self, kind: Kind, name: str) -> tuple[str, Repository] | None:
        """The repository; None where it was answered already."""
        known = self.server.repositories
        if "/" not in name:
            full = next(
                (other for of, other in known if of == kind and other.endswith(f"/{name}")), ""
            )
            if full:
                self.answer(307, Location=self.path.replace(name, full, 1))
                return None
        found = known.get((kind, name))
        if found is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
            return None
        seen = self.server.asked[f"{self.command} {self.path}"]
        if found.fault == "silent":
            self.server.stopped.wait(5)
            self.close_connection = True
        elif found.fault == "busy" and seen <= 1:
            self.refuse(503, "", "Service unavailable")
        elif found.fault in _REFUSALS:
            self.refuse(*_REFUSALS[found.fault])
        else:
            return name, found
        return None

    def do_GET(self) -> None:
        self.server.asked[f"{self.command} {self.path}"] += 1
        url = urlsplit(self.path)
        path, query = unquote(url.path), {key: item[0] for key, item in parse_qs(url.query).items()}
        if path == "/api/whoami-v2":
            self.answer(
                200, {"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": {}}
            )
        elif path in ("/api/models", "/api/datasets"):
            self.listing("model" if path == "/api/models" else "dataset", query)
        elif found := _RESOLVE.fullmatch(path):
            if known := self.repository("dataset" if found[1] else "model", found[2]):
                self.file(known[1], found[3], found[4])
        elif found := _API.fullmatch(path):
            if known := self.repository("dataset" if found[1] == "dataset" else "model", found[2]):
                self.info(*known, found[3] or "revision", found[4] or "main")
        else:
            self.refuse(404, "EntryNotFound", f"no such address: {path}")

    do_HEAD = do_GET

    def listing(self, kind: Kind, query: dict[str, str]) -> None:
        names = [
            name for of, name in self.server.repositories
            if of == kind and query.get("search", "") in name
            and name.startswith(query.get("author", ""))
        ]  # fmt: skip
        self.answer(200, [{"_id": "0", "id": name, "modelId": name, "tags": []} for name in names])

    def info(self, name: str, repository: Repository, what: str, rest: str) -> None:
        revision, _, under = rest.partition("/")
        files = repository.at(revision)
        if what == "refs":
            heads = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit(content)}
                for branch, content in {"main": repository.files, **repository.revisions}.items()
            ]
            self.answer(200, {"branches": heads, "tags": [], "converts": []})
        elif files is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "tree":
            found = [entry(path, files[path]) for path in sorted(files) if path.startswith(under)]
            self.answer(200, [*_folders(files, under), *found])
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            self.answer(200, {
                "_id": "0", "id": name, "modelId": name, "sha": commit(files), "private": False,
                "author": name.split("/")[0], "gated": False, "disabled": False, "downloads": 0,
                "likes": 0, "tags": [], "siblings": siblings, "cardData": {"license": "mit"},
                "lastModified": "2026-01-01T00:00:00.000Z",
            })  # fmt: skip

    def file(self, repository: Repository, revision: str, path: str) -> None:
        files = repository.at(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in files:
            return self.refuse(404, "EntryNotFound", f"{path} does not exist")
        data, part = files[path], re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(part[1]) if part else 0
        end = min(int(part[2]) if part and part[2] else len(data) - 1, len(data) - 1)
        self.send_response(206 if part else 200)
        self.send_header("X-Repo-Commit", commit(files))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(end - start + 1))
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        fault, sent = repository.fault, data[start : end + 1]
        seen = self.server.asked[f"{self.command} {self.path}"]
        if len(data) >= _CUT_FROM and (fault == "cut" or (fault == "cut-once" and seen == 1)):
            sent = sent[: len(sent) // 2] if fault == "cut-once" else b""
            self.close_connection = True
        self.wfile.write(sent)
        return None

    def do_PUT(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.uploaded[name] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(200, {})

    def do_POST(self) -> None:
        self.server.asked[f"{self.command} {self.path}"] += 1
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [], "errors": []})
        found = _API.fullmatch(path)
        if "Authorization" not in self.headers and not (found and found[3] == "paths-info"):
            return self.refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(data)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
            return self.answer(200, {"transfer": "basic", "objects": objects})
        known = found and self.repository("dataset" if found[1] == "dataset" else "model", found[2])
        if not found or not known:
            return None
        name, repository = known
        if found[3] == "commit":
            return self.commit(name, repository, data)
        if found[3] == "preupload":
            asked = json.loads(data)
            for item in asked["files"]:
                large = item["path"].endswith((".safetensors", ".onnx", ".bin"))
                item |= {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            return self.answer(200, asked)
        files = repository.at((found[4] or "main").partition("/")[0]) or {}
        paths = _paths_asked(data, self.headers.get("Content-Type", ""))
        folders = [item for path in paths for item in _folders(files, "") if item["path"] == path]
        return self.answer(
            200, [*folders, *(entry(path, files[path]) for path in paths if path in files)]
        )

    def create(self, asked: dict[str, str]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        kind: Kind = "dataset" if asked.get("type") == "dataset" else "model"
        known = (kind, name) in self.server.repositories
        if not known:
            self.server.add(kind, name, {})
        self.answer(409 if known else 200, {"url": f"{self.server.url}/{name}", "id": name})

    def commit(self, name: str, repository: Repository, data: bytes) -> None:
        for action in map(json.loads, data.splitlines()):
            value = action["value"]
            if action["key"] == "file":
                repository.files[value["path"]] = b64decode(value["content"])
            elif action["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.uploaded[value["oid"]]
            elif action["key"] == "deletedFile":
                repository.files.pop(value["path"])
        sha = commit(repository.files)
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})


def entry(path: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    large = {"oid": digest, "size": len(data), "pointerSize": 134}
    lfs = large if path.endswith((".safetensors", ".onnx", ".bin")) else None
    return {"type": "file", "oid": digest[:40], "size": len(data), "path": path, "lfs": lfs}


def _folders(files: dict[str, bytes], under: str) -> list[dict[str, object]]:
    names = {parent.as_posix() for path in files for parent in Path(path).parents} - {".", under}
    return [
        {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        for name in sorted(names)
        if name.startswith(under)
    ]


def _paths_asked(data: bytes, content_type: str) -> list[str]:
    if content_type.startswith("application/json"):
        return [str(path) for path in json.loads(data)["paths"]]
    return parse_qs(data.decode()).get("paths", [])


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """A running server, which the hub's clients ask instead of the hub; they cache in ``cache``."""
    import datasets.config
    import huggingface_hub.constants as hub
    from huggingface_hub import close_session

    server = HubServer()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub, "ENDPOINT", server.url)
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        close_session()
