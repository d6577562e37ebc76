"""Both ends of the link in one process, over a real socket."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from serving.link import LinkClient, LinkLost, LinkServer
from serving.messages import Beat, Cancel, Delta, Endpoint, EngineStats, Pulse, Sampling, StepOutput, Submit, ToEngine

STATS = EngineStats(running=1, phase_seconds={"plan": 0.5})


@pytest.fixture
def server() -> Iterator[LinkServer]:
    server = LinkServer("127.0.0.1", generation=1)
    yield server
    server.close()


async def received(server: LinkServer, count: int = 1, timeout_s: float = 5.0) -> list[tuple[bytes, ToEngine]]:
    """The next `count` messages; fewer when `timeout_s` passes."""
    got: list[tuple[bytes, ToEngine]] = []
    deadline = time.monotonic() + timeout_s
    while len(got) < count and time.monotonic() < deadline:
        got += await asyncio.to_thread(server.receive, 0.2)
    return got


async def send_for_ever(client: LinkClient) -> None:
    while True:
        client.send(Beat())
        await asyncio.sleep(0)


def with_key_of_another_client(endpoint: Endpoint) -> Endpoint:
    public, secret = zmq.curve_keypair()
    return msgspec.structs.replace(endpoint, client_public=public.decode(), client_secret=secret.decode())


async def test_messages_arrive_whole_and_in_order_both_ways(server: LinkServer) -> None:
    client = LinkClient(server.endpoint)
    sampling = Sampling(seed=2**63 - 1, max_tokens=4, logit_bias={5: -1.5}, stop_token_ids=(7, 8))
    sent: list[ToEngine] = [Submit(id="a", prompt=[1, 2], emitted=[3], sampling=sampling), Cancel(ids=["a"]), Beat()]
    for message in sent:
        client.send(message)
    got = await received(server, 3)
    assert [message for _, message in got] == sent

    answer = StepOutput(generation=1, step=9, deltas=[Delta(id="a", tokens=[4], finish="length")], stats=STATS)
    server.send(got[0][0], answer)
    server.send(got[0][0], Pulse(generation=1, stats=STATS))
    assert await asyncio.wait_for(client.receive(), 5) == answer
    assert await asyncio.wait_for(client.receive(), 5) == Pulse(generation=1, stats=STATS)
    client.close()


async def test_a_client_with_an_unknown_key_is_refused(server: LinkServer, caplog: pytest.LogCaptureFixture) -> None:
    stranger = LinkClient(with_key_of_another_client(server.endpoint))
    stranger.send(Beat())
    with caplog.at_level(logging.WARNING):
        while "unknown key" not in caplog.text:
            assert await asyncio.to_thread(server.receive, 0.05) == []
    friend = LinkClient(server.endpoint)
    friend.send(Cancel(ids=["mine"]))
    assert [message for _, message in await received(server)] == [Cancel(ids=["mine"])]
    stranger.close()
    friend.close()


async def test_a_client_without_encryption_is_refused(server: LinkServer) -> None:
    context = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.connect(server.endpoint.address)
    plain.send(msgspec.msgpack.encode({"type": "Beat"}))
    friend = LinkClient(server.endpoint)
    friend.send(Cancel(ids=["mine"]))
    assert [message for _, message in await received(server)] == [Cancel(ids=["mine"])]
    assert await asyncio.to_thread(server.receive, 0.05) == []
    friend.close()
    context.destroy(linger=0)


async def test_a_client_does_not_talk_to_a_server_with_another_key(server: LinkServer) -> None:
    public, _ = zmq.curve_keypair()
    client = LinkClient(msgspec.structs.replace(server.endpoint, server_public=public.decode()))
    client.send(Beat())
    assert await asyncio.to_thread(server.receive, 0.2) == []
    client.close()


async def test_a_frame_that_is_no_message_is_logged_and_dropped(
    server: LinkServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = LinkClient(server.endpoint)
    for frame in (b"", b"\xc1garbage", msgspec.msgpack.encode({"type": "Unheard"}), msgspec.msgpack.encode([1])):
        await client._socket.send(frame)
    client.send(Beat())
    assert [message for _, message in await received(server)] == [Beat()]
    assert caplog.text.count("dropped a frame") == 4
    client.close()


def test_sending_to_an_unknown_peer_says_so(server: LinkServer) -> None:
    assert not server.send(b"\x00nobody", Pulse(generation=1, stats=STATS))


async def test_what_a_peer_that_does_not_read_is_not_sent_is_known(server: LinkServer) -> None:
    client = LinkClient(server.endpoint)
    client.send(Beat())
    [(peer, _)] = await received(server)
    deltas = [Delta(id="x" * 1000, tokens=list(range(1000)))] * 10
    count = 0
    while server.send(peer, StepOutput(generation=1, step=count, deltas=deltas, stats=STATS)):
        count += 1
    steps = []
    for _ in range(count):
        message = await asyncio.wait_for(client.receive(), 5)
        assert isinstance(message, StepOutput)
        steps.append(message.step)
    assert steps == list(range(count))
    assert server.send(peer, Pulse(generation=1, stats=STATS))
    assert isinstance(await asyncio.wait_for(client.receive(), 5), Pulse)
    client.close()


def test_receive_returns_within_its_timeout_when_nothing_comes(server: LinkServer) -> None:
    assert server.receive(0.0) == []
    assert server.receive(0.01) == []


async def test_one_receive_hands_over_a_bounded_number_of_messages(server: LinkServer) -> None:
    client = LinkClient(server.endpoint)
    for number in range(600):
        client.send(Cancel(ids=[str(number)]))
    batches: list[list[tuple[bytes, ToEngine]]] = []
    while sum(len(batch) for batch in batches) < 600:
        batches.append(await asyncio.to_thread(server.receive, 1.0))
    assert max(len(batch) for batch in batches) <= 256
    assert [m.ids[0] for b in batches for _, m in b if isinstance(m, Cancel)] == [str(n) for n in range(600)]
    client.close()


async def test_each_generation_has_keys_of_its_own(server: LinkServer) -> None:
    other = LinkServer("127.0.0.1", generation=2)
    fields = ("address", "server_public", "client_public", "client_secret")
    assert all(getattr(server.endpoint, name) != getattr(other.endpoint, name) for name in fields)
    other.close()


CLIENT_OF_NOBODY = """
import asyncio, sys
import msgspec
from serving.link import LinkClient
from serving.messages import Beat, Endpoint

