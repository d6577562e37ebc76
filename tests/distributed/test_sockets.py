"""Sums through sockets: right, the same bits everywhere, of any size, among the group alone; lost ranks are named."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from serving.engine.distributed import library
from serving.engine.distributed.collectives import Collectives
from serving.engine.distributed.rendezvous import HELLO, INTERFACE, Door, connect, own_address
from serving.engine.distributed.sockets import WHOLE_BYTES, SocketSum
from serving.errors import PeerLost, ProtocolError
from tests.distributed.ranks import RankPool, RanksFailed

pytestmark = pytest.mark.skipif(library.sums() is None, reason="there is no C++ compiler")

COUNTS = [0, 1, 7, 576, 18_432, WHOLE_BYTES // 4 + 1]
"""The last is cut in slices where there are three ranks."""
MOST = 6_000_001
"""Elements of more bytes than the buffers of a connection hold in any format."""
SAFETY_S = 60.0


def part(rank: int, count: int, dtype: torch.dtype, turn: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * turn + 10 * count + rank)
    return torch.randn(count, generator=generator).to(dtype)


def turns() -> Iterator[tuple[int, int]]:
    """Turn and number of elements of each sum."""
    yield from ((turn, count) for turn in range(30) for count in COUNTS)
    yield 30, MOST


def sums(collectives: Collectives, dtype_name: str) -> list[Any]:
    """On a rank: many sums of all sizes in a row, without a pause between them."""
    own = SocketSum(collectives.rank, collectives.world, SAFETY_S)
    results = []
    for turn, count in turns():
        tensor = part(collectives.rank, count, getattr(torch, dtype_name), turn)
        own.all_reduce(tensor)
        results.append(tensor.float().numpy())
    return results


@pytest.mark.parametrize("dtype_name", ["float32", "bfloat16"])
@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_has_the_sum_in_rank_order(request: pytest.FixtureRequest, world: int, dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    pool: RankPool = request.getfixturevalue(f"ranks{world}")
    ranks = pool.run(sums, dtype_name)
    for place, (turn, count) in enumerate(turns()):
        truth = part(0, count, dtype, turn).float()
        for rank in range(1, world):
            truth = truth + part(rank, count, dtype, turn).float()
        for results in ranks:
            assert (results[place] == truth.to(dtype).float().numpy()).all()


def sum_sizes(collectives: Collectives, counts: list[int], timeout_s: float) -> str:
    """On a rank: sums a tensor of its size, if that is not 0; returns what went wrong, once all are done."""
    own = SocketSum(collectives.rank, collectives.world, timeout_s)
    said = ""
    try:
        if counts[collectives.rank]:
            own.all_reduce(torch.ones(counts[collectives.rank]))
    except (PeerLost, ProtocolError) as error:
        said = f"{type(error).__name__}: {error}"
    dist.barrier()
    return said


@pytest.mark.parametrize("count", [4, MOST])
def test_a_rank_that_does_not_come_is_named(ranks3: RankPool, count: int) -> None:
    lost = "PeerLost: rank 1 did not come to a sum within 0.5 s"
    assert ranks3.run(sum_sizes, [count, 0, count], 0.5) == [lost, "", lost]


def test_ranks_that_sum_different_tensors_are_told(ranks2: RankPool) -> None:
    first, second = ranks2.run(sum_sizes, [4, 8], SAFETY_S)
    assert first.startswith("ProtocolError: rank 1 sums 8 elements of 4 bytes")
    assert second.startswith("ProtocolError: rank 0 sums 4 elements of 4 bytes")


def sum_again(collectives: Collectives) -> None:
    """On a rank: rank 0 gives rank 1 up, and does not take it back."""
    own = SocketSum(collectives.rank, collectives.world, 0.2)
    if collectives.rank == 0:
        with pytest.raises(PeerLost, match="rank 1 did not come"):
            own.all_reduce(torch.ones(4))
        with pytest.raises(PeerLost, match="rank 1 was lost in a sum: Bad file descriptor"):
            own.all_reduce(torch.ones(4))
    dist.barrier()


def test_after_an_error_there_is_no_other_sum(ranks2: RankPool) -> None:
    ranks2.run(sum_again)


def die_in_a_sum(collectives: Collectives, culprit: int, count: int) -> None:
    """On a rank: the culprit ends after a first sum, when the others are in the second."""
    own = SocketSum(collectives.rank, collectives.world, 10 * SAFETY_S)
    own.all_reduce(torch.ones(count))
    if collectives.rank == culprit:
        os.kill(os.getpid(), signal.SIGKILL)
    own.all_reduce(torch.ones(count))


@pytest.mark.parametrize(("culprit", "count"), [(0, 4), (2, MOST)])
def test_a_rank_that_dies_is_noticed_at_once_and_named(culprit: int, count: int) -> None:
    pool = RankPool(3, one_machine=False)
    with pytest.raises(RanksFailed) as failed:
        pool.run(die_in_a_sum, culprit, count)
    pool.close()
    for rank in {0, 1, 2} - {culprit}:
        assert isinstance(failed.value.errors[rank], PeerLost)
        assert f"rank {culprit} was lost in a sum" in str(failed.value.errors[rank])


def test_a_stranger_is_turned_away_and_holds_nobody_up() -> None:
    with Door("127.0.0.1") as door:
        address = door.invitation.address, door.invitation.port
        silent, left, liar, slow = (socket.create_connection(address) for _ in range(4))
        left.close()
        liar.sendall(HELLO.pack(bytes(16), 1))
        slow.sendall(door.invitation.secret[:10])
        with connect(door.invitation, 7, SAFETY_S) as unexpected, connect(door.invitation, 1, SAFETY_S) as rank1:
            admitted = door.admit({1}, SAFETY_S)
            assert admitted.keys() == {1}
            with admitted[1]:
                assert admitted[1].getpeername() == rank1.getsockname()
            assert unexpected.recv(1) == b""
    for stranger in (silent, liar, slow):
        with stranger:
            assert is_closed(stranger)


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(SAFETY_S)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_hello_may_come_in_pieces() -> None:
    with Door("127.0.0.1") as door, socket.create_connection(door.invitation[:2]) as rank1:
        hello = HELLO.pack(door.invitation.secret, 1)
        rank1.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rank1.sendall(hello[:3])
        rest = threading.Timer(0.1, rank1.sendall, [hello[3:]])
        rest.start()
        with door.admit({1}, SAFETY_S)[1]:
            rest.join()


def test_a_rank_that_does_not_connect_is_named() -> None:
    with (
        Door("127.0.0.1") as door,
        connect(door.invitation, 1, SAFETY_S),
        pytest.raises(PeerLost, match=r"rank 2, 3 did not connect within 0\.1 s"),
    ):
        door.admit({1, 2, 3}, 0.1)


def test_nobody_can_connect_once_the_group_stands() -> None:
    with Door("127.0.0.1") as door:
        pass
    with pytest.raises(ConnectionRefusedError):
        connect(door.invitation, 1, SAFETY_S)


def test_a_rank_listens_on_the_interface_that_gloo_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "lo")
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")
    assert own_address() == "127.0.0.1"


@pytest.mark.parametrize("named", ["", "no-such-interface"])
def test_without_an_interface_a_rank_listens_where_rank_0_is_reached_from(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv(INTERFACE, named)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert own_address() == "127.0.0.1"
    monkeypatch.delenv("MASTER_ADDR")
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    assert own_address() in own | {"127.0.1.1"}
