"""Frames of the link, and plans of the broadcast."""

from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq
from hypothesis import example, given
from hypothesis import strategies as st

from serving.engine.distributed.broadcast import HEADER_BYTES, MAX_PLAN_BYTES, framed, length_of, plan_of
from serving.engine.distributed.rendezvous import INVITATION, Invitation
from serving.errors import ProtocolError
from serving.link import LinkServer
from serving.messages import Cancel, StepPlan, decode_to_engine, decode_to_gateway, encode
from tests.fuzz.strategies import any_bytes, fuzz
from tests.test_messages import PLANS, TO_ENGINE, TO_GATEWAY

DEEP = b"\x82\xa4type\xa4Beat\xa1x" + b"\x91" * 100_000
NOT_UTF8 = b"\x82\xa4type\xa6Submit\xa2id\xa1\xff"
ENDLESS = b"\x82\xa4type\xa6Cancel\xa3ids\xdd\xff\xff\xff\xff"
FRAMES = any_bytes([encode(message) for message in (*TO_ENGINE, *TO_GATEWAY)])


@fuzz
@given(FRAMES)
@example(DEEP)
@example(NOT_UTF8)
@example(ENDLESS)
def test_a_frame_is_a_message_or_refused(frame: bytes) -> None:
    decoders: tuple[Callable[[bytes], object], ...] = (decode_to_engine, decode_to_gateway)
    for decode in decoders:
        try:
            decode(frame)
        except msgspec.DecodeError:
            continue


@fuzz
@given(any_bytes([encode(plan) for plan in PLANS]))
@example(b"\x81\xa1x" + b"\x91" * 100_000)
@example(b"\x81\xa6placed\xdf\xff\xff\xff\xff")
def test_bytes_are_a_plan_or_refused(payload: bytes) -> None:
    try:
        plan = plan_of(payload)
    except ProtocolError:
        return
    assert plan_of(encode(plan)) == plan


@pytest.mark.parametrize("plan", PLANS)
def test_a_frame_tells_the_length_of_its_plan(plan: StepPlan) -> None:
    frame = framed(plan)
    assert length_of(frame) == len(frame) - HEADER_BYTES


@fuzz
@given(st.binary(min_size=HEADER_BYTES, max_size=64))
@example(b"\xff" * HEADER_BYTES)
def test_no_header_makes_a_follower_take_more_memory_than_a_plan_may_have(frame: bytes) -> None:
    try:
        assert length_of(frame) <= MAX_PLAN_BYTES
    except ProtocolError:
        assert int.from_bytes(frame[:HEADER_BYTES], "little") > MAX_PLAN_BYTES


class Peer:
    """A gateway that has the key and sends what it likes."""

    def __init__(self) -> None:
        self.server = LinkServer("127.0.0.1", generation=1)
        endpoint = self.server.endpoint
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.curve_serverkey = endpoint.server_public.encode()
        self.socket.curve_publickey = endpoint.client_public.encode()
        self.socket.curve_secretkey = endpoint.client_secret.encode()
        self.socket.connect(endpoint.address)

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.server.close()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@fuzz
@given(st.lists(FRAMES, min_size=1, max_size=4))
@example([DEEP])
@example([NOT_UTF8])
@example([b"", b""])
def test_rank_0_hears_what_comes_after_any_frames(peer: Peer, frames: list[bytes]) -> None:
    last = Cancel(ids=["after all of that"])
    peer.socket.send_multipart(frames)
    peer.socket.send(encode(last))
    heard: list[object] = []
    while last not in heard:
        messages = peer.server.receive(10.0)
        assert messages, "rank 0 hears nothing any more"
        heard += [message for _, message in messages]


@fuzz
@given(any_bytes([Invitation("192.0.2.7", 4711, b"s" * 16).packed(), Invitation("fe80::1", 1, bytes(16)).packed()]))
@example(bytes(INVITATION.size))
@example(b"\xff" * INVITATION.size)
def test_bytes_are_an_invitation_or_refused(data: bytes) -> None:
    try:
        invitation = Invitation.unpacked(data)
    except ProtocolError:
        return
    assert Invitation.unpacked(invitation.packed()) == invitation
