"""What the shell completes from the running cluster, asked as bash asks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cluster.errors import Unauthorized, Unavailable
from headrace.cli.completing import within
from headrace.testing import ScriptedTransport, problem, reply
from headrace.wire import Response
from tests.unit.headrace.commands import Capture, call

MODELS = {"data": [{"id": "text_generation"}, {"id": "support"}, {"id": "tech_model"}]}
VERSIONS = [
    {"name": "support", "version": "9.0.0", "state": "READY"},
    {"name": "tech_model", "version": "1.0.0", "state": "READY"},
    {"name": "tech_model", "version": "2.0.0", "state": "UNAVAILABLE"},
]
WORKFLOWS = {"workflows": [{"name": "image_processing"}, {"name": "fan_out"}]}
RUNS = {"runs": [{"id": "run-0-a", "workflow": "fan_out", "state": "RUNNING"}]}


Complete = Callable[[str, ScriptedTransport], list[str]]


def cluster() -> ScriptedTransport:
    return (
        ScriptedTransport()
        .on("GET", "/v1/models", reply(MODELS))
        .on("POST", "/v2/repository/index", reply(VERSIONS))
        .on("GET", "/workflows", reply(WORKFLOWS))
        .on("GET", "/runs", reply(RUNS))
    )


@pytest.fixture
def complete(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Complete:
    def asked(line: str, script: ScriptedTransport) -> list[str]:
        monkeypatch.setenv("_HEADRACE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        code, out, err = call(capsys, script)
        assert (code, err) == (0, "")
        return out.split()

    return asked


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("headrace infer te", ["text_generation", "tech_model"]),
        ("headrace models show s", ["support"]),
        ("headrace --url http://x infer tech_model --version ", ["1.0.0", "2.0.0"]),
        ("headrace release start tech_model 2", ["2.0.0"]),
        ("headrace release start nobody ", []),
        ("headrace retire support ", ["9.0.0"]),
        ("headrace run i", ["image_processing"]),
        ("headrace run ./", []),
        ("headrace workflows show ", ["image_processing", "fan_out"]),
        ("headrace watch ", ["run-0-a"]),
        ("headrace logs run-0", ["run-0-a"]),
        ("headrace cancel run-1", []),
    ],
)
def test_names_come_from_the_cluster(complete: Complete, line: str, found: list[str]) -> None:
    """Models and routes, the versions of the model before, workflows and runs, by what is typed already."""
    assert complete(line, cluster()) == found


@pytest.mark.parametrize(
    "answer",
    [
        Unavailable("nothing answers"),
        problem(Unauthorized("no API key")),
        reply({"unexpected": 1}),
        Response(200, {}, b"<html>"),
    ],
)
def test_a_cluster_that_does_not_answer_completes_nothing(complete: Complete, answer: Response | Unavailable) -> None:
    """Whatever goes wrong, the command line shows no error."""
    assert complete("headrace infer ", ScriptedTransport().on("GET", "/v1/models", answer)) == []


def test_completing_is_given_up_in_time() -> None:
    """A cluster that does not answer soon is waited for no longer."""
    never = threading.Event()
    assert within(0.001, never.wait) is None
    never.set()
    assert within(None, lambda: 7) == 7
