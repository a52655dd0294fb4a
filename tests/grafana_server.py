"""A small stand-in for Grafana's HTTP API, as far as `headrace dashboards push` uses it, over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["TOKEN", "FakeGrafana", "serve_grafana"]

TOKEN = "glsa_right"


@dataclass
class FakeGrafana:
    """What the server holds. `path`: where it is mounted. `silent`: it takes requests and never answers; `page`: it
    answers everything with this web page; `broken`: it answers writes with this status."""

    path: str = ""
    role: str = "Editor"
    silent: bool = False
    page: str | None = None
    broken: int | None = None
    folders: dict[str, str] = field(default_factory=dict)
    boards: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        if path == "/api/health":
            return 200, {"database": "ok", "version": "11.0.0"}
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        if method == "GET" and path.startswith("/api/folders/"):
            uid = path.rpartition("/")[2]
            if uid not in self.folders:
                return 404, {"message": "folder not found"}
            return 200, {"uid": uid, "title": self.folders[uid]}
        if self.role != "Editor":
            return 403, {"message": "You'll need additional permissions to perform this action"}
        if self.broken is not None:
            return self.broken, {"message": "told to fail"}
        if (method, path) == ("POST", "/api/folders"):
            self.folders[body["uid"]] = body["title"]
            return 200, body
        if (method, path) == ("POST", "/api/dashboards/db"):
            return self._write(body)
        return 404, {"message": "Not found"}

    def _write(self, body: Any) -> tuple[int, Any]:
        board = body["dashboard"]
        if body["folderUid"] not in self.folders:
            return 400, {"message": "folder not found"}
        if board["id"] is not None or (board["uid"] in self.boards and not body["overwrite"]):
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        version = self.boards.get(board["uid"], {}).get("version", 0) + 1
        self.boards[board["uid"]] = {**board, "version": version, "folder": body["folderUid"]}
        self.messages.append(body["message"])
        return 200, {"uid": board["uid"], "url": f"{self.path}/d/{board['uid']}/x", "version": version}


@contextmanager
def serve_grafana(grafana: FakeGrafana) -> Iterator[FakeGrafana]:
    """Serve it on a free port of this machine; `grafana.url` says where."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            if grafana.silent:
                ended.wait(60)
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if grafana.page is not None:
                self._send(200, "text/html", grafana.page.encode())
            elif not self.path.startswith(f"{grafana.path}/api/"):
                self._send(404, "text/html", b"<html>404, a message for you</html>")
            else:
                status, said = grafana.answer(
                    self.command,
                    self.path.removeprefix(grafana.path),
                    self.headers.get("authorization", ""),
                    json.loads(body) if body and body != b"null" else None,
                )
                self._send(status, "application/json", json.dumps(said).encode())

        do_GET = do_POST = _any

        def _send(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    grafana.url = f"http://127.0.0.1:{server.server_port}{grafana.path}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield grafana
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
