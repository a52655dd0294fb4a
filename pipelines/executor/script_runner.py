"""Runs one attempt of a python step in this process: load, call, capture, convert. Knows no Ray.

It runs in a worker process, one attempt at a time. Whatever the script does short of killing the process ends as an
`Outcome`; only `KeyboardInterrupt` from outside (a cancellation) passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from cluster.errors import HeadraceError, StorageError
from pipelines.executor.bundles import BundleCache
from pipelines.executor.capture import OutputCapture
from pipelines.executor.context import Context
from pipelines.executor.cpu_wait import cpu_wait_s
from pipelines.executor.errors import ScriptNotFound, StepError, StepExited, StepTimeout
from pipelines.executor.live_log import LiveLog
from pipelines.executor.log_keys import log_key
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.time_limit import TimedOut, TimeLimit
from pipelines.executor.values import Blobs, File, pack_output, resolve
from pipelines.spec.plain import text

__all__ = ["RunnerLimits", "ScriptRunner"]

MAX_TRACEBACK_CHARS = 8_000
MAX_MESSAGE_CHARS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """Bytes of JSON kept in line, of one result, and of one attempt's log; seconds from timeout to being killed, and
    between two writes of a running step's log."""

    blob_threshold: int = 64 * 1024
    max_output: int = 256 * 1024 * 1024
    max_log: int = 1024 * 1024
    kill_grace_s: float = 5.0
    live_log_s: float = 2.0


