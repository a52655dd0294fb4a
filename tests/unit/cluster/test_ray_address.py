"""What is said of the address of a Ray cluster before Ray tries it."""

from __future__ import annotations

import socket

import pytest

from cluster.errors import Unavailable
from cluster.ray_runtime import check_reachable


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    """With the address and the key that holds it; Ray would try for minutes and print its own words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else gets it, and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=address) as caught:
            check_reachable(address)
    assert "cluster.address" in caught.value.message


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:0"])
def test_a_port_that_none_can_be_is_refused_too(address: str) -> None:
    """It is a wrong address like any other, and no traceback."""
    with pytest.raises(Unavailable, match=address):
        check_reachable(address)


def test_an_address_that_answers_and_those_of_other_forms_are_left_to_ray() -> None:
    """Only what is a host and a port is tried."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
    for address in ("auto", "local", "ray://nowhere.invalid:10001", ""):
        check_reachable(address)
