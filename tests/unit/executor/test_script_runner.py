"""The script contract: arguments, results, failures, output."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cluster.config.models import Resources
from pipelines.executor.bundles import BundleCache, digest_of, pack
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.script_runner import RunnerLimits, ScriptRunner
from pipelines.executor.testing import MemoryBlobs


class Bench:
    """A runner over memory blobs and a bundle made from text."""

    def __init__(self, folder: Path, limits: RunnerLimits | None = None):
        self.blobs = MemoryBlobs()
        self.runner = ScriptRunner(
            blobs=self.blobs, bundles=BundleCache(folder / "bundles"), limits=limits or RunnerLimits()
        )

    def attempt(
        self,
        script: str,
        value: Any = None,
        timeout_s: float | None = None,
        step_id: str = "step",
        files: dict[str, str] | None = None,
        function: str = "main",
    ) -> Attempt:
        texts = {f"{step_id}.py": textwrap.dedent(script), **(files or {})}
        bundle = pack({name: text.encode() for name, text in texts.items()})
        self.blobs.data[digest_of(bundle)] = bundle
        return Attempt(
            run_id="run-0-x",
            workflow="w",
            step_id=step_id,
            item=None,
            attempt=2,
            fence=7,
            idempotency_key="run-0-x/step",
            type="python_script",
            input=value,
            bundle=digest_of(bundle),
            timeout_s=timeout_s,
            seed=11,
            function=function,
            resources=Resources(),
        )

    def run(self, script: str, value: Any = None, timeout_s: float | None = None, **more: Any) -> Outcome:
        return self.runner.run(self.attempt(script, value, timeout_s, **more))

    def log(self, outcome: Outcome) -> str:
        return "" if outcome.log is None else self.blobs.logs[outcome.log["key"]].decode()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("def main(): return 1", 1),
        ("def main(value): return value['a'] + 1", 42),
        ("def main(value, context): return [context.attempt, context.fence, context.seed]", [2, 7, 11]),
        ("def main(*args): return len(args)", 2),
        ("async def main(value, context): return context.idempotency_key", "run-0-x/step"),
        ("main = lambda value: value", {"a": 41}),
    ],
)
def test_main_gets_as_many_arguments_as_it_takes(bench: Bench, script: str, expected: Any) -> None:
    """`main` may take nothing, the input, or the input and the context, and may be async."""
    outcome = bench.run(script, {"a": 41})
    assert outcome.error is None
    assert (outcome.status, outcome.output) == ("success", expected)


def test_a_raise_is_a_step_error_with_the_scripts_own_traceback(bench: Bench) -> None:
    """The traceback starts in the user's script and names its line; nothing of headrace stands in it."""
    outcome = bench.run("def main():\n    import json\n    return json.loads('{')\n")
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error["code"] == "step_error"
    assert outcome.error["retryable"] is True
    details = outcome.error["details"]
    assert (details["type"], details["script"], details["line"]) == ("JSONDecodeError", "step.py", 3)
    assert "script_runner" not in details["traceback"]
    assert "step.py" in details["traceback"]
    assert "json.loads" in bench.log(outcome)


def test_exit_is_a_failure_that_says_so(bench: Bench) -> None:
    """`exit()` ends the step, not the worker."""
    outcome = bench.run("import sys\ndef main():\n    sys.exit(3)\n")
    assert outcome.error is not None
    assert outcome.error["code"] == "step_exited"
    assert outcome.error["details"] == {"exit_code": 3}


@pytest.mark.parametrize(
    ("result", "place", "kind"),
    [
        ("{'a': [1, object()]}", "output.a[1]", "object"),
        ("b'x'", "output", "bytes"),
        ("{1: 2}", "output", "int"),
        ("float('nan')", "output", "float"),
        ("{'s': {1, 2}}", "output.s", "set"),
        ("2**80", "output", "int"),
        ("__import__('pathlib').Path('/tmp')", "output", "pathlib.PosixPath"),
    ],
)
def test_a_result_that_json_cannot_hold_is_named(bench: Bench, result: str, place: str, kind: str) -> None:
    """The error names the place and the type, and is not retried: the script must change."""
    outcome = bench.run(f"def main(): return {result}")
    assert outcome.error is not None
    assert outcome.error["code"] == "result_not_serialisable"
    assert outcome.error["retryable"] is False
    assert outcome.error["details"] == {"path": place, "type": kind}


def test_a_result_that_contains_itself_is_refused(bench: Bench) -> None:
    """A cycle is an error, not a crash."""
    outcome = bench.run("def main():\n    a = []\n    a.append(a)\n    return a\n")
    assert outcome.error is not None
    assert outcome.error["code"] == "result_not_serialisable"


def test_everything_printed_is_kept(bench: Bench) -> None:
    """print, stderr, the logger, and a child process all end in the log."""
    outcome = bench.run(
        """
        import os, subprocess, sys
        def main(value, context):
            print("from print")
            print("from stderr", file=sys.stderr)
            context.log.info("from log %s", 1)
            sys.stdout.flush()
            subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
            os.write(1, b"from the descriptor")
        """
    )
    log = bench.log(outcome)
    for part in ("from print", "from stderr", "from log 1", "from a child", "from the descriptor"):
        assert part in log


def test_a_flood_of_output_is_cut_in_the_middle(tmp_path: Path) -> None:
    """100 MB of output leaves a log of the configured size with its head and its tail."""
    bench = Bench(tmp_path, RunnerLimits(max_log=10_000))
    outcome = bench.run(
        "def main():\n    print('first')\n    [print('x' * 999999) for _ in range(100)]\n    print('last')"
    )
    log = bench.log(outcome)
    assert outcome.status == "success"
    assert len(log) < 10_200
    assert log.startswith("first\n")
    assert log.endswith("last\n")
    assert "bytes left out" in log


