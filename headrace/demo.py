"""`make demo`: the main job from nothing to an answer, on this machine, and nothing left behind.

Everything is the product's own: the environment is `configs/dev.yaml`, the calls are `headrace.Client`'s.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.errors import HeadraceError, NotFound
from headrace.client import Client
from headrace.leaving import leave
from headrace.progress import Board, RunBoard, deployment_rows
from headrace.results import Event, Run

__all__ = ["Demo", "Tally", "main"]

OUTPUT = Path(".headrace") / "demo"
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPT_AGAIN_S = 5.0
GOODBYE_S = 20.0
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "page.png")
"""Real photos inside scikit-image's wheel; the ones that it would have to download are not used."""
QUESTIONS = (
    "我买的耳机坏了，怎么申请退款？",
    "登录时一直报错，需要技术支持。",
    "What are your opening hours?",
)


@dataclass
class Tally:
    """Counts how often each step (or item) of a run was started and finished, from the run's own events."""

    started: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    again: list[str] = field(default_factory=list)
    """Finished work that was started once more: must stay empty."""

    def done(self) -> set[str]:
        """Work that was tried and is finished. (A `foreach` step itself is not tried: its items are.)"""
        return {name for name, count in self.finished.items() if count and self.started[name]}

    def feed(self, event: Event) -> None:
        """Take in one event."""
        kind, _, what = event.event.partition(".")
        if kind not in ("step", "item") or ("attempt" not in event.data and what == "started"):
            return
        name = str(event.data["step"])
        if event.data.get("item") is not None:
            name += f"[{event.data['item']}]"
        if what == "started":
            if self.finished[name]:
                self.again.append(name)
            self.started[name] += 1
        elif what == "succeeded":
            self.finished[name] += 1


