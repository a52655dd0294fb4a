"""Steps as real Ray tasks: results, deaths, timeouts, cancellation, images, resources."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.config.models import ImageConfig, Resources, StorageConfig
from pipelines.executor.bundles import digest_of, pack
from pipelines.executor.http_step import HttpStep
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.ray_executor import RayExecutor
from pipelines.executor.script_runner import RunnerLimits
from pipelines.executor.settings import ExecutorSettings
from pipelines.executor.sharing import SharingRules
from pipelines.executor.worker import blobs_of
from pipelines.run_store.outbound import OutboundPolicy
from serve_apps.client import BARE_INPUT, InferRequest, InferResult

pytestmark = pytest.mark.ray

SCRIPTS = {
    "echo.py": "def main(value): return value",
    "raises.py": "def main():\n    raise KeyError('no such key')",
    "flood.py": "def main():\n    for _ in range(100):\n        print('x' * 1_000_000)\n    return 'done'",
    "odd.py": "def main(): return {'lock': __import__('threading').Lock()}",
    "exits.py": "def main(): exit()",
    "dies.py": "import os\ndef main(): os._exit(3)",
    "sleeps.py": (
        "import os, time\nfrom pathlib import Path\n"
        "def main(path):\n    Path(path).write_text(str(os.getpid()))\n    time.sleep(120)"
    ),
    "stubborn.py": (
        "import os, time\nfrom pathlib import Path\n"
        "def main(path):\n    while True:\n"
        "        try:\n            Path(path).write_text(str(os.getpid()))\n            time.sleep(60)\n"
        "        except BaseException:\n            pass"
    ),
    "picture.py": "from PIL import Image\ndef main(value): return Image.open(value['photo'].path).size",
    "short.py": (
        "import os, time\nfrom pathlib import Path\n"
        "def main(value):\n"
        "    if isinstance(value, dict):\n"
        "        with open(value['mark'], 'a') as file:\n"
        "            file.write('x')\n"
        "        os._exit(3) if value['do'] == 'die' else time.sleep(120 if value['do'] == 'hang' else 0)\n"
        "    return value"
    ),
    "saves.py": "def main(value, context): return context.save(b'x' * 200_000, name='big.bin')",
}
BUNDLE = pack({name: text.encode() for name, text in SCRIPTS.items()})


class Models:
    """Answers with the number of bytes that came, and remembers the size of each call."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def infer_many(
        self, model: str, requests: Sequence[InferRequest], *, sticky: Any = None
    ) -> list[tuple[InferResult, dict[str, Any]]]:
        self.sizes.append(len(requests))
        return [
            (InferResult(outputs={"length": [len(request.inputs[BARE_INPUT][0])]}), {"model": model, "sticky": key})
            for request, key in zip(requests, sticky, strict=True)
        ]


@contextlib.asynccontextmanager
async def open_executor(folder: Path, sharing: SharingRules) -> AsyncIterator[RayExecutor]:
    settings = ExecutorSettings(
        storage=StorageConfig(url=f"file://{folder}/bucket"),
        images={
            "local:1": ImageConfig(local=True),
            "callable:1": ImageConfig(callable="builtins:sorted"),
        },
        limits=RunnerLimits(kill_grace_s=1.0, max_log=100_000),
        sharing=sharing,
    )
    blobs = blobs_of(settings)
    blobs.put_blocking(BUNDLE, media_type="application/zip", name="bundle")
    http = HttpStep(policy=OutboundPolicy(open_world=True), save=lambda data, media, name: None)
    executor = RayExecutor(settings, client=Models(), blobs=blobs, http=http)
    yield executor
    await executor.close()
    blobs.close()


@pytest.fixture
async def executor(ray_cluster: Any, tmp_path: Path) -> AsyncIterator[RayExecutor]:
    async with open_executor(tmp_path, SharingRules()) as executor:
        yield executor


@contextlib.asynccontextmanager
async def open_sharer(folder: Path, *, hold_s: float) -> AsyncIterator[RayExecutor]:
    """An executor that takes the step `short` for a short one, and waits for a worker, however busy this machine is."""
    rules = SharingRules(short_s=600, task_s=6000, worth_s=6000, hold_s=hold_s, silence_s=600)
    async with open_executor(folder, rules) as executor:
        outcomes = await asyncio.gather(*(executor.run(attempt("short", n, fence=n)) for n in range(8)))
        assert [outcome.output for outcome in outcomes] == list(range(8))
        yield executor


