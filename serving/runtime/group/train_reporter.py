"""Tells Ray Train how far a batch job is, so that its `Result` and checkpoints show it.

A report waits for all ranks, so each rank reports from a thread of its own and never holds up a step. What the job goes
on from is its own ledger, which knows every row; these reports follow it, seconds later.
"""

import json
import logging
import os
import tempfile
import threading
from pathlib import Path

import ray.train
from ray.train.collective import broadcast_from_rank_zero

from serving.runtime.error_messages import first_line
from serving.runtime.registry.client import UNREACHABLE, RegistryClient

INTERVAL_S = 10.0
LAST_REPORT_S = 20.0
"""Longest that the group's end waits for the last report: a peer that is gone never makes it."""
FILE = "progress.json"
"""What a checkpoint holds."""

logger = logging.getLogger(__name__)


class Reporter:
    """Reports inside its `with` block, on every rank of a batch group; the last one at the block's end."""

    def __init__(self, registry: RegistryClient, rank: int, interval_s: float = INTERVAL_S) -> None:
        self._registry = registry
        self._leads = rank == 0
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if kind is None:  # a group that broke reports no more
            self._thread.join(LAST_REPORT_S)

    def _run(self) -> None:
        try:
            last = False
            while not last:
                progress, last = broadcast_from_rank_zero(self._next() if self._leads else None)
                if progress is not None:
                    self._report(progress)
        except Exception as error:  # the job does not depend on it
            logger.warning("Ray Train is told no more how far the job is: %s", first_line(error))

    def _next(self) -> tuple[dict[str, int] | None, bool]:
        """Rank 0: what is to be reported now, and whether it is the last."""
        last = self._over.wait(self._interval_s)
        try:
            return self._registry.changed().progress, last
        except UNREACHABLE:
            return None, last

    def _report(self, progress: dict[str, int]) -> None:
        """Together with all ranks. Rank 0 adds a checkpoint, if it reaches the run's folder on the command's node."""
        run = Path(ray.train.get_context().get_storage().experiment_fs_path)
        if not self._leads or not run.is_dir() or run.stat().st_uid != os.getuid():
            ray.train.report(progress)
            return
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FILE).write_text(json.dumps(progress))
            ray.train.report(progress, checkpoint=ray.train.Checkpoint.from_directory(folder))
