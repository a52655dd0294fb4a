"""A small service that is ill for the first three seconds: it answers 503, later 200. Not a step: run it by hand."""

from __future__ import annotations

import itertools
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ILL_FOR_S = 3
requests = itertools.count(1)
began: list[float] = []


class Shaky(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        number = next(requests)
        if number == 1:
            began.append(time.monotonic())
        status = 503 if time.monotonic() - began[0] < ILL_FOR_S else 200
        body = f'{{"request": {number}}}'.encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9199
    with ThreadingHTTPServer(("127.0.0.1", port), Shaky) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.exit(0)
