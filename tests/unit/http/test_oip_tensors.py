"""Tensors that lie, do not fit, or are made to hurt; and outputs that a tensor cannot hold."""

from __future__ import annotations

import contextlib
import gzip
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.models import Signature
from cluster.errors import InvalidInput, TooLarge, Unprocessable
from serve_apps.http.oip import inflate
from serve_apps.http.oip_decode import decode
from serve_apps.http.oip_encode import encode
from serve_apps.protocol import InferResult
from serve_apps.signature import check_inputs, holds_text
from serve_apps.table import RoutingTable
from tests.unit.http.surface import NUMBERS, Surface

TENSOR = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}


def asked(**more: Any) -> bytes:
    """A request with one tensor, which differs from a good one by `more`."""
    return orjson.dumps({"inputs": [{**TENSOR, **more}]})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (orjson.dumps({"inputs": [TENSOR], "outputs": 5}), "'outputs' must be a list"),
        (orjson.dumps({"inputs": [TENSOR], "outputs": {"y": 1}}), "'outputs' must be a list"),
        (orjson.dumps({"inputs": [TENSOR], "outputs": [{"name": "y", "parameters": [1]}]}), "output 'y': 'parameters'"),
        (asked(datatype=["FP32"]), "'datatype' must be a string"),
        (asked(datatype="BF16"), "unknown datatype 'BF16'"),
        (asked(shape=[-1]), "'shape' must be a list of whole numbers"),
        (asked(shape=[1] * 33), "33 dimensions, at most 32"),
        (asked(shape=[1] * 100_000, datatype="BYTES", data=["a"]), "100000 dimensions"),
        (asked(shape=[2**62] * 20_000), "20000 dimensions"),
        (asked(shape=[1, 0, 2**62, 2**62], data=[]), "more than a body can hold"),
        (asked(data=["1"]), "holds text"),
        (asked(data=[[1.0], ["x" * 100]]), "holds text"),
        (asked(data=[1e300]), "beyond its range"),
        (asked(datatype="FP16", data=[70_000]), "beyond its range"),
        (orjson.dumps({"inputs": [TENSOR], "parameters": {"timeout": "²"}}), "parameters.timeout"),
        (orjson.dumps({"inputs": [TENSOR], "parameters": {"timeout": "9" * 5000}}), "parameters.timeout"),
    ],
)
def test_a_tensor_that_makes_no_sense_is_named(body: bytes, words: str) -> None:
    """What cannot be a tensor is refused with its name and what is wrong, and without working out what it claims."""
    with pytest.raises(InvalidInput, match=words):
        decode(body)


WORDS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("name", "parameters")), inner),
    max_leaves=6,
)


@given(
    change=st.dictionaries(st.sampled_from(("name", "shape", "datatype", "data", "parameters")), WORDS),
    more=st.dictionaries(st.sampled_from(("id", "parameters", "outputs")), WORDS),
)
def test_whatever_comes_is_taken_or_refused(change: dict[str, Any], more: dict[str, Any]) -> None:
    """No JSON makes decoding fail with anything but a refusal that says what is wrong."""
    with contextlib.suppress(InvalidInput):
        decode(orjson.dumps({"inputs": [{**TENSOR, **change}], **more}))


def test_every_byte_is_a_truth_value() -> None:
    """A BOOL in binary form is true for any byte but 0, and is then one of the two values that NumPy knows."""
    head = orjson.dumps(
        {"inputs": [{"name": "x", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}]}
    )
    column = decode(head + b"\x00\x01\x02", header_length=len(head)).inputs["x"]
    assert column.dtype == np.bool_
    assert column.view(np.uint8).tolist() == [0, 1, 1]


def test_text_among_numbers_is_seen_before_numpy_sees_it() -> None:
    """One long text among short ones is refused as text: an array of them would give each the room of the longest."""
    column = [["x" * 1_000_000], *(["y"] for _ in range(100_000))]
    assert holds_text(column)
    assert not holds_text([[1, [2.0, True]], None, {"a": "b"}])
    with pytest.raises(InvalidInput, match="got text"):
        check_inputs(NUMBERS, {"x": column}, len(column))


