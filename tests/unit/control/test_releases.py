"""Releases through the service: figures in, weights out; what operators can do; what a crash does not change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.errors import Conflict, InvalidInput, NotFound
from serve_apps.control.service import ControlPlane
from serve_apps.protocol import InferRequest, InferResult
from serve_apps.stats import Answer, RouterReport, VersionStats

from .conftest import World, config, settle, version

QUICK = {"steps": [10, 50], "step_duration": 60, "analysis": {"min_samples": 50, "error_rate": 0.05}}


def echo(**changes: Any) -> dict[str, Any]:
    return {
        "echo": {
            "versions": {"1.0.0": version(), "1.1.0": version(seed=1, **changes)},
            "traffic": {"1.0.0": 100},
            "release": QUICK,
        }
    }


class Routers:
    """One router's reports."""

    def __init__(self, plane: ControlPlane, name: str = "r1"):
        self._plane, self._name, self._seq = plane, name, 0

    async def say(
        self,
        *,
        stable: tuple[int, int] = (0, 0),
        candidate: tuple[int, int] = (0, 0),
        stable_ms: float = 10.0,
        candidate_ms: float = 10.0,
        answers: tuple[Answer, ...] = (),
    ) -> None:
        self._seq += 1
        rows = []
        for name, (requests, errors), latency in (
            ("1.0.0", stable, stable_ms),
            ("1.1.0", candidate, candidate_ms),
        ):
            if requests:
                rows.append(
                    VersionStats(
                        model="echo",
                        version=name,
                        revision=self._plane.table().revision,
                        requests=requests,
                        errors=errors,
                        trailing_failures=min(errors, 1),
                        latencies_ms=[latency] * (requests - errors),
                    )
                )
        report = RouterReport(seq=self._seq, versions=tuple(rows), answers=answers)
        # Over the wire, as in production.
        await self._plane.report(self._name, json.loads(json.dumps(report.to_wire())))


