"""Alertmanager's webhook: which alerts roll a release back, and that all others do nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cluster.errors import Conflict, HeadraceError, NotFound, Unavailable
from serve_apps.http import alerts
from serve_apps.http.problems import install_problem_handlers
from serve_apps.testing import api_key, table_of

STARTED = 1_700_000_000.0  # 2023-11-14T22:13:20Z
RELEASE = {"id": "rel-1", "model": "m", "candidate": "1.1.0", "state": "running", "started_at": STARTED}


class Control:
    """A control plane with one release. `gone`: what the roll-back itself answers."""

    def __init__(self, release: Mapping[str, Any] | None, gone: HeadraceError | None = None):
        self._release, self._gone = release, gone
        self.rolled: list[dict[str, Any]] = []

    async def call(self, method: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        if self._release is None or payload["model"] != self._release["model"]:
            raise NotFound("no such release")
        if method == "release_rollback":
            if self._gone is not None:
                raise self._gone
            self.rolled.append(dict(payload))
        return dict(self._release)

    async def watch(self, revision: int, timeout_s: float) -> None: ...

    async def report(self, router_id: str, stats: Mapping[str, Any]) -> None: ...


def alert(**changes: Any) -> dict[str, Any]:
    """As Alertmanager 0.25 sends it."""
    labels = {
        "alertname": "HeadraceCandidateFails",
        "headrace_action": "rollback",
        "model": "m",
        "version": "1.1.0",
        **changes.pop("labels", {}),
    }
    return {
        "status": "firing",
        "labels": {name: value for name, value in labels.items() if value is not None},
        "annotations": {"summary": "m 1.1.0 fails 40% more"},
        "startsAt": "2023-11-14T23:14:20.739266876+01:00",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": "a1",
        **changes,
    }


async def send(control: Control, *sent: Any, key: str = "operate-secret") -> httpx.Response:
    app = FastAPI()
    install_problem_handlers(app)
    table = table_of(keys=[api_key("app", "invoke-secret"), api_key("alertmanager", "operate-secret", "operate")])
    app.state.table = lambda: table
    app.include_router(alerts.build_router(control))
    body = {"version": "4", "status": "firing", "receiver": "headrace", "groupLabels": {}, "alerts": list(sent)}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as client:
        return await client.post("/admin/alerts", json=body, headers={"authorization": f"Bearer {key}"})


async def test_a_firing_alert_rolls_back_the_release_that_it_speaks_of() -> None:
    """That very release, without checks that could stand in the way, and with the alert as the reason."""
    control = Control(RELEASE)
    answer = await send(control, alert())
    assert answer.status_code == 200, answer.text
    (done,) = answer.json()["results"]
    assert (done["done"], done["model"]) == ("rolled_back", "m")
    assert control.rolled == [
        {
            "model": "m",
            "id": "rel-1",
            "reason": "alert HeadraceCandidateFails: m 1.1.0 fails 40% more",
            "force": True,
            "by": "alertmanager",
        }
    ]


@pytest.mark.parametrize(
    ("release", "sent", "why"),
    [
        (RELEASE, alert(status="resolved"), "it is resolved"),
        (RELEASE, alert(labels={"headrace_action": None}), "it has no label headrace_action"),
        (RELEASE, alert(labels={"headrace_action": "retire"}), "no such action: headrace_action=retire"),
        (RELEASE, alert(labels={"model": None}), "it has no label `model`"),
        (RELEASE, alert(labels={"model": "other"}), "no such release"),
        (None, alert(), "no such release"),
        ({**RELEASE, "state": "rolled_back"}, alert(), "m has no release in progress"),
        ({**RELEASE, "state": "promoted"}, alert(), "m has no release in progress"),
        ({**RELEASE, "candidate": "2.0.0"}, alert(), "the release in progress leads to 2.0.0, not to 1.1.0"),
        (RELEASE, alert(startsAt="2023-11-14T22:13:19Z"), "the alert is older than the release rel-1"),
    ],
)
async def test_everything_else_is_left_alone_and_said_why(
    release: Mapping[str, Any] | None, sent: dict[str, Any], why: str
) -> None:
    """Alerts come late, twice and about other things; none of that is an error, or Alertmanager would send it again."""
    control = Control(release)
    answer = await send(control, sent)
    assert answer.status_code == 200, answer.text
    assert [(item["done"], item["why"]) for item in answer.json()["results"]] == [("nothing", why)]
    assert control.rolled == []


async def test_a_rule_without_a_version_means_any_candidate() -> None:
    """People's own rules may watch a model as a whole; a paused release is rolled back like a running one."""
    control = Control({**RELEASE, "state": "paused"})
    assert (await send(control, alert(labels={"version": None}))).json()["results"][0]["done"] == "rolled_back"


async def test_a_release_that_ends_meanwhile_is_no_error() -> None:
    """Between the look and the roll-back an operator, or another alert, may be faster."""
    control = Control(RELEASE, gone=Conflict("the release of m is rel-2 now, not rel-1"))
    (done,) = (await send(control, alert())).json()["results"]
    assert (done["done"], done["why"]) == ("nothing", "the release of m is rel-2 now, not rel-1")


async def test_while_the_control_plane_is_away_alertmanager_shall_come_again() -> None:
    """It repeats what got a 5xx, and nothing else."""
    assert (await send(Control(RELEASE, gone=Unavailable("starting")), alert())).status_code == 503


async def test_only_operators_may_send_alerts() -> None:
    """A key that calls models cannot move traffic; nonsense is a 400."""
    control = Control(RELEASE)
    assert (await send(control, alert(), key="invoke-secret")).status_code == 403
    assert (await send(control, {"labels": {}})).status_code == 400
    assert control.rolled == []