class Demo:
    """The scenes, each a method. `client` talks to the running environment."""

    def __init__(self, client: Client, console: Console, photos: Sequence[Path], output: Path):
        self.client = client
        self.console = console
        self.photos = photos
        self.output = output

    def deploy(self, request: Mapping[str, Any]) -> None:
        """Start all hosts, with what each of them is at."""
        view = self.client.deploy(request)
        with Board() as board:
            while True:
                for name, status, message in deployment_rows(view):
                    board.set(name, status, message)
                if view["state"] != "running":
                    break
                time.sleep(0.5)
                view = self.client.deployment(view["id"])
        failed = [f"{item['model']} {item['version']}" for item in view["items"] if item.get("status") == "failed"]
        if failed:
            raise HeadraceError(f"these versions did not start: {', '.join(failed)}")

    def caption(self) -> None:
        """Upload photos, get run ids at once, watch the steps, show what came out."""
        runs: dict[str, Run] = {}
        for photo in self.photos[:3]:
            began = time.monotonic()
            run = self.client.submit("image_processing", files={"photo": photo})
            took = (time.monotonic() - began) * 1000
            runs[photo.stem] = run
            self.console.print(f"  {photo.name}: run [bold]{run.id}[/] is durable after {took:.0f} ms", soft_wrap=True)
        ended = self._follow(runs)
        for name, run in ended.items():
            _must_succeed(run)
            path = self._save(run.id, "/postprocess/thumbnail", f"{name}_thumbnail.jpg")
            self.console.print(f"  [bold]{name}[/]: {escape(run.output['postprocess']['caption'])}", soft_wrap=True)
            self.console.print(f"    {path} · {_chosen(run)}", style="dim", soft_wrap=True)

    def support(self) -> None:
        """Three questions to one route; who answers is decided by the rules in the configuration."""
        for question in QUESTIONS:
            why = self.client.explain("support", question=question)
            answer = self.client.chat("support", question, max_tokens=32)
            chosen = answer.chosen
            self.console.print(f"  [bold]{question}[/]")
            self.console.print(
                f"    → {chosen.model} {chosen.version}, because {_reason(why, chosen.rule)}", soft_wrap=True
            )
            self.console.print(f"    {' '.join(answer.text.split())}", style="dim", markup=False, soft_wrap=True)

    def survive(self) -> None:
        """Kill the run store in the middle of a run; the run ends, and nothing that was finished is done again."""
        run = self.client.submit("caption_photos", files={"photos": list(self.photos)})
        self.console.print(f"  run [bold]{run.id}[/] over {len(self.photos)} photos")
        tally = Tally()
        killed_at: float | None = None
        first_after: float | None = None
        done_before: set[str] = set()
        with Board() as board:
            rows = RunBoard(board)
            for event in self.client.events(run.id):
                tally.feed(event)
                rows.feed(event)
                if killed_at is not None and first_after is None and event.event.endswith("succeeded"):
                    first_after = time.monotonic()
                if killed_at is None and event.event == "step.succeeded" and event.data["step"] == "thumbnails":
                    done_before = tally.done()
                    pid = _kill_run_store()
                    killed_at = time.monotonic()
                    board.set("run store", "KILLED", f"kill -9 {pid}")
        ended = self.client.get_run(run.id)
        _must_succeed(ended)
        if killed_at is None:
            raise HeadraceError("the run ended before the run store could be killed: nothing is proved")
        recovered = f"{first_after - killed_at:.1f} s" if first_after is not None else "?"
        self.console.print(f"  the run ended as {ended.state}; first step committed {recovered} after the kill")
        twice = sorted(set(tally.again) | {name for name in done_before if tally.started[name] != 1})
        if twice:
            raise HeadraceError(f"finished work ran again: {', '.join(twice)}")
        self.console.print(
            f"  {len(done_before)} pieces of work were finished before the kill, and each was started exactly once; "
            f"{len(tally.done())} are finished now",
            soft_wrap=True,
        )
        table = Table("photo", "seen", "caption", box=None, padding=(0, 2))
        for row in ended.output.get("gather", []):
            table.add_row(row["photo"], row["label"], row["caption"])
        self.console.print(table)

    def _follow(self, runs: Mapping[str, Run]) -> dict[str, Run]:
        """The steps of several runs in one board, by polling: a person sees no difference to streaming."""
        ended: dict[str, Run] = {}
        with Board() as board:
            while len(ended) < len(runs):
                for name, run in runs.items():
                    if name in ended:
                        continue
                    now = self.client.get_run(run.id)
                    for step in now.steps.values():
                        took = step.raw.get("duration_s")
                        chosen = step.raw.get("chosen") or {}
                        notes = [f"{took:.1f} s" if took else "", _version(chosen)]
                        board.set(f"{name} · {step.id}", step.state, ", ".join(note for note in notes if note))
                    if now.ended:
                        ended[name] = now
                time.sleep(0.15)
        return ended

    def _save(self, run_id: str, pointer: str, name: str) -> Path:
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / name
        path.write_bytes(self.client.output(run_id, pointer=pointer))
        return path


def _must_succeed(run: Run) -> None:
    if run.succeeded:
        return
    wrong = [f"{step.id}: {(step.error or {}).get('message')}" for step in run.steps.values() if step.error]
    raise HeadraceError(f"run {run.id} ended as {run.state}: {'; '.join(wrong) or run.error}")


def _version(chosen: Mapping[str, Any]) -> str:
    return f"{chosen['model']} {chosen.get('version', '')}".strip() if chosen.get("model") else ""


def _chosen(run: Run) -> str:
    return ", ".join(filter(None, (_version(step.raw.get("chosen") or {}) for step in run.steps.values())))


def _reason(explained: Mapping[str, Any], rule: str | None) -> str:
    why = explained.get("why")
    if isinstance(why, Sequence) and not isinstance(why, str) and why:
        return "; ".join(str(line) for line in why)
    return f"rule {rule}" if rule else "it is the default"


