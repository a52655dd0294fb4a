"""Requests and answers against signatures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.models import Signature, TensorSpec
from cluster.errors import InvalidInput, ModelError
from serve_apps.protocol import InferRequest
from serve_apps.signature import DTYPES, check_inputs, items_of, outputs_of

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
        ({"x": np.zeros((1, 2)), "count": [1]}, "input 'x': expected FP32 [2] per item, got float64 values"),
        ({"x": np.zeros((1, 2), np.int32), "count": [1]}, "got int32 values"),
        ({"x": [[1, 2]], "count": [1], "note": np.zeros(1)}, "one BYTES per item, got float64 in row 0"),
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


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_an_empty_row_has_the_declared_datatype(datatype: str) -> None:
    """A row without elements is no row of floating point numbers."""
    free = Signature(
        inputs={"x": TensorSpec(datatype=datatype, shape=(-1,))},  # type: ignore[arg-type]
        outputs={"y": TensorSpec(datatype="JSON")},
    )
    assert check_inputs(free, {"x": [[]]}, 1)["x"].dtype == np.dtype(DTYPES[datatype])


def test_what_the_router_has_checked_the_host_takes_as_it_is() -> None:
    """Checking twice changes nothing, and the error names the model where a route chose it."""
    inputs = {"x": [[1, 2], [3, 4]], "count": [5, 6], "note": [None, "b"]}
    once = check_inputs(TABULAR, inputs, 2)
    twice = check_inputs(TABULAR, once, 2)
    assert all(twice[name] is once[name] for name in inputs)
    with pytest.raises(InvalidInput, match=r"^model 'm': input 'x'") as caught:
        check_inputs(TABULAR, {**inputs, "x": [[1, 2]]}, 2, model="m")
    assert caught.value.details["param"] == "x"
