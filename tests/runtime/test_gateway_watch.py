"""When a gateway is deployed again, and when Serve is left to it."""

from pathlib import Path

import pytest

from serving.config import load_config
from serving.presence import Presence
from serving.runtime.gateway_watch import START_PATIENCE_S, GatewayWatch

ALIVE = Presence(state="alive", deployed_at=1.0)
STARTING = Presence(state="starting", deployed_at=1.0)
LOST = Presence(state="lost", deployed_at=1.0)
NONE = Presence(state="lost")


class Watched:
    """A watch whose clock, sight and deed are the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.found = NONE
        self.deployed: list[Presence] = []
        config = load_config({"model": {"path": str(Path.cwd())}})
        self.watch = GatewayWatch(config, lambda: self.found, self.deployed.append, lambda: self.now)

    def see(self, found: Presence, at: float) -> bool:
        self.found, self.now = found, at
        return self.watch.ensure()


def test_one_that_lives_is_left_alone() -> None:
    watched = Watched()
    assert all(watched.see(ALIVE, at) for at in (0, 1000, 2000))
    assert watched.deployed == []


def test_one_that_serve_starts_again_by_itself_is_not_deployed_twice() -> None:
    watched = Watched()
    looks = [watched.see(*look) for look in ((ALIVE, 0), (STARTING, 2), (STARTING, START_PATIENCE_S), (ALIVE, 130))]
    assert looks == [True, False, False, True]
    assert watched.deployed == []


@pytest.mark.parametrize("lost", [NONE, LOST])
def test_one_that_serve_will_never_have_is_deployed_at_once_in_the_place_of_what_was_found(lost: Presence) -> None:
    watched = Watched()
    assert watched.see(lost, 0)
    assert watched.deployed == [lost]


def test_one_that_does_not_start_within_the_patience_is_deployed_again_and_has_as_long_again() -> None:
    watched = Watched()
    ats = (0, START_PATIENCE_S - 1, START_PATIENCE_S, START_PATIENCE_S + 1, 2 * START_PATIENCE_S)
    assert [watched.see(STARTING, at) for at in ats] == [False, False, True, False, False]
    assert watched.deployed == [STARTING]
