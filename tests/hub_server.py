"""A stand-in for a model hub on 127.0.0.1: the part of its HTTP interface that the zoo uses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories in memory, one state each, and a list of what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.read_only = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answer as a hub does."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: object, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.read_only:
            return self.answer_json({"error": "no"}, 403)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            url = {"url": f"{self.server.endpoint}/{name}"}
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            return self.answer_json(url, status)
        if self.path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", self.path)
        assert found, self.path
        if found[2] == "preupload":
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": f["path"], **plain} for f in json.loads(body)["files"]]
            return self.answer_json({"files": files})
        return self.commit(found[1], body)

    def commit(self, repository: str, body: bytes) -> None:
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                value = operation["value"]
                content = base64.b64decode(value["content"])
                self.server.repositories[repository][value["path"]] = content
        url = f"{self.server.endpoint}/{repository}/commit/{COMMIT}"
        self.answer_json({"commitUrl": url, "commitOid": COMMIT})

    def do_GET(self) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None:
            return self.answer_json({}, 404, X_Error_Code="RepoNotFound")
        self.server.asked.append(f"{self.command} {found[3]}")
        files = self.server.repositories.get(found[1])
        if files is None:
            return self.answer_json({}, 404, X_Error_Code="RepoNotFound")
        if found[2] not in ("main", COMMIT):
            return self.answer_json({}, 404, X_Error_Code="RevisionNotFound")
        if found[3] not in files:
            return self.answer_json({}, 404, X_Error_Code="EntryNotFound")
        content = files[found[3]]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, content, ETag=tag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub in a thread of this process."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
