"""Which gateways rank 0 listens to: one that was silent or does not read is dropped, and told so when it speaks."""

from serving.config import EngineConfig
from serving.engine.scheduling.scheduler import Scheduler
from serving.engine.sessions import GatewaySessions
from serving.messages import Beat, Dropped, Pulse, Sampling, Submit, ToGateway

GATEWAY, OTHER = b"gateway", b"other"
TIMEOUT_S = 5.0


class Link:
    """The border: keeps what is sent, and takes nothing for those who do not read."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, ToGateway]] = []
        self.full: set[bytes] = set()

    def send(self, peer: bytes, message: ToGateway) -> bool:
        if peer in self.full:
            return False
        self.sent.append((peer, message))
        return True

    def kinds(self, peer: bytes) -> list[type]:
        return [type(message) for to, message in self.sent if to == peer]


class Desk:
    """The sessions with their surroundings, on a clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.link = Link()
        self.scheduler = Scheduler(
            EngineConfig(), generation=1, num_blocks=64, max_model_len=256, vocab_size=100, eos_token_ids=frozenset()
        )
        self.sessions = GatewaySessions(self.scheduler, self.link, 1, TIMEOUT_S, {}, lambda: self.now)  # type: ignore[arg-type]

    def submit(self, peer: bytes) -> None:
        request = Submit(id="r", prompt=[1, 2, 3], sampling=Sampling(seed=0, max_tokens=8))
        self.sessions.receive([(peer, request)])

    @property
    def requests(self) -> int:
        counters = self.scheduler.counters()
        return counters["running"] + counters["waiting"]


def test_a_gateway_that_is_silent_for_too_long_loses_its_requests() -> None:
    desk = Desk()
    desk.submit(GATEWAY)
    desk.submit(OTHER)
    desk.now = TIMEOUT_S + 1
    desk.sessions.receive([(OTHER, Beat())])
    assert desk.requests == 1


def test_what_came_while_rank_0_was_busy_counts_before_the_silence_does() -> None:
    desk = Desk()
    desk.submit(GATEWAY)
    desk.now = 10 * TIMEOUT_S
    desk.sessions.receive([(GATEWAY, Beat())])
    assert desk.requests == 1


def test_a_dropped_gateway_that_speaks_again_is_told_and_not_served() -> None:
    desk = Desk()
    desk.submit(GATEWAY)
    desk.now = TIMEOUT_S + 1
    desk.sessions.receive([])
    desk.submit(GATEWAY)
    desk.sessions.keep_alive()
    assert desk.link.kinds(GATEWAY) == [Dropped]
    assert desk.requests == 0


def test_a_gateway_that_does_not_read_is_dropped_at_the_first_message_it_misses() -> None:
    desk = Desk()
    desk.submit(GATEWAY)
    desk.link.full.add(GATEWAY)
    desk.sessions.keep_alive()
    assert desk.requests == 0
    desk.link.full.clear()
    desk.sessions.keep_alive()
    desk.sessions.receive([(GATEWAY, Beat())])
    assert desk.link.kinds(GATEWAY) == [Dropped]


def test_a_gateway_that_was_sent_nothing_for_a_while_hears_that_rank_0_lives() -> None:
    desk = Desk()
    desk.sessions.receive([(GATEWAY, Beat())])
    desk.sessions.keep_alive()
    desk.sessions.keep_alive()
    desk.now = 1.0
    desk.sessions.keep_alive()
    assert desk.link.kinds(GATEWAY) == [Pulse, Pulse]
