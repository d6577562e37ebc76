"""What the registry shows of one rank, told from whichever of the rank's threads learns it."""

import logging
import threading
import time
from typing import Protocol

import msgspec
import psutil

from serving.messages import RankInfo
from serving.runtime.error_messages import first_line
from serving.runtime.registry.client import UNREACHABLE

PROGRESS_INTERVAL_S = 0.25
RSS_STEP_BYTES = 16 * 1024 * 1024
"""A change of memory that is worth telling."""

logger = logging.getLogger(__name__)


class Reports(Protocol):
    """The part of `RegistryClient` that this needs."""

    def report(self, generation: int, info: RankInfo) -> None: ...


class Standing:
    """One rank's `RankInfo`, changed and told under one lock: what is told last is what holds."""

    def __init__(self, registry: Reports, generation: int, info: RankInfo) -> None:
        self.info = info
        self._registry = registry
        self._generation = generation
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._told = 0.0

    def tell(self, **facts: object) -> None:
        """Change fields of `RankInfo`. A registry that cannot be reached is told the next time."""
        with self._lock:
            rss = psutil.Process().memory_info().rss
            self.info = msgspec.structs.replace(self.info, rss_bytes=rss, **facts)
            try:
                self._registry.report(self._generation, self.info)
            except UNREACHABLE as error:
                logger.warning("cannot reach the registry: %s", first_line(error))

    def progress(self, loaded: int, total: int) -> None:
        """Bytes of this rank's shard read so far; told at most a few times a second."""
        now = time.monotonic()
        if loaded >= total or now - self._told >= PROGRESS_INTERVAL_S:
            self._told = now
            self.tell(shard_bytes=total, loaded_bytes=loaded, load_seconds=now - self._began)

    def refresh_rss(self) -> None:
        """Tell the registry when this process has grown or shrunk noticeably."""
        if abs(psutil.Process().memory_info().rss - self.info.rss_bytes) >= RSS_STEP_BYTES:
            self.tell()
