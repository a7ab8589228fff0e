"""A stand-in for the Hugging Face Hub on a loopback port: models from folders, and the hub's ways to say no."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """`models` maps owner/name to a folder. `requests` notes every "METHOD path" that came."""

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    answer_instead: tuple[int, str] | None = None
    """Status and HTML body that everything gets: an outage, or the log-in page of a hotel."""
    cut_after_bytes: int | None = None
    """Files end early, and the connection with them."""
    hang: Event | None = None
    """Requests wait for it."""

    @property
    def downloaded(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.requests if path.startswith("GET /") and "/resolve/" in path}


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.hang is not None:
            hub.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        if self.hub.hang is not None:
            self.hub.hang.wait(30)
        if self.hub.answer_instead is not None:
            status, body = self.hub.answer_instead
            return self._send(status, body.encode(), {"Content-Type": "text/html"})
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        folder = self.hub.models.get(f"{owner}/{name}")
        if folder is None:
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        if not is_api:
            return self._file(f"{owner}/{name}", folder / "/".join(rest[2:]))
        if rest[:1] == ["tree"]:
            return self._json([_tree_entry(folder, path) for path in _files(folder)])
        with_sizes = "blobs" in parse_qs(url.query)
        self._json(_model_info(f"{owner}/{name}", folder, with_sizes))

    def _file(self, model_id: str, path: Path) -> None:
        # The hub shows a gated model to everyone, and keeps its files.
        if model_id in self.hub.gated:
            return self._refuse(401, "GatedRepo", f"Access to model {model_id} is restricted.")
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        start = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[int(start or 0) :], headers, cut=self.hub.cut_after_bytes)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
            self.close_connection = cut is not None and cut < len(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _model_info(model_id: str, folder: Path, with_sizes: bool) -> dict[str, object]:
    siblings: list[dict[str, object]] = [{"rfilename": path} for path in _files(folder)]
    if with_sizes:
        for sibling in siblings:
            path = folder / str(sibling["rfilename"])
            sibling.update(size=path.stat().st_size, blobId=hashlib.sha1(path.read_bytes()).hexdigest())
    return {"_id": "1", "id": model_id, "modelId": model_id, "sha": COMMIT, "siblings": siblings, "tags": []}


def _tree_entry(folder: Path, path: str) -> dict[str, object]:
    content = (folder / path).read_bytes()
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