async def test_a_length_of_other_digits_is_refused(client: httpx.AsyncClient) -> None:
    """A header length that is not written in plain digits is the caller's mistake."""
    for length in (b"\xb2", b"9" * 5000, b"-1"):
        headers = {b"inference-header-content-length": length}
        answer = await client.post("/v2/models/numbers/infer", content=asked(), headers=headers)
        assert answer.status_code == 400, answer.text
        assert "Inference-Header-Content-Length" in answer.json()["error"]


async def test_the_model_may_be_retired_while_it_answers(surface: Surface) -> None:
    """An answer of a model that has left the table meanwhile is given to its caller."""

    def retire(request: Any) -> InferResult:
        surface.router.set_table(RoutingTable(revision=2, keys=surface.router.table.keys))
        return InferResult(outputs={"x": np.zeros((1, 2), dtype=np.float32)})

    surface.hosts["numbers-1.0.0"].respond = retire
    async with surface.client() as client:
        answer = await client.post("/v2/models/numbers/infer", content=asked(shape=[1, 2], data=[1, 2]))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [0, 0]


def test_packed_bodies_are_whole_and_bounded() -> None:
    """A compressed body is unpacked up to the limit and not a byte further, and neither half nor more than one."""
    packed = gzip.compress(b"a" * 1000)
    assert inflate(packed, "gzip", 1000) == b"a" * 1000
    assert inflate(b"plain", "identity", 1) == b"plain"
    with pytest.raises(TooLarge):
        inflate(packed, "gzip", 999)
    with pytest.raises(TooLarge):
        inflate(gzip.compress(b"\0" * 50_000_000), "gzip", 1000)
    with pytest.raises(InvalidInput, match="ends in the middle"):
        inflate(packed[:-9], "gzip", 1000)
    with pytest.raises(InvalidInput, match="bytes follow"):
        inflate(packed + packed, "gzip", 5000)


def encoded(outputs: dict[str, Any], *, types: dict[str, str] | None = None, binary: bool = False) -> dict[str, Any]:
    signature = Signature.model_validate({"inputs": {}, "outputs": types}) if types is not None else None
    request = decode(orjson.dumps({"inputs": [TENSOR], "parameters": {"binary_data_output": binary}}))
    body, length = encode(model="m", version="1.0.0", request=request, outputs=outputs, signature=signature)
    answer: dict[str, Any] = orjson.loads(body[:length])["outputs"][0]
    return answer


def test_outputs_of_unequal_shapes_are_no_tensor() -> None:
    """Declared numbers whose items differ in shape are refused with what to do; undeclared ones travel as JSON."""
    rows = [np.zeros(2, dtype=np.float32), np.zeros(3, dtype=np.float32)]
    with pytest.raises(Unprocessable, match="one by one"):
        encoded({"y": rows}, types={"y": "FP32[-1]"})
    assert encoded({"y": [[1, 2], [3]]}) == {
        "name": "y", "datatype": "BYTES", "shape": [2], "data": ["[1,2]", "[3]"], "parameters": {"content_type": "json"}
    }  # fmt: skip


def test_an_item_without_an_optional_number() -> None:
    """Where an item lacks an optional number JSON says null; the binary form, and shapes, cannot say it."""
    assert encoded({"y": [None, 3]}, types={"y": "INT64?"})["data"] == [None, 3]
    with pytest.raises(Unprocessable, match="item 0 has no output 'y'"):
        encoded({"y": [None, 3]}, types={"y": "INT64?"}, binary=True)
    with pytest.raises(Unprocessable, match="item 1 has no output 'y'"):
        encoded({"y": [np.zeros(2), None]}, types={"y": "FP64[2]?"})


def test_outputs_that_json_does_not_know() -> None:
    """Half a character, keys that are no text and numbers of any size do not lose an answer."""
    assert encoded({"y": ["ok \ud83d"]})["data"] == ["ok �"]
    assert encoded({"y": ["\ud83d\ude00"]}, types={"y": "BYTES"})["data"] == ["😀"]
    assert encoded({"y": ["\ud83d"]}, binary=True)["parameters"] == {"binary_data_size": 7}
    assert encoded({"y": [{1: 2**70, "z": "\ud83d"}]})["data"] == ['{"1": 1180591620717411303424, "z": "�"}']
    assert encoded({"y": [1, "a"]})["data"] == ["1", '"a"']
