"""What the routing table says of a model's breakers, as the engine must know it."""

from __future__ import annotations

from types import SimpleNamespace as Shape

from pipelines.run_store.model_breakers import breaker_states, with_deployed
from pipelines.spec.check import Known


def model(*versions: str, fallback: tuple[str, ...] = ()) -> Shape:
    states = {
        str(n): Shape(ejected=state == "open", half_open=state == "half_open") for n, state in enumerate(versions)
    }
    return Shape(versions=states, config=Shape(fallback=fallback))


def test_a_model_is_open_only_when_nothing_of_it_can_answer() -> None:
    """One healthy version, a fallback, or no version at all: steps are sent and the router decides."""
    models = {
        "open": model("open", "open"),
        "one_left": model("open", "closed"),
        "trying": model("open", "half_open"),
        "elsewhere": model("open", fallback=("other",)),
        "fine": model("closed"),
        "empty": model(),
    }
    assert breaker_states(models) == {"open": "open", "trying": "half_open"}


def test_workflows_may_refer_to_what_was_deployed_after_the_store_started() -> None:
    """Models and routes of the table are known beside those of the configuration, with their newest signature."""
    versions = {"2.0.0": Shape(signature="old"), "10.0.0": Shape(signature="new")}
    models = {"shout": Shape(versions=versions, config=Shape(fallback=())), "starting": model()}

    found = with_deployed(
        Known(models=frozenset({"embedding"}), queues=frozenset({"q"})), models, {"support": object()}
    )

    assert found.models == {"embedding", "shout", "starting", "support"}
    assert found.signatures == {"shout": "new"}
    assert found.queues == {"q"}
    assert with_deployed(Known(), models, ()) == Known()
