"""How signatures of two versions differ, and which version number that asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.models import Signature, TensorSpec
from cluster.signature import breaking, changes, version_problem


def spec(datatype: str = "FP32", shape: tuple[int, ...] = (), optional: bool = False) -> TensorSpec:
    return TensorSpec(datatype=datatype, shape=shape, optional=optional)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "breaking"),
    [
        (spec(), None, True),
        (spec(), spec("INT32"), True),
        (spec(shape=(3,)), spec(shape=(-1,)), False),
        (spec(shape=(-1,)), spec(shape=(3,)), True),
        (spec(shape=(3,)), spec(shape=(3, 3)), True),
        (spec(), spec(optional=True), False),
        (spec(optional=True), spec(), True),
    ],
)
def test_which_changes_of_an_input_break_callers(old: TensorSpec, new: TensorSpec | None, breaking: bool) -> None:
    """An input may take more than before; anything else breaks callers."""
    outputs = {"y": spec()}
    before = Signature(inputs={"x": old}, outputs=outputs)
    after = Signature(inputs={"x": new} if new is not None else {}, outputs=outputs)
    assert [change.breaking for change in changes(before, after)] == [breaking]


def test_new_inputs_break_only_when_required_and_outputs_may_narrow() -> None:
    """Callers do not know a new required input; an output may promise more than before, never less."""
    base = Signature(inputs={"x": spec()}, outputs={"y": spec(shape=(-1,))})
    optional = Signature(inputs={"x": spec(), "z": spec(optional=True)}, outputs={"y": spec(shape=(4,))})
    required = Signature(inputs={"x": spec(), "z": spec()}, outputs={"y": spec(shape=(-1,)), "more": spec()})
    assert [c.breaking for c in changes(base, optional)] == [False, False]
    assert {c.text: c.breaking for c in changes(base, required)} == {
        "input 'z' is new and required (one FP32 per item)": True,
        "output 'more' is new (one FP32 per item)": False,
    }
    assert [c.breaking for c in changes(optional, base)] == [True, True]
    assert changes(base, base) == []


BASE = Signature(
    inputs={"a": TensorSpec(datatype="FP32", shape=(3,)), "b": TensorSpec(datatype="BYTES", optional=True)},
    outputs={"y": TensorSpec(datatype="FP32")},
)


def changed(**parts: dict[str, TensorSpec]) -> Signature:
    return Signature(
        inputs={**BASE.inputs, **parts.get("inputs", {})}, outputs=parts.get("outputs", dict(BASE.outputs))
    )


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (BASE, None),
        (None, None),
        (changed(inputs={"c": TensorSpec(datatype="FP32", optional=True)}), None),
        (changed(inputs={"a": TensorSpec(datatype="FP32", shape=(-1,))}), None),
        (changed(inputs={"a": TensorSpec(datatype="FP32", shape=(3,), optional=True)}), None),
        (changed(outputs={**BASE.outputs, "z": TensorSpec(datatype="JSON")}), None),
        (changed(inputs={"c": TensorSpec(datatype="FP32")}), "input 'c' is new and required"),
        (changed(inputs={"b": TensorSpec(datatype="BYTES")}), "was optional and is required now"),
        (changed(inputs={"a": TensorSpec(datatype="INT32", shape=(3,))}), "was FP32 and is INT32 now"),
        (changed(inputs={"a": TensorSpec(datatype="FP32", shape=(4,))}), "had shape [3] and has [4] now"),
        (changed(outputs={}), "output 'y' is gone"),
        (changed(outputs={"y": TensorSpec(datatype="FP32", shape=(2,))}), "output 'y' had shape"),
        (changed(outputs={"y": TensorSpec(datatype="FP32", optional=True)}), "was always there and is optional now"),
        (changed(outputs={"y": TensorSpec(datatype="FP64")}), "output 'y' was FP32 and is FP64 now"),
    ],
)
def test_what_may_differ_between_versions(target: Signature | None, words: str | None) -> None:
    """A target may take more and promise more, never less."""
    found = breaking(BASE, target)
    assert (found == []) if words is None else (words in "; ".join(found))
    problem = version_problem("1.2.0", BASE, "1.3.0", target)
    assert (problem is None) if words is None else (problem is not None and words in problem.text)


def test_a_breaking_change_needs_a_new_major_version() -> None:
    """Callers of a version may go to any later one of the same major; the problem says which number would do."""
    other = changed(inputs={"a": TensorSpec(datatype="INT32", shape=(3,))})
    problem = version_problem("1.2.0", BASE, "1.3.0", other)
    assert problem is not None
    assert problem.text == (
        "the signature of 1.3.0 differs from that of 1.2.0 (input 'a' was FP32 and is INT32 now): "
        "that needs a new major version"
    )
    assert problem.wanted == "2.0.0"
    assert version_problem("1.2.0", BASE, "2.0.0", other) is None


def test_growth_needs_a_new_minor_version() -> None:
    """A new optional input or a new output is another interface: a patch may not bring it."""
    grown = changed(inputs={"c": TensorSpec(datatype="FP32", optional=True)})
    problem = version_problem("1.2.0", BASE, "1.2.1", grown)
    assert problem is not None
    assert "new minor version" in problem.text
    assert problem.wanted == "1.3.0"
    assert version_problem("1.2.0", BASE, "1.3.0", grown) is None
    # Whoever takes it back within the major breaks callers of the version between.
    back = version_problem("1.3.0", grown, "1.4.0", BASE)
    assert back is not None
    assert back.wanted == "2.0.0"


def test_the_order_of_the_versions_is_their_own() -> None:
    """A version that is added between others is judged as the older one where it is older; 1.10 follows 1.9."""
    grown = changed(inputs={"c": TensorSpec(datatype="FP32", optional=True)})
    assert version_problem("1.10.0", grown, "1.9.0", BASE) is None
    assert version_problem("1.9.0", grown, "1.10.0", BASE) is not None


SPECS = st.builds(
    TensorSpec,
    datatype=st.sampled_from(["FP32", "INT64", "BYTES", "JSON"]),
    shape=st.lists(st.sampled_from([-1, 2, 3]), max_size=2).map(tuple),
    optional=st.booleans(),
)
SIGNATURES = st.builds(
    Signature,
    inputs=st.dictionaries(st.sampled_from("abc"), SPECS, max_size=3),
    outputs=st.dictionaries(st.sampled_from("xyz"), SPECS, max_size=3),
)


@given(SIGNATURES, SIGNATURES, SIGNATURES)
def test_what_breaks_nobody_can_be_repeated(one: Signature, two: Signature, three: Signature) -> None:
    """Steps that break no caller add up to one that breaks no caller; no change is no problem in any numbering."""
    assert changes(one, one) == []
    if not breaking(one, two) and not breaking(two, three):
        # An optional input that goes and comes back with another type would be two breaking steps.
        assert breaking(one, three) == []
    if not breaking(one, two) and not breaking(two, one):
        assert changes(one, two) == []
