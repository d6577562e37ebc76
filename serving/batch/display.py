"""What a person sees of a job: the group's state in lines, and below them how far it is; without a terminal, lines."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from serving.batch.output.checkpoint import Progress
from serving.messages import Snapshot
from serving.runtime.command.display import PlainDisplay

LINE_INTERVAL_S = 10.0
"""Between two lines of progress where there is no terminal."""


class Meter:
    """Speed while this command computes; the input's bytes stand for the rows nobody has counted."""

    def __init__(self, begun: Progress, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`size` of the input in bytes."""
        self._begun = begun
        self._size = size
        self._clock = clock
        self._began_at: float | None = None
        self._ended_at: float | None = None

    def start(self) -> None:
        """From now on there is something that computes."""
        self._began_at = self._clock()

    def stop(self) -> None:
        """The last row is written; the group has yet to be taken down."""
        self._ended_at = self._clock()

    def line(self, now: Progress) -> str:
        """How far, and how fast."""
        rows, tokens = now.rows - self._begun.rows, now.completion_tokens - self._begun.completion_tokens
        seconds = self._seconds()
        speed = f"{rows / seconds:.1f} rows/s, {tokens / seconds:.1f} tokens/s"
        text = f"{now.rows} rows, {now.offset / self._size:.0%}, {speed}"
        return text + (f", {now.failed} with an error" if now.failed else "")

    def summary(self, now: Progress) -> str:
        """What there is in the end."""
        tokens = now.completion_tokens - self._begun.completion_tokens
        seconds = self._seconds()
        text = (
            f"{now.rows} rows, {now.failed} with an error; {now.prompt_tokens} prompt tokens, "
            f"{now.completion_tokens} computed; {seconds:.1f} s, {tokens / seconds:.1f} tokens/s"
        )
        return text + (f", after {self._begun.rows} rows of an earlier start" if self._begun.rows else "")

    def _seconds(self) -> float:
        if self._began_at is None:
            return 1e-3
        return max(1e-3, (self._ended_at or self._clock()) - self._began_at)


class BatchDisplay:
    """Shows both."""

    def __init__(self, plain: PlainDisplay, bar: Bar | None, meter: Meter, size: int) -> None:
        self._plain = plain
        self._bar = bar
        self._meter = meter
        self._task = bar.add_task("loading", total=size) if bar else None
        self._told_at = time.monotonic()

    def group(self, snapshot: Snapshot) -> None:
        """The group may have changed."""
        self._plain.show(snapshot)

    def rows(self, progress: Progress) -> None:
        """The job may have advanced."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.offset, description=self._meter.line(progress))
        elif time.monotonic() - self._told_at >= LINE_INTERVAL_S:
            self._told_at = time.monotonic()
            self._plain.say(self._meter.line(progress))

    def say(self, line: str) -> None:
        """One line for good."""
        self._plain.say(line)


@contextmanager
def make_batch_display(meter: Meter, size: int, *, verbose: bool) -> Iterator[BatchDisplay]:
    """A bar in a terminal, lines elsewhere. Unless `verbose`, what Ray prints of other processes is left out."""
    console = Console(file=sys.stdout)
    with ExitStack() as stack:
        if not verbose:
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        bar = None
        if console.is_terminal:
            columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
            bar = stack.enter_context(Bar(*columns, console=console, transient=True, redirect_stdout=False))
        yield BatchDisplay(PlainDisplay(console), bar, meter, size)
