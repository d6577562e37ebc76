import io

from rich.console import Console

from serving.messages import RankInfo, Snapshot
from serving.runtime.command.display import PlainDisplay, print_status

MIB = 1024 * 1024
LOADING = RankInfo(rank=0, node_id="n" * 40, ip="10.0.0.1", pid=9, device="cpu", shard_bytes=2 * MIB, loaded_bytes=MIB)
LOADED = RankInfo(
    rank=1, node_id="m" * 40, ip="10.0.0.2", pid=9, device="cpu", shard_bytes=MIB, loaded_bytes=MIB, load_seconds=1.5
)


def shown(*snapshots: Snapshot) -> list[str]:
    text = io.StringIO()
    display = PlainDisplay(Console(file=text, width=40))
    for snapshot in snapshots:
        display.show(snapshot)
    return text.getvalue().splitlines()


def test_each_state_and_each_loaded_rank_is_one_line_said_once() -> None:
    loading = Snapshot(version=1, generation=1, state="loading", ranks=[LOADING, LOADED])
    lines = shown(loading, loading, Snapshot(version=2, generation=1, state="ready", ranks=[LOADING, LOADED]))
    assert lines == ["group is loading", "  rank 1 on 10.0.0.2 holds 1 MiB after 1.5 s", "group is ready"]


def test_a_restart_is_shown_with_its_reason_and_its_generation() -> None:
    reason = "rank 1's process died: a reason that is longer than the terminal is wide"
    broken = Snapshot(version=1, generation=1, state="restarting", last_failure=reason)
    again = Snapshot(version=2, generation=2, state="loading", last_failure=reason)
    assert shown(broken, again) == [f"group is restarting: {reason}", "group is loading, generation 2"]


def test_the_status_table_shows_each_rank() -> None:
    text = io.StringIO()
    ranks = [{"rank": 0, "node_id": "abcdef" * 7, "ip": "10.0.0.1", "pid": 42, "device": "cpu", "shard_bytes": 3 * MIB}]
    status = {
        "name": "gangway",
        "model": "tiny",
        "state": "ready",
        "generation": 2,
        "restarts": 1,
        "last_failure": "rank 1 died",
        "queue": {"running": 3, "waiting": 4},
        "kv": {"blocks_used": 5, "blocks_total": 6},
        "ranks": ranks,
    }
    print_status(status, Console(file=text, width=120))
    for fact in ("tiny is ready, generation 2", "rank 1 died", "3 running, 4 waiting, 5 of 6", "42", "3 MiB"):
        assert fact in text.getvalue()
