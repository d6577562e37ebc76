"""What a person sees in the terminal: the ranks loading, the group's state, and the table of `gangway status`."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from serving.logs import set_up
from serving.messages import RankInfo, Snapshot

MIB = 1024 * 1024

logger = logging.getLogger(__name__)


class PlainDisplay:
    """Lines, for logs and pipes: each change of state, and each rank when it has loaded."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = ""
        self._loaded: set[tuple[int, int]] = set()

    def show(self, snapshot: Snapshot) -> None:
        """Print what is new."""
        state = state_line(snapshot)
        if state != self._state:
            self._state = state
            self.say(state)
        for rank in snapshot.ranks:
            key = (snapshot.generation, rank.rank)
            if has_loaded(rank) and key not in self._loaded:
                self._loaded.add(key)
                self.say(loaded_line(rank))

    def say(self, line: str) -> None:
        """Print one line, unbroken."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


class LoggedDisplay(PlainDisplay):
    """The same lines as log records, for a log collector."""

    def say(self, line: str) -> None:
        logger.info("%s", line.strip())


class LiveDisplay(PlainDisplay):
    """The same, with a bar for each rank while it loads."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console)
        self._progress = progress
        self._bars: dict[int, TaskID] = {}

    def show(self, snapshot: Snapshot) -> None:
        super().show(snapshot)
        for rank in snapshot.ranks:
            if snapshot.state != "loading" or has_loaded(rank):
                self._remove(rank.rank)
            else:
                self._update(rank)

    def _update(self, rank: RankInfo) -> None:
        if rank.rank not in self._bars:
            self._bars[rank.rank] = self._progress.add_task(f"rank {rank.rank} on {rank.ip}", total=None)
        self._progress.update(
            self._bars[rank.rank], completed=rank.loaded_bytes, total=rank.shard_bytes if rank.shard_bytes else None
        )

    def _remove(self, rank: int) -> None:
        if rank in self._bars:
            self._progress.remove_task(self._bars.pop(rank))


@contextmanager
def make_display(*, verbose: bool, as_json: bool = False) -> Iterator[PlainDisplay]:
    """A live display in a terminal, lines elsewhere, JSON if `as_json`. Unless `verbose`, stdout gets nothing else.

    Ray prints what it has to say about other processes there; it is in its log files as well.
    """
    console = Console(file=sys.stdout)
    with ExitStack() as stack:
        if as_json:
            set_up("command", as_json=True, stream=sys.stdout)
        if not verbose:
            elsewhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(elsewhere))
        if as_json or not console.is_terminal:
            yield LoggedDisplay(console) if as_json else PlainDisplay(console)
            return
        columns = TextColumn("  {task.description}"), BarColumn(), DownloadColumn(binary_units=True)
        progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, redirect_stdout=False)
        yield LiveDisplay(console, stack.enter_context(progress))


def has_loaded(rank: RankInfo) -> bool:
    """Whether all of the rank's shard is in its memory."""
    return 0 < rank.shard_bytes == rank.loaded_bytes


def state_line(snapshot: Snapshot) -> str:
    """The group's state in a few words, with the reason when something broke."""
    line = f"group is {snapshot.state}"
    if snapshot.generation > 1:
        line += f", generation {snapshot.generation}"
    if snapshot.state in {"restarting", "failed"} and snapshot.last_failure:
        line += f": {snapshot.last_failure}"
    return line


def loaded_line(rank: RankInfo) -> str:
    """One rank that has loaded: bytes and seconds."""
    return f"  rank {rank.rank} on {rank.ip} holds {rank.shard_bytes / MIB:.0f} MiB after {rank.load_seconds:.1f} s"


def print_status(status: Mapping[str, Any], console: Console | None = None) -> None:
    """The answer of /v1/status: a line on the group, one on its load, and a table of its ranks."""
    console = console or Console()
    line = f"{status['name']}: {status['model']} is {status['state']}, generation {status['generation']}"
    if status["restarts"]:
        line += f", {status['restarts']} restarts, the last after: {status.get('last_failure')}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)
    queue, kv = status["queue"], status["kv"]
    console.print(
        f"{queue['running']} running, {queue['waiting']} waiting, "
        f"{kv['blocks_used']} of {kv['blocks_total']} KV blocks used",
        highlight=False,
    )
    console.print(_rank_table([msgspec.convert(rank, RankInfo) for rank in status["ranks"]]))


def _rank_table(ranks: list[RankInfo]) -> Table:
    table = Table("rank", "node", "address", "pid", "device", "shard", "loaded", "memory", box=box.SIMPLE)
    for rank in ranks:
        loaded = f"in {rank.load_seconds:.1f} s" if has_loaded(rank) else f"{rank.loaded_bytes / MIB:.0f} MiB"
        shard, memory = (f"{size / MIB:.0f} MiB" for size in (rank.shard_bytes, rank.rss_bytes))
        row = str(rank.rank), rank.node_id[:8], rank.ip, str(rank.pid), rank.device, shard, loaded, memory
        table.add_row(*row)
    return table
