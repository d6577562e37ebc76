"""The crowd of streams, against the application over a fake engine that has few places."""

from loadtests.many_streams import Others, run
from tests.api.conftest import listening
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config


async def test_each_stream_of_a_crowd_is_complete_or_refused() -> None:
    with fake_group() as group, listening(group, make_config()) as server:
        ends = await run(server.url, streams=30, seconds=0.2, tokens=8, others=Others(idle=20, half_sent=20))
    assert set(ends) == {"complete", "refused"}


async def test_a_server_that_is_not_there_is_told_apart() -> None:
    with fake_group() as group, listening(group, make_config()) as server:
        pass
    ends = await run(server.url, streams=1, seconds=0.001, tokens=8)
    assert set(ends) == {"ConnectError"}