def _kill_run_store() -> int:
    """kill -9 to the process of the run store's actor."""
    import ray

    from cluster.names import NAMESPACE, run_store_actor

    status = ray.get(ray.get_actor(run_store_actor(0), namespace=NAMESPACE).status.remote(), timeout=30)
    pid = int(status["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def find_photos() -> list[Path]:
    """Photos that scikit-image's wheel holds. Raises NotFound without the package."""
    try:
        import skimage
    except ImportError:
        raise NotFound("the demo's photos are in scikit-image: install headrace[models], or run `make setup`") from None
    folder = Path(skimage.__file__).parent / "data"
    found = [folder / name for name in PHOTOS if (folder / name).is_file()]
    if not found:
        raise NotFound(f"no photo of {', '.join(PHOTOS)} in {folder}: install scikit-image 0.24 or newer")
    return found


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A polite kill and a closed terminal end the demo as Ctrl-C does: through the clean-up.

    An interrupt comes again until it is heeded: Python drops one that falls into a callback or a `__del__`.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, INTERRUPT_AGAIN_S)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (*ENDINGS, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_ray(log: Path) -> Iterator[None]:
    """Ray tells a driver on stdout about every worker that it misses, also about those that the demo kills; the story
    is told by `Console`, which keeps the real stdout."""
    serve = logging.getLogger("ray.serve")

    def only_warnings(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    serve.addFilter(only_warnings)
    with log.open("w") as file, redirect_stdout(file):
        yield
    serve.removeFilter(only_warnings)


def _play(console: Console, state: Path) -> None:
    from cluster.config.loader import load, process_environment
    from headrace.cli.workflows import all_folders
    from headrace.up import bring_up

    photos = find_photos()
    env = process_environment()
    flags = {
        "cluster.state_dir": str(state),
        "storage.url": f"file://{state}/bucket",
        "router.port": "0",
    }
    loaded = load("dev", env=env, flags=flags)
    console.rule("[bold]1. A cluster, a router, a run store: no database, no broker")
    up = bring_up(loaded, env)
    demo = Demo(up.client, console, photos, OUTPUT)
    console.rule("[bold]2. Real models, each version a deployment of its own")
    for folder in all_folders(loaded):
        up.client.register(folder)
    demo.deploy(up.request)
    console.rule("[bold]3. Photos in, captions out: a durable workflow over those models")
    demo.caption()
    console.rule("[bold]4. One address, three desks: rules choose the model")
    demo.support()
    console.rule("[bold]5. kill -9 of the run store in the middle of a run")
    demo.survive()
    console.rule("[bold]What to try next")
    if shutil.which("headrace", path=env.get("PATH")) is None:
        # `make demo` runs it by its path; a person will type its name.
        activate = os.path.relpath(Path(sys.executable).parent / "activate")
        console.print(f"  source {activate:<41} once in this terminal", markup=False, highlight=False, soft_wrap=True)
    console.print(  # (each line fits into 80 columns)
        "  headrace up                                      keep a cluster like this one\n"
        "  headrace run image_processing -f photo=cat.jpg   caption a photo of yours\n"
        "  headrace infer support 退款                      ask the route\n"
        "  headrace models · headrace runs                  look around; <url>/docs: HTTP\n"
        "  headrace down                                    stop it; the bucket keeps all",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _clean(state: Path) -> None:
    """End every process of the demo's cluster, whatever happened, and remove its state. Ctrl-C does not stop this."""
    from cluster.ray_runtime import stop_local

    for number in (*ENDINGS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    ray = sys.modules.get("ray")
    if ray is not None:
        # In a thread, since after an interrupt it may wait for a call of its own for ever.
        goodbye = threading.Thread(target=ray.shutdown, daemon=True)
        goodbye.start()
        goodbye.join(GOODBYE_S)
    for folder in [state, *(path for path in state.glob("*") if path.is_dir())]:
        stop_local(folder)
    shutil.rmtree(state, ignore_errors=True)


def main() -> int:
    """Run the demo. Exit code 0: every scene went as told; 1: one did not; 130: interrupted."""
    console = Console(file=sys.stdout, highlight=False)
    began = time.monotonic()
    state = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    code = 0
    try:
        with _ended_by_signals(), _quiet_ray(state / "driver.log"):
            _play(console, state)
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        code = 130
    except HeadraceError as error:
        console.print(f"\n✗ {error.message}", style="red", markup=False)
        console.print(f"  code {error.code}", style="dim")
        code = 1
    finally:
        console.print("stopping the cluster …", style="dim")
        _clean(state)
    if code == 0:
        console.print(f"✓ done in {time.monotonic() - began:.0f} s; thumbnails are in {OUTPUT}, no process is left")
    return code


if __name__ == "__main__":
    leave(main())