@dataclass
class ScriptRunner:
    """Runs attempts one after another. Loaded scripts stay loaded, as modules do, until another bundle comes."""

    blobs: Blobs
    limits: RunnerLimits = field(default_factory=RunnerLimits)
    bundles: BundleCache = field(default_factory=BundleCache)
    client_factory: str = "headrace:Client.in_cluster"
    _active: str | None = field(default=None, init=False)
    _parked: dict[str, dict[str, ModuleType]] = field(default_factory=dict, init=False)
    _loaded: dict[tuple[str, str, str], tuple[Callable[..., Any], int]] = field(default_factory=dict, init=False)

    def run(self, attempt: Attempt, callable_path: str | None = None) -> Outcome:
        """Runs the attempt's script, or `callable_path` (`module:function`) in its place.

        Raises only `KeyboardInterrupt`.
        """
        started, waited = time.monotonic(), cpu_wait_s()
        scratch = _Scratch()
        capture = OutputCapture(self.limits.max_log)
        key = log_key(attempt)
        live = LiveLog(
            capture,
            lambda text: self.blobs.put_log_blocking(key, text),
            self.limits.live_log_s,
            put_last=lambda text: self.blobs.put_last_log_blocking(key, text),
        )
        output: Any = None
        error: HeadraceError | None = None
        status = "success"
        try:
            with TimeLimit(attempt.timeout_s, self.limits.kill_grace_s) as limit:
                with capture, live, limit.may_strike():
                    result = self._call(attempt, callable_path, scratch)
                with limit.may_strike():
                    output = pack_output(
                        result,
                        threshold=min(self.limits.blob_threshold, attempt.inline_bytes or self.limits.blob_threshold),
                        limit=self.limits.max_output,
                        put=lambda data, media, name: self.blobs.put_blocking(data, media_type=media, name=name),
                        name=attempt.step_id,
                    )
        except HeadraceError as raised:
            error, status = raised, "failed"
        except TimedOut:
            status = "timeout"
            error = StepTimeout(
                f"step {attempt.step_id} ran longer than its timeout of {attempt.timeout_s:g} s",
                details={"timeout_s": attempt.timeout_s},
            )
        except KeyboardInterrupt:
            _keep_log(live, key, None)
            raise
        finally:
            scratch.close()
        # Writing the log is not the step's work.
        took, waited = time.monotonic() - started, cpu_wait_s() - waited
        return Outcome(
            status=status,  # type: ignore[arg-type]
            output=output,
            error=None if error is None else error.to_dict(),
            log=_keep_log(live, key, error),
            duration_s=took,
            waited_s=waited,
        )

    def _call(self, attempt: Attempt, callable_path: str | None, scratch: _Scratch) -> Any:
        def make_file(reference: Mapping[str, Any]) -> File:
            return File(reference, self.blobs, scratch)

        folder: Path | None = None
        context = Context(
            attempt, blobs=self.blobs, make_file=make_file, scratch=scratch, client_factory=self.client_factory
        )
        try:
            if callable_path is not None:
                function = _load_callable(callable_path)
                takes = _accepted_arguments(function, callable_path)
            else:
                folder = self._activate(attempt)
                function, takes = self._load_script(attempt, folder)
            value = resolve(attempt.input, self.blobs.get_blocking, make_file)
            result = function(*(value, context)[:takes])
            if inspect.isawaitable(result):
                result = asyncio.run(_await(result))
            return result
        except (HeadraceError, TimedOut, KeyboardInterrupt):
            raise
        except SystemExit as raised:
            raise StepExited(
                f"step {attempt.step_id} called exit({raised.code!r}): return from the function instead",
                details={"exit_code": raised.code if isinstance(raised.code, int | str | None) else str(raised.code)},
            ) from None
        except BaseException as raised:
            raise _step_error(attempt, raised, folder) from None
        finally:
            with contextlib.suppress(Exception):
                context.close()

    def _activate(self, attempt: Attempt) -> Path:
        """The bundle's folder, first on `sys.path`; modules of the bundle before it are set aside with it."""
        if attempt.bundle is None:
            raise ScriptNotFound(
                f"step {attempt.step_id} has no script: its workflow was registered without its folder"
            )
        if self._active == attempt.bundle:
            return self.bundles.root / attempt.bundle
        folder = self.bundles.folder(attempt.bundle, lambda digest: self.blobs.get_blocking({"$blob": digest}))
        if self._active is not None:
            old = str(self.bundles.root / self._active)
            with contextlib.suppress(ValueError):
                sys.path.remove(old)
            mine = {
                name: module
                for name, module in list(sys.modules.items())
                if str(getattr(module, "__file__", None) or "").startswith(old)
            }
            self._parked[self._active] = mine
            for name in mine:
                del sys.modules[name]
        sys.modules.update(self._parked.pop(attempt.bundle, {}))
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        self._active = attempt.bundle
        return folder

    def _load_script(self, attempt: Attempt, folder: Path) -> tuple[Callable[..., Any], int]:
        """The script's function and how many arguments it takes; loaded once per process, as modules are."""
        name = attempt.script or f"{attempt.step_id}.py"
        key = (folder.name, name, attempt.function)
        known = self._loaded.get(key)
        if known is not None:
            return known
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            there = ", ".join(sorted(p.name for p in folder.glob("*.py"))) or "no .py file"
            raise ScriptNotFound(
                f"step {attempt.step_id}: no script {name} in the folder of workflow {attempt.workflow} "
                f"(there: {there})"
            )
        module_name = f"headrace_bundle_{folder.name[:16]}_{name.removesuffix('.py').replace('/', '_')}"
        module = sys.modules.get(module_name)
        if module is None:
            spec = importlib.util.spec_from_file_location(module_name, path)
            if spec is None or spec.loader is None:
                raise ScriptNotFound(f"step {attempt.step_id}: {name} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                sys.modules.pop(module_name, None)
                raise
        function = getattr(module, attempt.function, None)
        if not callable(function):
            raise ScriptNotFound(f"step {attempt.step_id}: {name} has no function {attempt.function}")
        loaded = self._loaded[key] = (function, _accepted_arguments(function, name))
        return loaded


class _Scratch:
    """The attempt's own folder, made when it is first asked for."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def __call__(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="headrace-step-"))
        return self._folder

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _keep_log(live: LiveLog, key: str, error: HeadraceError | None) -> Mapping[str, Any] | None:
    """Where the attempt's log stands; None for an empty one."""
    trace = b"" if error is None else text(error.details.get("traceback", "")).encode()
    try:
        size = live.end(trace)
    except StorageError:
        return None  # a log must not fail a step that is done
    return {"key": key, "size": size} if size else None


async def _await(value: Any) -> Any:
    return await value


def _load_callable(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ScriptNotFound(f"the image's callable {path} cannot be imported here: {error}") from None
    if not callable(function):
        raise ScriptNotFound(f"the image's callable {path} is not a function")
    return function  # type: ignore[no-any-return]


def _accepted_arguments(function: Callable[..., Any], where: str) -> int:
    """How many of (input, context) the function takes. Raises `ScriptNotFound` when it wants something else."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    count = required = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            count = 2
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            count += 1
            required += parameter.default is parameter.empty
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            required = 3
    if required > 2:
        raise ScriptNotFound(
            f"{where}: the step's function must take (), (input) or (input, context); this one needs other arguments"
        )
    return min(count, 2)


def _step_error(attempt: Attempt, error: BaseException, folder: Path | None) -> StepError:
    tb = error.__traceback__
    own = None if folder is None else str(folder)
    found: TracebackType | None = tb
    while found is not None and own is not None and not found.tb_frame.f_code.co_filename.startswith(own):
        found = found.tb_next
    start = found or tb
    last = start
    line: int | None = None
    while last is not None:
        if own is None or last.tb_frame.f_code.co_filename.startswith(own):
            line = last.tb_lineno
        last = last.tb_next
    trace = text("".join(traceback.format_exception(type(error), error, start, limit=30)))
    if own is not None:
        trace = trace.replace(own + "/", "")
    if len(trace) > MAX_TRACEBACK_CHARS:
        trace = trace[: MAX_TRACEBACK_CHARS // 2] + "\n…\n" + trace[-MAX_TRACEBACK_CHARS // 2 :]
    script = attempt.script or f"{attempt.step_id}.py"
    message = text(error)[:MAX_MESSAGE_CHARS]
    kind = type(error).__name__
    return StepError(
        f"{kind}: {message}" if message else kind,
        details={"type": kind, "script": script, "line": line, "traceback": trace},
    )