@pytest.fixture
async def patient_sharer(ray_cluster: Any, tmp_path: Path) -> AsyncIterator[RayExecutor]:
    """One whose shared tasks are never late: what becomes of an attempt is not a matter of how long the others took."""
    async with open_sharer(tmp_path, hold_s=600) as executor:
        yield executor


@pytest.fixture
async def sharer(ray_cluster: Any, tmp_path: Path) -> AsyncIterator[RayExecutor]:
    """One whose shared tasks are late after a quarter of a second, as in production."""
    async with open_sharer(tmp_path, hold_s=SharingRules().hold_s) as executor:
        yield executor


def attempt(step_id: str, value: Any = None, **more: Any) -> Attempt:
    fields: dict[str, Any] = {
        "run_id": "run-0-a",
        "workflow": "w",
        "step_id": step_id,
        "item": None,
        "attempt": 1,
        "fence": 1,
        "idempotency_key": f"run-0-a/{step_id}",
        "type": "python_script",
        "input": value,
        "bundle": digest_of(BUNDLE),
        **more,
    }
    return Attempt(**fields)


async def until(holds: Callable[[], bool], timeout_s: float = 150) -> None:
    """Waits for something that another process does."""
    for _ in range(int(timeout_s / 0.02)):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("it did not come about")


@pytest.mark.parametrize(
    ("step_id", "code", "retryable", "words"),
    [
        ("raises", "step_error", True, "KeyError"),
        ("odd", "result_not_serialisable", False, "output.lock"),
        ("exits", "step_exited", True, "exit"),
        ("dies", "worker_died", True, "os._exit"),
        ("gone", "script_not_found", False, "gone.py"),
    ],
)
async def test_a_bad_script_ends_as_a_named_failure(
    executor: RayExecutor, step_id: str, code: str, retryable: bool, words: str
) -> None:
    """Each way a script can go wrong has its own code, says whether trying again may help, and hurts nobody else."""
    outcome = await executor.run(attempt(step_id))
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["retryable"]) == (code, retryable)
    assert words in outcome.error["message"]
    assert (await executor.run(attempt("echo", 5))).output == 5


async def test_a_script_that_prints_100_mb_is_kept_short(executor: RayExecutor) -> None:
    """The step succeeds and its log stays within the limit."""
    outcome = await executor.run(attempt("flood"))
    assert outcome.output == "done"
    assert outcome.log is not None
    assert outcome.log["size"] < 100_200


async def test_a_file_that_is_no_picture_fails_with_the_librarys_word(executor: RayExecutor) -> None:
    """The user's own exception is what the run shows."""
    reference = executor._blobs.put_blocking(b"not a picture", media_type="image/png", name="x.png")
    outcome = await executor.run(attempt("picture", {"photo": reference}))
    assert outcome.error is not None
    assert outcome.error["details"]["type"] == "UnidentifiedImageError"


async def test_a_step_that_hangs_ends_at_its_timeout(executor: RayExecutor, tmp_path: Path) -> None:
    """A sleeping step is interrupted; one that refuses to stop is killed with its worker."""
    sleeping = await executor.run(attempt("sleeps", str(tmp_path / "s"), timeout_s=0.5))
    assert sleeping.status == "timeout"
    # (What is ended before it has begun needs no force: on a slow machine it takes longer to begin.)
    for timeout_s in (3, 30, 100):
        stubborn = await executor.run(attempt("stubborn", str(tmp_path / "p"), timeout_s=timeout_s))
        assert stubborn.status == "timeout"
        if (tmp_path / "p").exists():
            break
    assert stubborn.error is not None
    assert stubborn.error["details"]["killed"] is True
    # Its parent may take a moment to bury it.
    pid = (tmp_path / "p").read_text()
    await until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("step_id", ["sleeps", "stubborn"])
async def test_cancelling_ends_the_work(executor: RayExecutor, tmp_path: Path, step_id: str) -> None:
    """The awaiting task ends only when the worker has stopped, by itself or by force."""
    mark = tmp_path / "mark"
    task = asyncio.create_task(executor.run(attempt(step_id, str(mark))))
    await until(lambda: mark.exists() and mark.read_text() != "")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if step_id == "stubborn":
        pid = mark.read_text()
        await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_worker_that_is_asked_to_end_tells_no_result(executor: RayExecutor, tmp_path: Path) -> None:
    """As Ray asks those of a dead owner: it ends by itself, whatever its script does about it."""
    mark = tmp_path / "mark"
    task = asyncio.create_task(executor.run(attempt("stubborn", str(mark))))
    await until(lambda: mark.exists() and mark.read_text() != "")
    os.kill(int(mark.read_text()), signal.SIGTERM)
    outcome = await task
    assert outcome.error is not None
    assert outcome.error["code"] == "worker_died"