async def send_and_close():
    client = LinkClient(msgspec.json.decode(sys.argv[1], type=Endpoint))
    client.send(Beat())
    client.close()

asyncio.run(send_and_close())
"""


def test_closing_never_waits_for_an_absent_peer() -> None:
    """In a process of its own, since a close that waits cannot be interrupted."""
    server = LinkServer("127.0.0.1", generation=1)
    endpoint = msgspec.json.encode(server.endpoint).decode()
    server.close()
    subprocess.run([sys.executable, "-c", CLIENT_OF_NOBODY, endpoint], check=True, timeout=60)


SERVER_OF_A_STALLED_CLIENT = """
import zmq
from serving import link
from serving.link import LinkServer
from serving.messages import Beat, Delta, EngineStats, StepOutput, encode

link._HEARTBEAT_TIMEOUT_MS = 10 * 60_000  # else a close that waits would wait only until the connection is given up
server = LinkServer("127.0.0.1", generation=1)
context = zmq.Context()
client = context.socket(zmq.DEALER)
client.curve_serverkey = server.endpoint.server_public.encode()
client.curve_publickey = server.endpoint.client_public.encode()
client.curve_secretkey = server.endpoint.client_secret.encode()
client.linger, client.rcvhwm = 0, 1
client.connect(server.endpoint.address)
client.send(encode(Beat()))
messages = []
while not messages:
    messages = server.receive(1.0)
deltas = [Delta(id="x" * 1000, tokens=list(range(1000)))] * 10
while server.send(messages[0][0], StepOutput(generation=1, step=0, deltas=deltas, stats=EngineStats())):
    pass
server.close()
context.destroy(linger=0)
"""


def test_closing_never_waits_for_a_peer_that_does_not_read() -> None:
    subprocess.run([sys.executable, "-c", SERVER_OF_A_STALLED_CLIENT], check=True, timeout=60)


async def test_a_link_that_lost_its_connection_says_so_instead_of_filling_up() -> None:
    server = LinkServer("127.0.0.1", generation=1)
    client = LinkClient(server.endpoint)
    client.send(Beat())
    await received(server)
    server.close()
    with pytest.raises(LinkLost):
        await send_for_ever(client)
    client.close()
