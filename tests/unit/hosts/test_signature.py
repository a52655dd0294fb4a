"""Requests against signatures, and signatures of versions against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.models import Signature, TensorSpec
from cluster.errors import InvalidInput, ModelError
from serve_apps.hosts.signature import DTYPES, changes, items_of, outputs_of, semver_problem
from serve_apps.protocol import InferRequest

TABULAR = Signature(
    inputs={
        "x": TensorSpec(datatype="FP32", shape=(2,)),
        "count": TensorSpec(datatype="INT8"),
        "note": TensorSpec(datatype="BYTES", optional=True),
    },
    outputs={"y": TensorSpec(datatype="FP32", shape=(-1,)), "label": TensorSpec(datatype="BYTES")},
)


def request(rows: int = 1, **inputs: Any) -> InferRequest:
    return InferRequest(id="r", inputs=inputs, rows=rows)


def test_a_request_is_cut_into_typed_items() -> None:
    """Each row becomes one item with values of the declared datatypes; absent and null optional inputs are left out."""
    items = items_of(TABULAR, request(rows=2, x=[[1, 2], [3, 4]], count=[5, 6], note=[None, "b"]))
    assert [set(item) for item in items] == [{"x", "count"}, {"x", "count", "note"}]
    assert items[1]["x"].dtype == np.float32
    assert items[1]["x"].tolist() == [3.0, 4.0]
    assert items[1]["count"].dtype == np.int8
    assert items[1]["note"] == "b"


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"count": [1]}, "input 'x' (FP32 [2] per item) is missing; got 'count'"),
        ({"x": [[1, 2]], "cuont": [1]}, "unknown input 'cuont' (did you mean 'count'?)"),
        ({"x": [[1, 2, 3]], "count": [1]}, "input 'x': expected FP32 [2] per item, got shape [3]"),
        ({"x": [1.0], "count": [1]}, "input 'x': expected FP32 [2] per item, got shape []"),
        ({"x": [[1, "a"]], "count": [1]}, "input 'x': expected FP32 [2] per item, got text"),
        ({"x": [[1, 2], [3, 4]], "count": [1]}, "input 'x': expected FP32 [2] per item, got 2 values for 1 rows"),
        ({"x": 3, "count": [1]}, "got int, not a list of 1 values"),
        ({"x": [[1, 2]], "count": [300]}, "input 'count': expected one INT8 per item, got values from 300 to 300"),
        ({"x": [[1, 2]], "count": [1.5]}, "input 'count': expected one INT8 per item, got numbers with a fraction"),
        ({"x": [[1, 2]], "count": [True]}, "input 'count': expected one INT8 per item, got bool values"),
        ({"x": [[1, 2]], "count": [1], "note": [7]}, "input 'note': expected one BYTES per item, got int in row 0"),
        ({"x": [[[1], [2, 3]]], "count": [1]}, "input 'x': expected FP32 [2] per item, got"),
        ({"x": [[1e300, 0]], "count": [1]}, "out of the range of FP32"),
    ],
)
def test_a_wrong_input_is_named_with_what_was_expected_and_what_came(inputs: dict[str, Any], says: str) -> None:
    """A caller's mistake is answered with the input's name, the expected type and shape, and what was sent."""
    with pytest.raises(InvalidInput) as caught:
        items_of(TABULAR, request(**inputs))
    assert says in caught.value.message


def test_a_request_without_rows_is_refused() -> None:
    """Zero rows ask for nothing."""
    with pytest.raises(InvalidInput, match="at least one row"):
        items_of(TABULAR, request(rows=0, x=[], count=[]))


def test_free_dimensions_may_differ_between_rows() -> None:
    """Rows of different lengths are allowed where the signature says -1."""
    free = Signature(
        inputs={"x": TensorSpec(datatype="INT32", shape=(-1,))}, outputs={"y": TensorSpec(datatype="INT32")}
    )
    items = items_of(free, request(rows=2, x=[[1, 2, 3], [4]]))
    assert [item["x"].tolist() for item in items] == [[1, 2, 3], [4]]


@given(
    datatype=st.sampled_from(sorted(DTYPES)),
    rows=st.integers(1, 4),
    width=st.integers(0, 3),
    as_array=st.booleans(),
    data=st.data(),
)
def test_values_survive_the_cut_unchanged(
    datatype: str, rows: int, width: int, as_array: bool, data: st.DataObject
) -> None:
    """Any column of its own datatype, as lists or as an array, comes out as the same values of that datatype."""
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind == "b":
        values: Any = st.booleans()
    elif dtype.kind in "iu":
        values = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    else:
        values = st.floats(width=dtype.itemsize * 8, allow_nan=False)  # type: ignore[arg-type]
    column = data.draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=rows, max_size=rows))
    signature = Signature(
        inputs={"x": TensorSpec(datatype=datatype, shape=(-1,))},  # type: ignore[arg-type]
        outputs={"y": TensorSpec(datatype="JSON")},
    )
    if width == 0 and not as_array:
        return
    sent = np.array(column, dtype=dtype).reshape(rows, width) if as_array else column
    items = items_of(signature, request(rows=rows, x=sent))
    assert [item["x"].dtype for item in items] == [dtype] * rows
    assert [item["x"].tolist() for item in items] == np.array(column, dtype=dtype).reshape(rows, width).tolist()


def test_outputs_are_stacked_by_row() -> None:
    """Numeric outputs of equal shape become one array, of different shape a list of arrays; texts stay lists."""
    answers = [{"y": [1, 2], "label": "a"}, {"y": [3, 4], "label": "b"}]
    columns = outputs_of(TABULAR, answers)
    assert columns["y"].shape == (2, 2)
    assert columns["y"].dtype == np.float32
    assert columns["label"] == ["a", "b"]
    ragged = outputs_of(TABULAR, [{"y": [1], "label": "a"}, {"y": [3, 4], "label": "b"}])
    assert [value.tolist() for value in ragged["y"]] == [[1.0], [3.0, 4.0]]


def test_a_model_that_breaks_its_own_signature_is_named() -> None:
    """A missing or misshapen output is the model's error and says which output."""
    with pytest.raises(ModelError, match="without output 'label'"):
        outputs_of(TABULAR, [{"y": [1]}])
    with pytest.raises(ModelError, match="output 'y' should be FP32"):
        outputs_of(TABULAR, [{"y": [[1]], "label": "a"}])


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
        "input 'z' is new (one FP32 per item)": True,
        "output 'more' is new (one FP32 per item)": False,
    }
    assert [c.breaking for c in changes(optional, base)] == [True, True]
    assert changes(base, base) == []


def test_a_change_of_signature_needs_a_new_major_version() -> None:
    """Within one major version the signature stays; the message says which version would do."""
    base = Signature(inputs={"x": spec()}, outputs={"y": spec()})
    other = Signature(inputs={"x": spec("INT32")}, outputs={"y": spec()})
    problem = semver_problem("1.2.0", base, "1.3.0", other)
    assert problem is not None
    assert "FP32 became INT32" in problem
    assert problem.endswith("2.0.0")
    assert semver_problem("1.2.0", base, "2.0.0", other) is None
    assert semver_problem("1.2.0", base, "1.3.0", base) is None
