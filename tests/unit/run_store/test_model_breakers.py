"""What the routing table says of a model's breakers, as the engine must know it."""

from __future__ import annotations

from types import SimpleNamespace as Shape

from pipelines.run_store.model_breakers import breaker_states


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