def test_a_timeout_ends_the_script(bench: Bench) -> None:
    """A script that sleeps past its timeout ends as a timeout, though it catches Exception."""
    outcome = bench.run(
        """
        import signal, time
        def main():
            print("begun with", signal.getitimer(signal.ITIMER_REAL)[0] // 100, "hundred seconds left")
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # the rest of its time is over in a moment
            while True:
                try:
                    time.sleep(30)
                except Exception:
                    pass
        """,
        timeout_s=1000,
    )
    assert outcome.status == "timeout"
    assert outcome.error is not None
    assert outcome.error["code"] == "step_timeout"
    assert "begun with 9.0 hundred seconds left" in bench.log(outcome)


def test_helpers_beside_the_script_belong_to_their_own_bundle(bench: Bench) -> None:
    """Two workflows may each have a helper.py: each script gets its own, also when they alternate."""
    script = "import helper\ndef main(): return helper.NAME\n"
    seen = [
        bench.run(script, files={"helper.py": f"NAME = {name!r}\n"}).output for name in ("one", "two", "one", "two")
    ]
    assert seen == ["one", "two", "one", "two"]


def test_a_missing_script_or_function_says_what_is_there(bench: Bench) -> None:
    """The message lists the scripts in the folder."""
    attempt = bench.attempt("def main(): pass", step_id="other")
    from dataclasses import replace

    missing = bench.runner.run(replace(attempt, step_id="gone"))
    assert missing.error is not None
    assert missing.error["code"] == "script_not_found"
    assert "other.py" in missing.error["message"]
    wrong = bench.runner.run(replace(attempt, function="start"))
    assert wrong.error is not None
    assert "no function start" in wrong.error["message"]


def test_a_script_may_not_lie_outside_its_folder(bench: Bench) -> None:
    """`script: ../x.py` is refused."""
    from dataclasses import replace

    outcome = bench.runner.run(replace(bench.attempt("def main(): pass"), script="../../etc/x.py"))
    assert outcome.error is not None
    assert outcome.error["code"] == "script_not_found"


def test_files_come_in_and_go_out_by_reference(bench: Bench) -> None:
    """A reference in the input is a File; what context.save gives is a reference in the result."""
    reference = bench.blobs.put_blocking(b"hello", media_type="text/plain", name="../a b.txt")
    outcome = bench.run(
        """
        def main(value, context):
            file = value["photo"]
            assert file.path.read_bytes() == file.read_bytes() == b"hello"
            assert (file.size, file.media_type, file.path.name) == (5, "text/plain", "a_b.txt")
            return {"same": file, "made": context.save(b"new", name="new.png")}
        """,
        {"photo": reference},
    )
    assert outcome.error is None
    assert outcome.output["same"] == reference
    assert outcome.output["made"]["media_type"] == "image/png"
    assert bench.blobs.get_blocking(outcome.output["made"]) == b"new"


def test_a_large_result_travels_by_reference_and_comes_back_whole(tmp_path: Path) -> None:
    """Over the threshold the output is a spilled reference; the next script sees the value itself."""
    bench = Bench(tmp_path, RunnerLimits(blob_threshold=100))
    first = bench.run("def main(): return {'rows': list(range(100))}")
    assert first.output["spilled"] is True
    second = bench.run("def main(value): return sum(value['rows'])", first.output)
    assert second.output == sum(range(100))


def test_a_result_over_the_limit_is_refused(tmp_path: Path) -> None:
    """The limit on one output is an error with both sizes."""
    bench = Bench(tmp_path, RunnerLimits(blob_threshold=10, max_output=1000))
    outcome = bench.run("def main(): return 'x' * 2000")
    assert outcome.error is not None
    assert outcome.error["code"] == "output_too_large"


def test_numpy_and_dataclasses_become_json(bench: Bench) -> None:
    """Arrays, numpy scalars, tuples and dataclasses need no conversion by the user."""
    outcome = bench.run(
        """
        import dataclasses, numpy as np
        @dataclasses.dataclass
        class Point:
            x: int
            y: float
        def main(): return {"a": np.arange(3), "b": np.float32(0.5), "c": (1, 2), "d": Point(1, 2.0)}
        """
    )
    assert outcome.output == {"a": [0, 1, 2], "b": 0.5, "c": [1, 2], "d": {"x": 1, "y": 2.0}}


def test_a_callable_can_stand_for_the_script(bench: Bench) -> None:
    """The images table may name `module:function` of an installed package."""
    outcome = bench.runner.run(bench.attempt("", value={"b": 1, "a": 2}), callable_path="builtins:sorted")
    assert outcome.output == ["a", "b"]


def test_the_process_is_as_before(bench: Bench) -> None:
    """Descriptors and streams are restored after each attempt."""
    before = (sys.stdout, sys.stderr, os.fstat(1).st_ino, len(os.listdir("/proc/self/fd")))
    for _ in range(3):
        bench.run("def main(): print('x')")
    assert (sys.stdout, sys.stderr, os.fstat(1).st_ino, len(os.listdir("/proc/self/fd"))) == before


def test_a_corrupt_bundle_is_named(bench: Bench) -> None:
    """A bundle whose bytes do not match its name is not run."""
    attempt = bench.attempt("def main(): return 1")
    assert attempt.bundle is not None
    bench.blobs.data[attempt.bundle] = b"other"
    outcome = bench.runner.run(attempt)
    assert outcome.error is not None
    assert outcome.error["code"] == "corrupt_object"
