import threading

from ray.exceptions import GetTimeoutError

from serving.messages import RankInfo
from serving.runtime.group.rank_status import Standing

INFO = RankInfo(rank=1, node_id="n", ip="10.0.0.1", pid=1, device="cpu")


class Registry:
    """Keeps what it is told; the first report waits on its way until it is let go."""

    def __init__(self) -> None:
        self.reports: list[RankInfo] = []
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def report(self, generation: int, info: RankInfo) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.let_go.wait(10)
        self.reports.append(info)


def test_a_report_that_was_delayed_never_undoes_a_later_one() -> None:
    registry = Registry()
    standing = Standing(registry, 1, INFO)
    delayed = threading.Thread(target=standing.tell, kwargs={"loaded_bytes": 1, "shard_bytes": 2})
    delayed.start()
    assert registry.reached.wait(10)
    later = threading.Thread(target=standing.tell, kwargs={"loaded_bytes": 2})
    later.start()
    later.join(0.2)  # it ends here only if it overtakes
    registry.let_go.set()
    delayed.join()
    later.join()
    assert [info.loaded_bytes for info in registry.reports] == [1, 2]
    assert registry.reports[-1] == standing.info


def test_progress_is_told_at_its_end_however_short_the_time() -> None:
    registry = Registry()
    registry.let_go.set()
    standing = Standing(registry, 1, INFO)
    for loaded in range(101):
        standing.progress(loaded, 100)
    assert len(registry.reports) < 100
    assert (registry.reports[-1].loaded_bytes, registry.reports[-1].shard_bytes) == (100, 100)


def test_a_registry_that_is_gone_is_told_the_next_time() -> None:
    class Gone(Registry):
        def report(self, generation: int, info: RankInfo) -> None:
            if not self.reports:
                self.reports.append(info)
                raise GetTimeoutError
            super().report(generation, info)

    registry = Gone()
    registry.let_go.set()
    standing = Standing(registry, 1, INFO)
    standing.tell(loaded_bytes=1)
    standing.tell(shard_bytes=2)
    assert (registry.reports[-1].loaded_bytes, registry.reports[-1].shard_bytes) == (1, 2)
