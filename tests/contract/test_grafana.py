"""`headrace dashboards`, as somebody types it: files written, and pushed to a Grafana that is well, wrong or away."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.main import run
from tests.grafana_server import TOKEN, FakeGrafana, serve_grafana

Capture = pytest.CaptureFixture[str]
BOARDS = ["headrace-serving", "headrace-workflows", "headrace-releases"]


@pytest.fixture(params=["", "/grafana"])
def grafana(request: pytest.FixtureRequest) -> Iterator[FakeGrafana]:
    """At the root of its address, and behind a path."""
    with serve_grafana(FakeGrafana(path=request.param)) as server:
        yield server


def push(capsys: Capture, url: str, *arguments: str, token: str = TOKEN) -> tuple[int, str, str]:
    code = run(["dashboards", "push", "--url", url, *arguments], env={"GRAFANA_TOKEN": token} if token else {})
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_push_makes_the_folder_and_the_dashboards_and_repeats(grafana: FakeGrafana, capsys: Capture) -> None:
    """Twice is as good as once: the second push makes new versions of the same dashboards."""
    code, out, _ = push(capsys, f"{grafana.url}/", "--folder", "Models")
    assert code == 0
    assert grafana.folders == {"headrace": "Models"}
    assert list(grafana.boards) == BOARDS
    assert f"headrace serving: {grafana.url}/d/headrace-serving/x" in out.splitlines()
    code, out, _ = push(capsys, grafana.url, "--json")
    assert (code, [item["version"] for item in json.loads(out)["dashboards"]]) == (0, [2, 2, 2])
    assert {board["folder"] for board in grafana.boards.values()} == {"headrace"}
    assert all(message.startswith("headrace ") for message in grafana.messages)


@pytest.mark.parametrize(
    ("settings", "token", "code", "said"),
    [
        ({}, "glsa_wrong", 2, "does not know this token (GRAFANA_TOKEN)"),
        ({}, "", 2, "GRAFANA_TOKEN is not set"),
        ({}, "two words", 2, "the token of Grafana is empty or has blanks in it"),
        ({"role": "Viewer"}, TOKEN, 2, "role Editor (Client Error 403"),
        ({"page": "<html>a message from a router</html>"}, TOKEN, 1, "is no Grafana"),
        ({"page": '{"ok": true}'}, TOKEN, 1, "is no Grafana"),
        ({"path": "/elsewhere"}, TOKEN, 1, "is no Grafana"),
        ({"broken": 500}, TOKEN, 1, "fails: Server Error 500: told to fail"),
        ({"broken": 412}, TOKEN, 1, "keeps another dashboard in this place"),
        ({"broken": 400}, TOKEN, 1, "refuses: Bad Input"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(
    settings: dict[str, object], token: str, code: int, said: str, capsys: Capture
) -> None:
    """Which of URL, token, rights and server it was; the token itself is never printed."""
    with serve_grafana(FakeGrafana(**settings)) as server:  # type: ignore[arg-type]
        root = server.url.removesuffix("/elsewhere")
        got, out, err = push(capsys, root, token=token)
    assert got == code
    assert said in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert "glsa_" not in out + err
    assert server.boards == {}


def test_a_server_that_never_answers_ends_the_push(capsys: Capture) -> None:
    """After --timeout, with the number that was waited."""
    with serve_grafana(FakeGrafana(silent=True)) as server:
        code, _, err = push(capsys, server.url, "--timeout", "0.2")
    assert (code, "did not answer within 0.2 s (--timeout)" in err) == (1, True)


def test_nobody_listens(capsys: Capture) -> None:
    """A refused connection and a name that does not exist are told in the system's words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, _, err = push(capsys, f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert code == 1
    assert "nobody answers at http://127.0.0.1:" in err
    assert "Connection refused" in err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("grafana.example.com", "is no http(s) URL"),
        ("ftp://grafana.example.com", "is no http(s) URL"),
        ("http://grafana.example.com:port", "is no URL"),
        ("http://me:secret@grafana.example.com", "takes no user, password or query"),
    ],
)
def test_an_url_that_cannot_be_one_is_refused_at_once(url: str, said: str, capsys: Capture) -> None:
    """Before anything is sent, and a password in it is not repeated."""
    code, _, err = push(capsys, url)
    assert (code, said in err, "secret" in err) == (2, True, False)


def test_an_export_keeps_what_people_made_their_own(tmp_path: Path, capsys: Capture) -> None:
    """Dashboards and rules are always the newest; an edited prometheus.yml stays, unless --force says otherwise."""
    arguments = ["--env", "staging", "--url", "http://headrace:8000", "dashboards", "export", str(tmp_path)]
    assert run([*arguments, "--discovery", "/x/sd.json"], env={}) == 0
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(Path(line).relative_to(tmp_path)) for line in capsys.readouterr().out.splitlines()} == written
    assert {"grafana/dashboards/serving.json", "prometheus/headrace.rules.yaml"} <= written
    edited, rules = tmp_path / "prometheus/prometheus.yml", tmp_path / "prometheus/headrace.rules.yaml"
    assert "/x/sd.json" in edited.read_text()
    assert "target_label: environment\n    replacement: staging" in edited.read_text()
    assert "http://headrace:8000/admin/alerts" in (tmp_path / "alertmanager/alertmanager.yml").read_text()
    edited.write_text("mine")
    rules.write_text("old")
    assert run([*arguments, "--discovery", "/x/sd.json"], env={}) == 0
    assert f"note: {edited} was edited and is kept" in capsys.readouterr().err
    assert (edited.read_text(), rules.read_text() != "old") == ("mine", True)
    assert run([*arguments, "--force"], env={}) == 0
    assert "/tmp/ray/prom_metrics_service_discovery.json" in edited.read_text()


def test_an_export_into_a_file_is_an_error_of_one_line(tmp_path: Path, capsys: Capture) -> None:
    """The folder's name and the system's reason."""
    (tmp_path / "file").write_text("")
    assert run(["dashboards", "export", str(tmp_path / "file")], env={}) == 2
    assert f"error: {tmp_path / 'file'} cannot be written" in capsys.readouterr().err