async def start(plane: ControlPlane, models: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    await plane.call("deploy", {"config": config(models or echo())})
    await settle(plane)
    return await plane.call("release_start", {"model": "echo", "candidate": "1.1.0", "by": "ann", **changes})


async def minutes(world: World, plane: ControlPlane, number: int, routers: Routers, **report: Any) -> None:
    """Let time pass in beats of ten seconds, with the same report in each."""
    for _ in range(number * 6):
        world.clock.advance(10)
        await routers.say(**report)
        await plane.beat()


async def status(plane: ControlPlane) -> dict[str, Any]:
    return await plane.call("release_status", {"model": "echo"})


async def test_a_good_candidate_gets_everything_step_by_step(world: World, plane: ControlPlane) -> None:
    """Equal figures advance the release, then promote it; the old version stays loaded without traffic."""
    started = await start(plane)
    assert plane.table().models["echo"].weights == {"1.0.0": 90.0, "1.1.0": 10.0}
    assert plane.table().models["echo"].experiment == started["id"]
    routers = Routers(plane)
    await minutes(world, plane, 1, routers, stable=(90, 0), candidate=(10, 0))
    assert plane.table().models["echo"].weights == {"1.0.0": 50.0, "1.1.0": 50.0}
    await minutes(world, plane, 4, routers, stable=(50, 0), candidate=(50, 0))
    end = await status(plane)
    assert (end["state"], end["percent"]) == ("promoted", 100)
    assert [line["move"] for line in end["history"]] == ["start", "advance", "promote"]
    assert end["history"][-1]["figures"]["metrics"], "the history says which figures decided"
    entry = plane.table().models["echo"]
    assert entry.weights == {"1.0.0": 0.0, "1.1.0": 100.0}
    assert entry.versions["1.0.0"].ready
    assert world.deployer.deleted == []


@pytest.mark.parametrize(
    ("report", "metric"),
    [
        ({"stable": (90, 1), "candidate": (10, 2)}, "error_rate"),
        ({"stable": (90, 0), "candidate": (10, 0), "candidate_ms": 40.0}, "latency_p95"),
    ],
)
async def test_a_worse_candidate_loses_its_traffic(
    world: World, plane: ControlPlane, report: dict[str, Any], metric: str
) -> None:
    """More errors or higher latency roll back, by weights alone."""
    models = echo()
    models["echo"]["breaker"] = {"enabled": False}
    await start(plane, models, guard={"error_rate": 0.9})
    await minutes(world, plane, 5, Routers(plane), **report)
    end = await status(plane)
    assert (end["state"], end["percent"]) == ("rolled_back", 0)
    assert metric in end["history"][-1]["why"]
    assert plane.table().models["echo"].weights == {"1.0.0": 100.0, "1.1.0": 0.0}
    assert world.deployer.deployed == ["echo-1.0.0", "echo-1.1.0"], "nothing was loaded again"


async def test_worse_feedback_loses_the_traffic(world: World, plane: ControlPlane) -> None:
    """Feedback by request id finds its version and rolls back when the candidate is liked less."""
    models = echo()
    models["echo"]["release"] = {**QUICK, "steps": [50], "analysis": {**QUICK["analysis"], "feedback": 0.1}}
    await start(plane, models)
    routers = Routers(plane)
    for number in range(300):
        answers = tuple(Answer(id=f"{name}-{number}", model="echo", version=name) for name in ("1.0.0", "1.1.0"))
        await routers.say(stable=(1, 0), candidate=(1, 0), answers=answers)
        good = await plane.call("feedback", {"request_id": f"1.0.0-{number}", "score": 1})
        assert good == {"recorded": True, "model": "echo", "version": "1.0.0"}
        await plane.call("feedback", {"request_id": f"1.1.0-{number}", "score": 0 if number % 2 else 1})
        world.clock.advance(1)
        await plane.beat()
        if (await status(plane))["state"] != "running":
            break
    end = await status(plane)
    assert end["state"] == "rolled_back"
    assert "feedback" in end["history"][-1]["why"]
    assert (await plane.call("feedback", {"request_id": "1.0.0-0", "score": 0}))["recorded"] is False


async def test_a_guard_rail_acts_at_the_next_beat(world: World, plane: ControlPlane) -> None:
    """A candidate that answers nothing but errors is gone within one beat, long before min_samples."""
    models = echo()
    models["echo"]["breaker"] = {"enabled": False}
    await start(plane, models)
    world.clock.advance(1)
    await Routers(plane).say(stable=(40, 0), candidate=(5, 5))
    await plane.beat()
    end = await status(plane)
    assert end["state"] == "rolled_back"
    assert end["history"][-1]["figures"]["reason"] == "guard"


async def test_a_failure_of_both_versions_is_not_the_candidates_fault(world: World, plane: ControlPlane) -> None:
    """When the stable version fails as well, the release holds and says so."""
    models = echo()
    models["echo"]["breaker"] = {"enabled": False}
    await start(plane, models)
    world.clock.advance(1)
    await Routers(plane).say(stable=(40, 40), candidate=(5, 5))
    await plane.beat()
    seen = await status(plane)
    assert (seen["state"], seen["decision"]["reason"]) == ("running", "shared_failure")


async def test_an_open_breaker_rolls_back(world: World, plane: ControlPlane) -> None:
    """The candidate's breaker opens: its release is over."""
    await start(plane)
    world.clock.advance(1)
    for _ in range(6):
        report = RouterReport(
            seq=world.ids.n + 100,
            versions=[
                VersionStats(
                    model="echo",
                    version="1.1.0",
                    revision=plane.table().revision,
                    requests=5,
                    errors=5,
                    trailing_failures=5,
                )
            ],
        )
        await plane.report("rX", report.to_wire())
        break
    assert plane.table().models["echo"].versions["1.1.0"].ejected
    await plane.beat()
    end = await status(plane)
    assert end["state"] == "rolled_back"
    assert "circuit breaker" in end["history"][-1]["why"]


async def failing(plane: ControlPlane, version: str) -> None:
    """Five failures in a row of one version, from a router of its own."""
    row = VersionStats(
        model="echo", version=version, revision=plane.table().revision, requests=5, errors=5, trailing_failures=5
    )
    await plane.report(f"router of {version}", RouterReport(seq=1, versions=(row,)).to_wire())


async def test_a_candidate_with_an_open_breaker_is_not_released(world: World, plane: ControlPlane) -> None:
    """A release to a version that no request can reach is refused, even by force, until its breaker is half-open."""
    await plane.call("deploy", {"config": config(echo())})
    await settle(plane)
    await failing(plane, "1.1.0")
    for force in (False, True):
        with pytest.raises(Conflict, match="circuit breaker is open for 30 s more"):
            await plane.call("release_start", {"model": "echo", "candidate": "1.1.0", "force": force})
    with pytest.raises(Conflict, match="circuit breaker is open"):
        await plane.call("traffic", {"model": "echo", "weights": {"1.1.0": 100}})
    world.clock.advance(31)
    await plane.beat()
    started = await plane.call("release_start", {"model": "echo", "candidate": "1.1.0"})
    assert started["state"] == "running"


async def test_nobody_is_sent_back_to_a_version_that_cannot_answer(world: World, plane: ControlPlane) -> None:
    """Rolling back by hand to a stable version with an open breaker needs force."""
    await start(plane)
    await failing(plane, "1.0.0")
    with pytest.raises(Conflict, match=r"1\.0\.0: its circuit breaker is open"):
        await plane.call("release_rollback", {"model": "echo"})
    end = await plane.call("release_rollback", {"model": "echo", "force": True, "reason": "both are bad"})
    assert end["state"] == "rolled_back"


async def test_a_plan_says_what_would_begin_and_begins_nothing(world: World, plane: ControlPlane) -> None:
    """`release_plan` shows the merged plan and what the checks say; there is no release afterwards."""
    golden = [{"inputs": {"text": "hi"}, "expect": {"text": "ho"}}]
    await plane.call("deploy", {"config": config(echo(golden=golden))})
    await settle(plane)
    revision = plane.table().revision
    seen = await plane.call(
        "release_plan",
        {
            "model": "echo",
            "candidate": "1.1.0",
            "steps": [30],
            "analysis": {"feedback": 0.1},
            "guard": {"latency_p95_ms": 500},
        },
    )
    assert (seen["state"], seen["stable"], seen["percent"]) == ("planned", "1.0.0", 30)
    assert (seen["analysis"]["feedback"], seen["analysis"]["error_rate"]) == (0.1, 0.05)
    assert seen["guard"] == {"error_rate": 0.2, "latency_p95_ms": 500}
    assert len(seen["problems"]) == 1
    assert "not 'ho'" in seen["problems"][0]
    assert plane.table().revision == revision
    with pytest.raises(NotFound):
        await plane.call("release_status", {"model": "echo"})


async def test_a_guard_rail_is_taken_away_by_name_only(world: World, plane: ControlPlane) -> None:
    """Naming one guard rail leaves the others as configured; null takes one away."""
    started = await start(plane, guard={"error_rate": None, "feedback": 0.5})
    assert started["guard"] == {"feedback": 0.5}


async def test_every_release_can_be_shown_by_its_id(world: World, plane: ControlPlane) -> None:
    """A release that ended is found by its id; an unknown id is a clear error."""
    started = await start(plane)
    await plane.call("release_rollback", {"model": "echo"})
    await plane.call("release_start", {"model": "echo", "candidate": "1.1.0"})
    assert (await plane.call("release_show", {"id": started["id"]}))["state"] == "rolled_back"
    with pytest.raises(NotFound, match="release history"):
        await plane.call("release_show", {"id": "rel-x"})


async def test_with_one_request_a_minute_it_holds_and_says_why(world: World, plane: ControlPlane) -> None:
    """Too little traffic neither promotes nor rolls back, for hours."""
    await start(plane)
    routers = Routers(plane)
    for minute in range(180):
        world.clock.advance(60)
        await routers.say(stable=(0 if minute % 10 == 0 else 1, 0), candidate=(1 if minute % 10 == 0 else 0, 0))
        await plane.beat()
    seen = await status(plane)
    assert (seen["state"], seen["step"]) == ("running", 0)
    assert seen["decision"]["reason"] == "insufficient_data"
    assert "18 of 50 answers of the candidate" in seen["decision"]["why"]


async def test_a_release_survives_its_owner(world: World, plane: ControlPlane) -> None:
    """A new owner over the same log has the same release with the same counts, and ends it."""
    await start(plane)
    routers = Routers(plane)
    await minutes(world, plane, 1, routers, stable=(90, 0), candidate=(10, 0))
    before = await status(plane)
    second = world.owner()
    after = await second.call("release_status", {"model": "echo"})
    assert {k: v for k, v in after.items() if k != "decision"} == {k: v for k, v in before.items() if k != "decision"}
    assert second.table() == plane.table()
    routers = Routers(second, "r2")
    await minutes(world, second, 6, routers, stable=(90, 0), candidate=(60, 0))
    end = await second.call("release_status", {"model": "echo"})
    assert (end["id"], end["state"]) == (before["id"], "promoted")
    await second.close()


async def test_golden_requests_run_before_traffic_moves(world: World, plane: ControlPlane) -> None:
    """A candidate whose golden answers are wrong gets no traffic at all; later, it loses what it has."""
    golden = [{"inputs": {"text": "2+2"}, "expect": {"text": {"contains": "4"}}}]
    with pytest.raises(Conflict, match="golden"):
        await start(plane, echo(golden=golden))
    assert plane.table().models["echo"].weights == {"1.0.0": 100.0, "1.1.0": 0.0}

    def right(app: str, request: InferRequest) -> InferResult:
        return InferResult(outputs={"text": ["4"]})

    world.deployer.answer = right
    await plane.call("release_start", {"model": "echo", "candidate": "1.1.0"})
    world.deployer.answer = lambda app, request: InferResult(outputs={"text": ["5"]})
    await minutes(world, plane, 2, Routers(plane), stable=(90, 0), candidate=(10, 0))
    end = await status(plane)
    assert end["state"] == "rolled_back"
    assert "failed its check" in end["history"][-1]["why"]


async def test_a_candidate_with_another_interface_gets_no_callers(plane: ControlPlane) -> None:
    """Traffic does not move to a major version that callers of the stable one cannot call."""
    old = {"inputs": {"a": {"datatype": "FP32"}}, "outputs": {"b": {"datatype": "FP32"}}}
    new = {"inputs": {"x": {"datatype": "FP32"}}, "outputs": {"b": {"datatype": "FP32"}}}
    versions = {"1.0.0": version(signature=old), "2.0.0": version(signature=new)}
    await plane.call("deploy", {"config": config({"m": {"versions": versions, "traffic": {"1.0.0": 100}}})})
    await settle(plane)
    with pytest.raises(Conflict, match="input 'a' is gone"):
        await plane.call("release_start", {"model": "m", "candidate": "2.0.0"})
    with pytest.raises(Conflict, match="input 'a' is gone"):
        await plane.call("traffic", {"model": "m", "weights": {"2.0.0": 100}})


async def test_operators_pause_resume_promote_and_roll_back(world: World, plane: ControlPlane) -> None:
    """A pause stops the clock of the step; moves by hand are recorded with who made them."""
    await start(plane)
    routers = Routers(plane)
    world.clock.advance(30)
    await plane.call("release_pause", {"model": "echo", "by": "bob", "reason": "lunch"})
    await minutes(world, plane, 10, routers, stable=(90, 0), candidate=(10, 0))
    assert (await status(plane))["step"] == 0
    with pytest.raises(Conflict, match="is paused"):
        await plane.call("release_pause", {"model": "echo"})
    await plane.call("release_resume", {"model": "echo"})
    await plane.beat()
    assert (await status(plane))["step"] == 0, "30 of 60 seconds were left"
    ended = await plane.call("release_promote", {"model": "echo", "by": "bob"})
    assert ended["state"] == "promoted"
    assert ended["history"][-1]["by"] == "bob"
    with pytest.raises(NotFound, match="no release in progress"):
        await plane.call("release_rollback", {"model": "echo"})
    back = await plane.call("release_start", {"model": "echo", "candidate": "1.0.0"})
    assert (back["stable"], back["candidate"]) == ("1.1.0", "1.0.0")
    assert (await plane.call("release_rollback", {"model": "echo"}))["state"] == "rolled_back"
    assert plane.table().models["echo"].weights == {"1.0.0": 0.0, "1.1.0": 100.0}
    assert len((await plane.call("release_history", {"model": "echo"}))["releases"]) == 2


async def test_a_guard_rail_acts_in_a_pause_too(world: World, plane: ControlPlane) -> None:
    """Pausing stops progress, not protection."""
    models = echo()
    models["echo"]["breaker"] = {"enabled": False}
    await start(plane, models)
    await plane.call("release_pause", {"model": "echo"})
    await Routers(plane).say(candidate=(10, 10))
    await plane.beat()
    assert (await status(plane))["state"] == "rolled_back"


async def test_what_cannot_be_released_is_refused(plane: ControlPlane) -> None:
    """Unknown versions, the version that has all traffic, a second release, and bad plans are clear errors."""
    await start(plane)
    for payload, error, words in (
        ({"candidate": "1.1.0"}, Conflict, "in progress"),
        ({"candidate": "1.1.0", "steps": [50, 10]}, InvalidInput, "steps must grow"),
        ({"candidate": "1.1.0", "guard": {"cost": 1}}, InvalidInput, "no guard cost"),
        ({"candidate": "1.1.0", "analysis": {"error": 1}}, InvalidInput, "no analysis error: error_rate"),
    ):
        with pytest.raises(error, match=words):
            await plane.call("release_start", {"model": "echo", **payload})
    with pytest.raises(Conflict, match="belong to the release"):
        await plane.call("traffic", {"model": "echo", "weights": {"1.0.0": 100}})
    with pytest.raises(Conflict, match="takes part in the release"):
        await plane.call("retire", {"model": "echo", "version": "1.1.0", "force": True})
    with pytest.raises(Conflict, match="takes part in the release"):
        await plane.call("deploy", {"config": config(echo(precision="fp16"))})
    await plane.call("release_rollback", {"model": "echo"})
    with pytest.raises(NotFound, match="deploy it first"):
        await plane.call("release_start", {"model": "echo", "candidate": "7.0.0"})
    with pytest.raises(Conflict, match="all the traffic already"):
        await plane.call("release_start", {"model": "echo", "candidate": "1.0.0"})


async def test_a_promotion_is_recorded_where_prod_can_read_it(world: World, plane: ControlPlane) -> None:
    """After a promotion the bucket holds the evidence, which prod's rules accept for the same content only."""
    from cluster.promotions import read_promotions

    await plane.call("deploy", {"config": config(echo(), environment="staging")})
    await settle(plane)
    await plane.call("release_start", {"model": "echo", "candidate": "1.1.0"})
    await plane.call("release_promote", {"model": "echo"})
    with pytest.raises(InvalidInput, match="reason"):
        await plane.call("promotion_record", {"model": "echo", "version": "1.0.0"})
    await plane.call("promotion_record", {"model": "echo", "version": "1.0.0", "reason": "first", "by": "ann"})
    promoted = {f"{m} {v}": fingerprint for (m, v), fingerprint in (await read_promotions(world.bucket)).items()}
    assert set(promoted) == {"echo 1.0.0", "echo 1.1.0"}
    prod = World().owner()
    payload = {"config": config(echo(), environment="prod"), "evidence": {"promoted": promoted}}
    names = [rule["name"] for rule in (await prod.call("plan", payload))["rules"]]
    assert not [name for name in names if name.startswith("unpromoted")]
    payload["config"] = config(echo(precision="bf16"), environment="prod")
    names = [rule["name"] for rule in (await prod.call("plan", payload))["rules"]]
    assert "unpromoted:echo-1.1.0" in names
    await prod.close()


async def test_all_at_once_promotes_after_its_watch(world: World, plane: ControlPlane) -> None:
    """all_at_once moves everything, watches the guard rails for one step, and promotes."""
    await start(plane, strategy="all_at_once")
    assert plane.table().models["echo"].weights == {"1.0.0": 0.0, "1.1.0": 100.0}
    await minutes(world, plane, 2, Routers(plane), candidate=(50, 0))
    assert (await status(plane))["state"] == "promoted"


async def test_a_report_that_comes_twice_counts_once(world: World, plane: ControlPlane) -> None:
    """Sequence numbers make reports idempotent."""
    await start(plane)
    row = VersionStats(
        model="echo", version="1.1.0", revision=plane.table().revision, requests=10, latencies_ms=[1.0] * 10
    )
    report = RouterReport(seq=1, versions=[row]).to_wire()
    for _ in range(3):
        await plane.report("r", report)
    await plane.beat()
    assert (await status(plane))["samples"]["candidate"]["requests"] == 10


async def test_answers_to_requests_from_before_a_release_are_no_figures_of_it(
    world: World, plane: ControlPlane
) -> None:
    """A request that hung in an earlier release, or in the candidate's predecessor, and fails now is not held against
    this release; those sent under its own tables count."""
    models = echo()
    models["echo"]["breaker"] = {"enabled": False}
    await start(plane, models)
    sent_before = plane.table().revision
    await plane.call("release_rollback", {"model": "echo"})
    await plane.call("release_start", {"model": "echo", "candidate": "1.1.0"})
    sent_in_step_0 = plane.table().revision
    await plane.report("r", bad_answers(1, revision=sent_before))
    await plane.beat()
    seen = await status(plane)
    assert (seen["state"], seen["samples"]["candidate"]["requests"]) == ("running", 0)
    await plane.call("deploy", {"config": config({"other": {"versions": {"1.0.0": version()}}})})
    await settle(plane)
    assert plane.table().revision > sent_in_step_0
    await plane.report("r", bad_answers(2, revision=sent_in_step_0))
    await plane.beat()
    end = await status(plane)
    assert (end["state"], end["samples"]["candidate"]["requests"]) == ("rolled_back", 100)


def bad_answers(seq: int, *, revision: int) -> dict[str, Any]:
    row = VersionStats(model="echo", version="1.1.0", revision=revision, requests=100, errors=60, trailing_failures=1)
    return RouterReport(seq=seq, versions=[row]).to_wire()


async def test_feedback_of_an_unknown_answer_says_what_to_do(world: World) -> None:
    """An id that nobody knows is refused with a hint; model and version may be given instead."""
    plane = world.owner()
    plane._feedback._wait_s = 0.01
    await plane.call("deploy", {"config": config(echo())})
    await settle(plane)
    with pytest.raises(NotFound, match="x-headrace-version"):
        await plane.call("feedback", {"request_id": "nobody", "score": 1})
    given = {"request_id": "nobody", "score": 0.5, "model": "echo", "version": "1.0.0"}
    assert (await plane.call("feedback", given))["recorded"]
    with pytest.raises(InvalidInput, match="0 \\(wrong\\) to 1"):
        await plane.call("feedback", {**given, "score": 7})
    await plane.close()


async def test_feedback_comes_from_who_got_the_answer(world: World) -> None:
    """A key that may only invoke scores its own answers: another's is as unknown as one that never was, in the words
    and in the time, whoever sends its id again, and a version's name alone is nothing. Operators score any.
    """
    plane = world.owner()
    plane._feedback._wait_s = 0.01
    await plane.call("deploy", {"config": config(echo())})
    await settle(plane)
    theirs = [Answer(id=name, model="echo", version="1.0.0", caller="theirs") for name in ("a", "b", "old")]
    await plane.report("r", RouterReport(seq=1, answers=theirs).to_wire())
    again = [Answer(id="a", model="echo", version="1.1.0", caller="ours")]
    await plane.report("q", RouterReport(seq=1, answers=again).to_wire())
    said = []
    for name in ("a", "nobody"):
        for named in ({}, {"model": "echo", "version": "1.1.0"}):
            with pytest.raises(NotFound) as refused:
                await plane.call("feedback", {"request_id": name, "score": 0, "only_of": "ours", **named})
            said.append(refused.value.message.replace(repr(name), "ID"))
    assert len(set(said)) == 1
    assert "API key 'ours'" in said[0]
    with pytest.raises(InvalidInput, match=r"version of the answer 'a' is 1\.0\.0, not 1\.1\.0"):
        await plane.call("feedback", {"request_id": "a", "score": 0, "only_of": "theirs", "version": "1.1.0"})
    given = await plane.call("feedback", {"request_id": "a", "score": 0, "only_of": "theirs"})
    assert given == {"recorded": True, "model": "echo", "version": "1.0.0"}
    assert (await plane.call("feedback", {"request_id": "b", "score": 0}))["recorded"]
    await plane.close()


async def test_a_roll_back_may_name_the_release_it_means(plane: ControlPlane) -> None:
    """Who decided by the figures of one release must not end the next one."""
    first = await start(plane)
    await plane.call("release_rollback", {"model": "echo", "id": first["id"]})
    second = await plane.call("release_start", {"model": "echo", "candidate": "1.1.0"})
    with pytest.raises(Conflict, match=f"is {second['id']} now, not {first['id']}"):
        await plane.call("release_rollback", {"model": "echo", "id": first["id"]})
    assert (await status(plane))["state"] == "running"
