"""The router as a Serve ingress deployment: a thin shell that feeds `Router` with tables, hosts and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cluster.clock import SystemClock
from cluster.errors import HeadraceError
from serve_apps.http.app import build_app
from serve_apps.http.gate import TRUSTED, Gate
from serve_apps.protocol import InferRequest, InferResult
from serve_apps.router import fast_lane
from serve_apps.router.core import embedding_model
from serve_apps.router.metrics import MetricsExporter
from serve_apps.router.ray_hosts import RayHosts
from serve_apps.router.service import Router
from serve_apps.router.testing import StaticTable
from serve_apps.table import RoutingTable

__all__ = ["RouterIngress", "call_app"]

_WATCH_S = 20.0
_FLUSH_S = 1.0
_log = logging.getLogger(__name__)


class TableSource(Protocol):
    """Where tables come from and reports go to: the control plane, or a static table."""

    async def watch(self, revision: int, timeout_s: float) -> RoutingTable | None: ...

    async def report(self, router_id: str, stats: Mapping[str, Any]) -> None: ...


class RouterIngress:
    """Undecorated; `bootstrap` makes it a deployment. `wire`: the configuration in its wire form (no secrets); with
    `table` it works from that table and asks no control plane. `mark` names all that this router was made from."""

    def __init__(self, wire: dict[str, Any] | None = None, table: RoutingTable | None = None, mark: str = ""):
        self._wire = wire
        self._static = table
        self._mark = mark
        self._id = os.urandom(6).hex()
        self._hosts = RayHosts()
        self.router = Router(hosts=self._hosts, clock=SystemClock(), rng=random.Random(), embedder=self._embed)
        self._tasks: list[asyncio.Task[None]] = []
        self._gate: Gate | None = None

    def __serve_build_asgi_app__(self) -> Gate:
        """Called by Serve on the replica's event loop, after the constructor."""
        source, routers = self._parts()
        # Serve adds the request id, and cancels the work of callers that have gone.
        self._gate = build_app(self.router, routers=routers, id_header=False, watch=False)
        if self._static is not None:
            self._use(self._static)
        fast_lane.install(self._gate.outermost())
        loop = asyncio.get_event_loop()
        self._tasks = [loop.create_task(self._watch(source)), loop.create_task(self._flush(source))]
        return self._gate

    def _parts(self) -> tuple[TableSource, Sequence[Any]]:
        if self._static is not None:
            return StaticTable(self._static), ()
        from cluster.config.loader import process_environment
        from cluster.config.models import SecretRef
        from cluster.config.secrets import Secrets
        from cluster.config.wire import from_wire
        from cluster.storage import open_bucket
        from serve_apps.control.gateway import RayControlGateway
        from serve_apps.http import admin, alerts, feedback, runs
        from serve_apps.http.blobs import StoredBlobs
        from serve_apps.http.runs_gateway import RayRunsGateway

        config = from_wire(self._wire or {})
        secrets = Secrets.open(process_environment())

        def resolve(reference: SecretRef) -> str | None:
            value = secrets.resolve(reference)
            return value.get_secret_value() if value else None

        gateway = RayControlGateway()
        blobs = StoredBlobs(open_bucket=lambda: open_bucket(config.storage, resolve_secret=resolve))
        routers = [
            runs.build_router(RayRunsGateway(shards=config.state.shards), blobs),
            admin.build_router(gateway),
            alerts.build_router(gateway),
            feedback.build_router(gateway),
        ]
        return gateway, routers

    # -- background ----------------------------------------------------------------------------------------------

    def _use(self, table: RoutingTable) -> None:
        if self.router.set_table(table):
            entries = [entry for model in table.models.values() for entry in model.versions.values()]
            self._hosts.keep(entry.app for entry in entries if entry.ready)

    async def _watch(self, source: TableSource) -> None:
        """Take every newer table; while nobody gives one, the last one stays in force."""
        pause = 0.1
        while True:
            try:
                table = await source.watch(self.router.table.revision, _WATCH_S)
                if table is not None:
                    self._use(table)
                pause = 0.1
            except asyncio.CancelledError:
                raise
            except Exception as error:
                _log.log(logging.INFO if isinstance(error, HeadraceError) else logging.WARNING, "no table: %s", error)
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)

    async def _flush(self, source: TableSource) -> None:
        exporter = MetricsExporter()
        unsent = 0
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await exporter.flush(self.router)
            except Exception as error:  # metrics must never stop the router
                _log.warning("metrics could not be exported: %s", error)
            report = self.router.stats.report(self.router.table.revision)
            try:
                await source.report(self._id, report.to_wire())
                unsent = 0
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # Counts of a second or two are lost: the breaker and releases live from rates, not from totals.
                unsent += 1
                if unsent in (1, 60):
                    _log.info("report %d did not arrive: %s", report.seq, error)

    async def _embed(self, texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Embeddings for semantic rules, by the model that `settings.embedding_model` names (default: embedding). All
        by one version while the weights are the same: vectors of two cannot be compared."""
        name = embedding_model(self.router.table)
        request = InferRequest(id=os.urandom(8).hex(), inputs={"text": list(texts)}, rows=len(texts))
        ((result, _),) = await self.router.infer_many(name, [request], sticky=name)
        if result.error is not None:
            raise result.error
        return dict(zip(texts, (result.outputs or {})["embedding"], strict=True))

    # -- methods over Serve handles --------------------------------------------------------------------------------

    async def infer_many(
        self,
        model: str,
        requests: list[InferRequest],
        sticky: str | Sequence[str | None] | None = None,
        pinned: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> list[tuple[InferResult, dict[str, Any]]]:
        """For callers inside the cluster (trusted): see `Router.infer_many`."""
        return await self.router.infer_many(model, requests, sticky=sticky, pinned=pinned, headers=headers)

    async def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """The HTTP surface for clients inside the cluster (trusted, role operate); streams are collected."""
        assert self._gate is not None
        return await call_app(self._gate, method, path, headers or {}, body)

    async def mark(self) -> str:
        """What it was made from, see `bootstrap.deploy_router`."""
        return self._mark

    async def revision(self) -> int:
        """Of the table in force."""
        return self.router.table.revision

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            await self.router.close()


async def call_app(
    app: Gate, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """One trusted request to the ASGI application. `path` may carry a query. Header names come back in lower case."""
    from urllib.parse import unquote

    bare, _, query = path.partition("?")
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    if body and not any(name == b"content-length" for name, _ in raw):
        raw.append((b"content-length", str(len(body)).encode()))
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": unquote(bare),
        "raw_path": bare.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": raw,
        "client": None,
        "server": None,
        TRUSTED: True,
    }
    sent = False
    never = asyncio.Event()
    status = 500
    answer: dict[str, str] = {}
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await never.wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = int(message["status"])
            for name, value in message.get("headers", ()):
                answer[name.decode("latin-1").lower()] = value.decode("latin-1")
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    answer.setdefault("x-request-id", str(scope.get("headrace.request_id", "")))
    return status, answer, b"".join(parts)
