"""What `gangway batch` does: form the group, run the rows through it, and take it down.

The same supervisor, Train run and engine as `gangway serve`, without a Serve application: this process holds the
gateway's service, whose journal carries what is under way over a restart of the group. Ray ends the group with this
command, however that ends.
"""

import asyncio
import signal
import uuid
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from serving.batch.display import BatchDisplay, Meter
from serving.batch.in_process import application
from serving.batch.input.jsonl import Source
from serving.batch.input.parquet import ParquetSource
from serving.batch.job import Job
from serving.batch.job_config import MAX_SEQUENCES
from serving.batch.output.checkpoint import Progress
from serving.batch.output.writer import Ledger
from serving.batch.rows import Task
from serving.config import Config
from serving.errors import GroupFailed, OperatorError
from serving.gateway.service import Service
from serving.gateway.tokenizer import Tokenizer
from serving.runtime.command.serve import STOP_TIMEOUT_S
from serving.runtime.error_messages import cause_of_death
from serving.runtime.group.supervisor import find_supervisor, start_supervisor
from serving.runtime.ray_cluster.capacity import require_room
from serving.runtime.registry.client import RegistryClient, RegistryGroupView, open_registry

LOOK_S = 0.5
TELL_S = 5.0
ROWS_PER_PLACE = 4
"""Rows asked ahead for each that the scheduler computes together."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: what is written counts, and the same command goes on."""


class BatchGroup:
    """The group, as a context: begun on the way in, ended on the way out. Must be used inside a Ray session."""

    def __init__(self, config: Config, *, embedded: bool) -> None:
        self._config = config
        self._embedded = embedded
        self._registry = RegistryClient(config.name)
        self._supervisor: Any = None
        self._outcome: Any = None

    def __enter__(self) -> "BatchGroup":
        require_room(self._config)
        name = self._config.name
        if find_supervisor(name) is not None:
            raise OperatorError(f"a group named {name} already runs on this cluster; give this job another name")
        self._registry.remove()
        open_registry(self._config).own(uuid.uuid4().hex, brought_serve=False)
        self._supervisor = start_supervisor(self._config, batch=True)
        self._outcome = self._supervisor.outcome.remote()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RayActorError, GetTimeoutError, ValueError):  # it has just ended by itself
            self._registry.stop()
        ray.wait([self._outcome], timeout=STOP_TIMEOUT_S)
        if not self._embedded:
            ray.kill(self._supervisor)
            self._registry.remove()

    def advance(self, saved: Progress) -> None:
        """Tell the group, and through it Ray Train, how far the job is."""
        names = "rows", "failed", "prompt_tokens", "completion_tokens"
        with suppress(ValueError, RayError):  # nothing depends on it, and the next one says it too
            self._registry.advance({name: getattr(saved, name) for name in names})

    async def end(self) -> None:
        """Wait for the group's end, which is a failure: nobody has told it to. Raises `GroupFailed`."""
        try:
            reason = await asyncio.wrap_future(self._outcome.future())
        except RayActorError as error:
            raise GroupFailed(f"the supervisor of the group died: {cause_of_death(error)}") from error
        raise GroupFailed(reason or "the group has ended without being told to")


async def run_batch(
    config: Config,
    source: Source | ParquetSource,
    ledger: Ledger,
    group: BatchGroup,
    display: BatchDisplay,
    meter: Meter,
    task: Task,
) -> None:
    """Run the rows that are left. Raises `GroupFailed`, `OperatorError`, or `Interrupted`."""
    service = Service(config, Tokenizer(config.model), RegistryGroupView(config.name))
    begun = ledger.progress
    rows = source.rows(begun.rows, begun.offset)
    window = min(ROWS_PER_PLACE * config.engine.max_running, MAX_SEQUENCES)
    job = Job(rows, application(service, config).post, ledger, window, task)
    await service.start()
    watching = [asyncio.create_task(_watch(service, ledger, display)), asyncio.create_task(_tell(group, ledger))]
    try:
        await _first_of(_once_ready(service, job, meter), group.end(), _interrupted())
        await asyncio.to_thread(group.advance, ledger.saved)
    finally:
        for watch in watching:
            watch.cancel()
        await service.stop()


async def _once_ready(service: Service, job: Job, meter: Meter) -> None:
    while not service.ready:  # noqa: ASYNC110  its state is worked out from clocks, and no event of its own
        await asyncio.sleep(LOOK_S / 5)
    meter.start()
    await job.run()
    meter.stop()


async def _watch(service: Service, ledger: Ledger, display: BatchDisplay) -> None:
    while True:
        if service.uplink.snapshot is not None:
            display.group(service.uplink.snapshot)
        if service.uplink.ever_ready:
            display.rows(ledger.progress)
        await asyncio.sleep(LOOK_S)


async def _tell(group: BatchGroup, ledger: Ledger) -> None:
    told: Progress | None = None
    while True:
        if ledger.saved != told:
            told = ledger.saved
            await asyncio.to_thread(group.advance, told)
        await asyncio.sleep(TELL_S)


async def _interrupted() -> None:
    """Wait for a signal. Set after Ray has set its own handlers."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()
    raise Interrupted


async def _first_of(*works: Any) -> None:
    """The end of whichever ends first; the others are cancelled, and waited for."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