async def test_images_and_resources_are_checked_before_anything_starts(executor: RayExecutor) -> None:
    """The images table gives a callable or the script; a container without an engine, or a step too large for every
    node, is refused with what there is."""
    assert (await executor.run(attempt("echo", {"b": 1, "a": 2}, image="callable:1"))).output == ["a", "b"]
    assert (await executor.run(attempt("echo", 1, image="local:1"))).output == 1
    if not executor._has_engine:
        refused = await executor.run(attempt("echo", 1, image="some/container:1"))
        assert refused.error is not None
        assert refused.error["code"] == "image_unavailable"
    large = await executor.run(attempt("echo", 1, resources=Resources(cpus=4000)))
    assert large.error is not None
    assert large.error["code"] == "resources_impossible"
    assert "4000 CPU" in large.error["message"]


async def test_large_values_travel_by_reference(executor: RayExecutor) -> None:
    """A result over the threshold becomes a blob, and the next step sees the value."""
    first = await executor.run(attempt("echo", list(range(50_000))))
    assert first.output["spilled"] is True
    second = await executor.run(attempt("echo", {"rows": first.output}))
    assert second.output["spilled"] is True


async def test_inference_steps_are_merged_with_files_as_bytes(executor: RayExecutor) -> None:
    """Attempts of several runs make one call; a file's bytes reach the model; each run is its own sticky key."""
    reference = executor._blobs.put_blocking(b"12345", media_type="image/png", name="x.png")
    inputs: list[Any] = ["ab", reference, "abcd"]
    outcomes: list[Outcome] = await asyncio.gather(
        *(
            executor.run(attempt("m", value, type="model_inference", model="m", run_id=f"run-0-{n}"))
            for n, value in enumerate(inputs)
        )
    )
    assert [o.output for o in outcomes] == [2, 5, 4]
    assert [o.chosen["sticky"] for o in outcomes if o.chosen] == ["run-0-0", "run-0-1", "run-0-2"]
    models = executor._client
    assert isinstance(models, Models)
    assert models.sizes == [3]


async def test_in_a_shared_task_a_crash_is_one_attempts_own(patient_sharer: RayExecutor, tmp_path: Path) -> None:
    """The attempt that kills the worker fails alone; its neighbours succeed within the same attempt of theirs."""
    mark = tmp_path / "mark"
    inputs: list[Any] = [1, 2, {"mark": str(mark), "do": "die"}, 4, 5]
    outcomes = await asyncio.gather(
        *(patient_sharer.run(attempt("short", value, item=n)) for n, value in enumerate(inputs))
    )
    assert [outcome.output for outcome in outcomes] == [1, 2, None, 4, 5]
    assert outcomes[2].error is not None
    assert outcomes[2].error["code"] == "worker_died"
    # It was seen to be the one by running it alone: so they did share a task.
    assert mark.read_text() == "xx"


async def test_in_a_shared_task_a_hang_holds_nobody_up(sharer: RayExecutor, tmp_path: Path) -> None:
    """Neighbours of an attempt that hangs end soon, one cancelled before its turn never runs, and the hanging one,
    which ran once, is cancelled like any other."""
    mark, never = tmp_path / "mark", tmp_path / "never"
    inputs: list[Any] = [1, {"mark": str(mark), "do": "hang"}, {"mark": str(never), "do": "note"}, 4]
    runs = [asyncio.create_task(sharer.run(attempt("short", value, item=n))) for n, value in enumerate(inputs)]
    # Cancelled as soon as the group is on its way: before its worker could begin, or hand back, what comes after the
    # one that hangs.
    await until(lambda: sum(shape.lane.out for shape in sharer._shapes.values()) == 1)
    runs[2].cancel()
    await until(mark.exists)
    assert [(await runs[n]).output for n in (0, 3)] == [1, 4]
    assert not runs[1].done()
    runs[1].cancel()
    ended = await asyncio.gather(*runs[1:3], return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in ended)
    assert mark.read_text() == "x"
    assert not never.exists()
