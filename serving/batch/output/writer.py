"""What is done for good: the output so far, and a checkpoint that says how far it counts.

Beside OUTPUT lie OUTPUT.partial and OUTPUT.progress. Rows are added to the first; then the second is replaced
atomically. Whatever lies in the first beyond what the second counts was never promised, and is cut off at the next
start; what it counts is held against its checksum there, and again in the end. The final name appears at once, after
the checkpoint has said that all is there; the checkpoint stays, so that a second start of the same command finds its
work done. `decide` holds every case; one writer at a time.

How that is done where OUTPUT lies is a store's: `disk` for a local file, `objects` for any other place.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import msgspec

from serving.batch.location import UNUSABLE, Place
from serving.batch.output.checkpoint import Found, Progress, damaged, decide, last_good
from serving.batch.output.local import Disk
from serving.batch.output.object_store import Objects
from serving.batch.rows import Result
from serving.errors import OperatorError


class Store(Protocol):
    """The files of one output. What the file system refuses is raised as it comes."""

    save_interval_s: float
    """Between two checkpoints. What a kill costs is that much again, and the rows under way."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold other commands off, as far as the place can tell of them. Raises `OperatorError`."""

    def look(self) -> Found:
        """What lies there now. Raises `OperatorError` when the checkpoint cannot be read."""

    def blocks(self) -> Iterator[bytes]:
        """The lines that lie there, in order, as far as nothing is missing."""

    def begin(self, progress: Progress) -> None:
        """Write the checkpoint, and cut off all lines beyond it. Once, before the other three."""

    def append(self, line: bytes) -> None:
        """Take a line; it need not last yet."""

    def keep(self, progress: Progress) -> None:
        """Make all lines last, then the checkpoint that counts them."""

    def name(self, progress: Progress) -> None:
        """Give the output its name; `progress` has been kept. Raises `OperatorError` when the lines are others."""

    def close(self) -> None:
        """Let go; what was not kept may be lost."""

    def settle(self, progress: Progress) -> bool:
        """Whether the output holds the bytes that `progress` counts. Then nothing but it and its checkpoint is left."""


class Ledger:
    """The files of one job, open for writing. Use `open_ledger`."""

    def __init__(self, place: Place, store: Store, progress: Progress) -> None:
        self.progress = progress
        self.saved = progress
        """What a second start would go on from."""
        self.save_interval_s = store.save_interval_s
        self._place = place
        self._store = store
        self._saving = threading.Lock()

    def append(self, result: Result, end: int) -> None:
        """Take the next row's line. It counts from the next `save` on."""
        with _writing(self._place):
            self._store.append(result.line)
        self.progress = self.progress.after(result, end)

    def save(self) -> None:
        """Make all that was appended last. From any thread; a second one waits, and finds it done."""
        with self._saving:
            if self.progress == self.saved:
                return
            progress = self.progress.remembering(self.saved)
            with _writing(self._place):
                self._store.keep(progress)
            self.progress = self.saved = progress

    def finish(self) -> None:
        """All rows are here: the output gets its name."""
        self.progress = msgspec.structs.replace(self.progress, complete=True)
        self.save()
        with _writing(self._place):
            self._store.name(self.progress)


@contextmanager
def open_ledger(place: Place, job: str, *, resume: bool, overwrite: bool) -> Iterator[Ledger | None]:
    """The ledger, at the row where the job stands; None when there is nothing left to do.

    Raises `OperatorError` when it cannot be written, when another command writes it, and as `decide` does.
    """
    store: Store = Disk(place) if place.is_local else Objects(place)
    with ExitStack() as stack:
        with _writing(place):
            stack.enter_context(store.locked())
            stack.enter_context(_closing(place, store))
            ledger = _open(place, store, job, resume=resume, overwrite=overwrite)
        yield ledger


@contextmanager
def _closing(place: Place, store: Store) -> Iterator[None]:
    try:
        yield
    finally:
        with _writing(place):
            store.close()


def _open(place: Place, store: Store, job: str, *, resume: bool, overwrite: bool) -> Ledger | None:
    found = store.look()
    start = decide(found, job, resume=resume, overwrite=overwrite)
    known = found.progress
    if start == "done" and known is not None:
        if not store.settle(known):
            raise OperatorError(f"{place} exists, and is not what this job wrote; --overwrite replaces it")
        return None
    progress = Progress(job=job)
    if start != "begin" and known is not None:
        good = last_good(store.blocks(), known.marks())
        whole = good.bytes == known.bytes
        if not (whole or resume or overwrite):
            raise OperatorError(damaged(f"{place}.partial"))
        progress = known.back_to(good, job) if whole or resume else progress
        start = start if whole else "go on"
    store.begin(progress)
    ledger = Ledger(place, store, progress)
    if start == "rename":
        ledger.finish()
        return None
    return ledger


@contextmanager
def _writing(place: Place) -> Iterator[None]:
    """What the file system refuses becomes a sentence."""
    try:
        yield
    except UNUSABLE as error:
        raise place.cannot("write", error) from error
