"""Values to tensors and back, judged by the server's own reader and writer of the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.models import Signature, TensorSpec
from cluster.errors import InvalidInput
from headrace.tensors import decode_answer, encode_request
from serve_apps.http.oip_decode import Decoded, decode
from serve_apps.http.oip_encode import encode


def sent(items: list[dict[str, Any]], signature: Signature | None = None) -> Decoded:
    body, headers = encode_request(items)
    length = headers.get("inference-header-content-length")
    return decode(body, header_length=int(length) if length else None, signature=signature)


def test_text_goes_as_bytes_rows() -> None:
    """One text per item becomes one BYTES tensor with a row per item."""
    request = sent([{"text": "häuser"}, {"text": "退款"}])
    assert request.rows == 2
    assert [v.decode() if isinstance(v, bytes) else v for v in request.inputs["text"]] == ["häuser", "退款"]


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_any_bytes_reach_the_server_unchanged(values: list[bytes]) -> None:
    """Bytes travel in the binary extension, whatever is in them, and without growing."""
    request = sent([{"image": value} for value in values])
    assert list(request.inputs["image"]) == values


def test_numbers_lists_and_arrays_keep_shape_and_type() -> None:
    """Numbers, nested lists and numpy arrays arrive with a leading dimension of rows."""
    request = sent([{"a": 1.5, "b": [[1, 2], [3, 4]], "c": np.ones(3, np.float16)}] * 2)
    assert np.asarray(request.inputs["a"]).dtype == np.float32
    assert np.asarray(request.inputs["b"]).tolist() == [[[1, 2], [3, 4]]] * 2
    assert np.asarray(request.inputs["c"]).shape == (2, 3)
    assert np.asarray(request.inputs["c"]).dtype == np.float16


def test_json_inputs_are_read_as_json_by_the_server() -> None:
    """A mapping or a list of mappings for a JSON input arrives as that value."""
    signature = Signature(inputs={"messages": TensorSpec(datatype="JSON")}, outputs={})
    messages = [{"role": "user", "content": "hello"}]
    assert sent([{"messages": messages}], signature).inputs["messages"] == [messages]


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{}],
        [{"a": 1}, {"b": 1}],
        [{"a": [1, 2]}, {"a": [1]}],
        [{"a": object()}],
        [{"a": b"x"}, {"a": "x"}],
        [{"a": [[1], [2, 3]]}],
        [{"a": {"b": object()}}],
        [{"a": {"b": float("nan")}}],
        [{"a": "half a character: \ud83d"}],
        [{"a": [float("nan"), 1e300]}],
    ],
)
def test_items_that_cannot_be_sent_are_refused_with_a_sentence(items: list[dict[str, Any]]) -> None:
    """Empty, differing, ragged or foreign items are an InvalidInput before anything is sent."""
    with pytest.raises(InvalidInput):
        encode_request(items)


def test_parameters_that_cannot_be_sent_are_refused() -> None:
    """A parameter that JSON cannot hold is an InvalidInput, too."""
    with pytest.raises(InvalidInput, match="request cannot be sent"):
        encode_request([{"a": 1}], parameters={"b": object()})


def test_numbers_that_json_does_not_know_travel_in_binary_form() -> None:
    """NaN and infinity reach the server as they are."""
    body, headers = encode_request([{"x": np.array([np.nan, np.inf], dtype=np.float16), "y": [1.5, -np.inf]}])
    got = decode(body, header_length=int(headers["inference-header-content-length"])).inputs
    np.testing.assert_array_equal(got["x"], np.array([[np.nan, np.inf]], dtype=np.float16))
    np.testing.assert_array_equal(got["y"], np.array([[1.5, -np.inf]], dtype=np.float32))


@pytest.mark.parametrize("binary", [False, True])
def test_answers_of_the_server_are_read_back(binary: bool) -> None:
    """Vectors, texts, JSON values and raw bytes come back row by row, in JSON and in binary form."""
    request = decode(encode_request([{"x": "a"}, {"x": "b"}], parameters={"binary_data_output": binary})[0])
    outputs = {
        "vector": np.arange(6, dtype=np.float32).reshape(2, 3),
        "text": ["eins", "zwei"],
        "top": [{"a": 1}, {"a": 2}],
        "image": [b"\xff\x00", b"\xfe"],
    }
    signature = Signature(
        inputs={},
        outputs={
            "vector": TensorSpec(datatype="FP32", shape=(3,)),
            "text": TensorSpec(datatype="BYTES"),
            "top": TensorSpec(datatype="JSON"),
            "image": TensorSpec(datatype="BYTES"),
        },
    )
    body, length = encode(model="m", version="1.0.0", request=request, outputs=outputs, signature=signature)
    headers = {"inference-header-content-length": str(length)} if length is not None else {}
    columns, head = decode_answer(body, headers)
    assert head["model_version"] == "1.0.0"
    assert columns["vector"] == [[0, 1, 2], [3, 4, 5]]
    assert columns["text"] == ["eins", "zwei"]
    assert columns["top"] == [{"a": 1}, {"a": 2}]
    assert columns["image"] == [b"\xff\x00", b"\xfe"]
