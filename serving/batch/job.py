"""Keeps the group full and the output in order: rows are asked ahead, and written when their turn has come.

The rows under way are a window over the input, so memory does not grow with the number of rows. One that takes longer
than all others holds up the writing, and with a window of several times what the scheduler computes together, hardly
the computing.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

from serving.batch.output.writer import Ledger
from serving.batch.rows import GENERATE, Call, Result, Row, Task, read_row

Ask = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
"""Path and body of a request to the status and body of its answer."""

READ_AT_ONCE = 32
"""Most rows read in one go, in a thread: the input may be far away. A quarter of a window that is small."""
RETRY_S = 0.25
LATER = frozenset({429, 503})
"""Statuses that say nothing about the row: there is no room now, or no group."""


class Job:
    """One run over the rows that are left."""

    def __init__(self, rows: Iterator[Row], ask: Ask, ledger: Ledger, window: int, task: Task = GENERATE) -> None:
        """`window`: most rows that are asked and not written."""
        self._rows = rows
        self._ask = ask
        self._ledger = ledger
        self._window = window
        self._task = task
        self._under_way: deque[tuple[Row, asyncio.Task[Result]]] = deque()
        self._exhausted = False
        self._saved_at = time.monotonic()

    async def run(self) -> None:
        """Until all rows are written and the output has its name. Cancelled, it leaves a checkpoint of all it wrote."""
        try:
            while await self._fill():
                await self._write()
        finally:
            for _, task in self._under_way:
                task.cancel()
            self._ledger.save()
        self._ledger.finish()

    async def _fill(self) -> bool:
        """Ask ahead as far as the window goes; whether any row is left to write."""
        count = min(READ_AT_ONCE, max(1, self._window // 4))
        while not self._exhausted and len(self._under_way) + count <= self._window:
            rows = await asyncio.to_thread(lambda: list(islice(self._rows, count)))
            self._exhausted = not rows
            self._under_way.extend((row, asyncio.create_task(self._answer(row))) for row in rows)
        return bool(self._under_way)

    async def _write(self) -> None:
        """Write the next row, and those after it that are answered too."""
        await asyncio.wait({self._under_way[0][1]})
        while self._under_way and self._under_way[0][1].done():
            row, task = self._under_way.popleft()
            self._ledger.append(task.result(), row.end)
        if time.monotonic() - self._saved_at >= self._ledger.save_interval_s:
            await asyncio.to_thread(self._ledger.save)
            self._saved_at = time.monotonic()

    async def _answer(self, row: Row) -> Result:
        call: Call = read_row(row, self._task)
        if call.refusal is not None:
            return call.refused()
        while True:
            status, answer = await self._ask(call.path, call.body)
            if status not in LATER:
                return call.result(status, answer)
            await asyncio.sleep(RETRY_S)
