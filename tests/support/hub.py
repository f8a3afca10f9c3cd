"""A Hugging Face hub of one repository on loopback: what its client asks of it when it reads a model.

Source: huggingface_hub 2.4 (`HfApi.model_info`, `file_download.get_hf_file_metadata` and `http_get`).
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEADER_BYTES = 100_001  # what the client asks for of a file whose header alone it wants


@dataclass(kw_only=True)
class Hub:
    """`fetched`: names of the files of which the whole was asked for, in order. `broken`: those that are refused.
    `authorizations`: what requests had in that header.
    """

    name: str
    folder: Path
    url: str = ""
    fetched: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    authorizations: set[str | None] = field(default_factory=set)


@contextmanager
def running_hub(name: str, folder: Path) -> Iterator[Hub]:
    """A hub whose repository `name` holds the files of `folder`."""
    hub = Hub(name=name, folder=folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.hub.authorizations.add(self.headers["Authorization"])
        self._file(body=False)

    def do_GET(self) -> None:
        self.hub.authorizations.add(self.headers["Authorization"])
        if self.path.startswith(f"/api/models/{self.hub.name}"):
            return self._send(200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"})
        return self._file(body=True)

    def _info(self) -> dict[str, object]:
        siblings = []
        for path in sorted(self.hub.folder.iterdir()):
            content = path.read_bytes()
            entry = {"rfilename": path.name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if path.suffix == ".safetensors":
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.hub.name, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}

    def _file(self, *, body: bool) -> None:
        prefix = f"/{self.hub.name}/resolve/{COMMIT}/"
        path = self.hub.folder / self.path.removeprefix(prefix)
        if not self.path.startswith(prefix) or not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        start, end = (int(asked[1]), int(asked[2] or len(content) - 1) + 1) if asked else (0, len(content))
        whole = (body and end - start > HEADER_BYTES) or not asked
        if body and whole:
            if path.name in self.hub.broken:
                return self._send(403, b"", {})
            self.hub.fetched.append(path.name)
        return self._send(206 if asked else 200, content[start:end] if body else b"", headers, len(content[start:end]))

    def _send(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content) if length is None else length)}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
