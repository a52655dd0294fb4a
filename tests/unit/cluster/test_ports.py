"""Free ports, and what is said of one that cannot be had."""

from __future__ import annotations

import socket

import pytest

from cluster.errors import Unavailable
from cluster.ports import check_can_listen, free_ports


def test_free_ports_differ_and_lie_below_those_of_outgoing_connections() -> None:
    """A connection that opens in between takes none of them."""
    found = free_ports(50)
    assert len(set(found)) == 50
    assert all(20_000 <= port < 30_000 for port in found)


def test_a_port_where_somebody_listens_is_refused() -> None:
    """With the variable that sets another one."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(Unavailable, match=rf"port {port} on 127\.0\.0\.1 is taken .*HEADRACE__ROUTER__PORT"):
            check_can_listen("127.0.0.1", port)


def test_a_host_that_is_not_this_machine_is_not_called_a_taken_port() -> None:
    """Another port would not help: the address is wrong."""
    with pytest.raises(Unavailable, match=r"nothing can listen on port 20000 of 192\.0\.2\.1 .* router\.host"):
        check_can_listen("192.0.2.1", 20_000)


def test_a_free_port_is_let_pass() -> None:
    """Also for a name, and for every address."""
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        check_can_listen(host, free_ports(1)[0])
