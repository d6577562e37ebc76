import socket

import psutil
import pytest

from serving.runtime.network import (
    INTERFACE_VARIABLES,
    Place,
    choose_interface,
    free_addresses,
    interface_with,
    local_interfaces,
    on_one_machine,
    places_to_ask,
)
from tests.e2e.server import free_port

INTERFACES = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7", "fe80::1"], "ib0": ["192.168.5.7"]}


def place(node_id: str, ip: str = "10.0.0.7") -> Place:
    return Place(node_id=node_id, ip=ip, pid=1, interface="eth0")


@pytest.mark.parametrize(
    ("address", "interface"), [("10.0.0.7", "eth0"), ("192.168.5.7", "ib0"), ("::1", "lo"), ("10.0.0.8", None)]
)
def test_the_interface_is_the_one_that_carries_the_address(address: str, interface: str | None) -> None:
    assert interface_with(address, INTERFACES) == interface


def test_this_machine_has_its_loopback_address_on_an_interface() -> None:
    assert interface_with("127.0.0.1", local_interfaces()) in psutil.net_if_addrs()


def test_the_interface_is_named_to_gloo_and_nccl() -> None:
    environment: dict[str, str] = {}
    interface = choose_interface("127.0.0.1", environment)
    assert environment == dict.fromkeys(INTERFACE_VARIABLES, interface)


def test_what_the_user_has_set_stays() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "mine"}
    choose_interface("127.0.0.1", environment)
    assert environment["GLOO_SOCKET_IFNAME"] == "mine"


def test_an_address_that_no_interface_carries_leaves_the_choice_to_the_libraries() -> None:
    environment: dict[str, str] = {}
    assert choose_interface("203.0.113.1", environment) is None
    assert environment == {}


def test_ranks_share_a_machine_when_they_share_a_node_and_not_when_they_share_an_address() -> None:
    assert on_one_machine([place("a"), place("a")])
    assert not on_one_machine([place("a"), place("b")])


def test_a_host_name_stands_for_its_addresses_that_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    port, elsewhere = free_port(), "192.0.2.1"  # an address for documentation, that no machine has
    assert free_addresses("0.0.0.0", port) == ["0.0.0.0"]
    monkeypatch.setattr("serving.runtime.network.addresses_of", lambda *_: [elsewhere, "127.0.0.1"])
    assert free_addresses("both", port) == ["127.0.0.1"]
    monkeypatch.setattr("serving.runtime.network.addresses_of", lambda *_: [elsewhere])
    with pytest.raises(OSError, match="assign"):
        free_addresses("elsewhere", port)


def test_an_address_at_which_something_listens_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        free_addresses("localhost", taken.getsockname()[1])


def test_a_server_on_all_interfaces_is_asked_at_its_node_and_another_where_it_listens() -> None:
    assert places_to_ask("0.0.0.0", ["10.0.0.7", "10.0.0.7"]) == ["10.0.0.7", "127.0.0.1"]
    assert places_to_ask("::", ["10.0.0.7"]) == ["10.0.0.7", "::1"]
    assert places_to_ask("gpu1", ["10.0.0.7"]) == ["gpu1"]
