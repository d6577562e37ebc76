"""`python -m cluster.manifests.pod_output FOLDER [--json]`, in every pod: what the server's processes write, on the
pod's own output, where `kubectl logs` and a cluster's collector look.

Ray lets each process write into a file of its own in its session's folder. Told are the command that serves (the
driver of a job) and the processes of actors: ranks, the gateway, Serve; not Ray's own daemons. With --json a line that
is no JSON object itself is wrapped into one with the same keys as ours (`serving.logs`). Standard library only, as
each pod has one of these beside its ranks; killed with the container, so that the last half second may be missing.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

PATTERNS = ("job-driver-*.log", "worker-*.err", "worker-*.out")
MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Lines that Ray writes for its own log monitor."""

POLL_S = 0.5
SILENT_POLLS = 120
"""Looks without a new line after which a file is closed; one that grows again is opened again."""

LONGEST_LINE = 256 * 1024
"""Bytes; a longer line is told in pieces."""


class Source:
    """One file that grows; it may be moved away and begun again. Open only while it grows: dead ranks' files stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._inode = 0
        self._position = 0
        self._waiting = b""
        self._silent = 0

    def lines(self) -> Iterator[str]:
        """Whole lines that have come since the last time."""
        try:
            there = self.path.stat()
        except OSError:
            return
        if there.st_ino != self._inode or there.st_size < self._position:
            yield from self._read()
            self.close()
            self._inode, self._position = there.st_ino, 0
        if self._file is None and there.st_size > self._position:
            self._file = self.path.open("rb")
            self._file.seek(self._position)
        yield from self._read()

    def _read(self) -> Iterator[str]:
        before = self._position
        while self._file is not None and (chunk := self._file.read(LONGEST_LINE)):
            self._position += len(chunk)
            *whole, self._waiting = (self._waiting + chunk).split(b"\n")
            if len(self._waiting) >= LONGEST_LINE:
                whole, self._waiting = [*whole, self._waiting], b""
            yield from (line.decode(errors="replace") for line in whole)
        self._silent = self._silent + 1 if self._position == before else 0
        if self._silent >= SILENT_POLLS:
            self.close()

    def close(self) -> None:
        """Let go of the file until it grows."""
        if self._file is not None:
            self._file.close()
            self._file = None


def follow(folder: Path, say: Callable[[str], object], *, as_json: bool, pause: Callable[[float], object]) -> None:
    """Tell each line once, for ever, of files that are there or come."""
    sources: dict[Path, Source] = {}
    while True:
        for path in sorted(path for pattern in PATTERNS for path in folder.glob(pattern)):
            for line in sources.setdefault(path.resolve(), Source(path)).lines():
                if line and not line.startswith(MARKS):
                    say(wrapped(line, path.name) if as_json else line)
        pause(POLL_S)


def wrapped(line: str, place: str) -> str:
    """The line as one JSON object, which ours are already."""
    if line.startswith("{"):
        try:
            json.loads(line)
        except ValueError:
            pass
        else:
            return line
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"time": now, "level": "INFO", "logger": "ray", "message": line, "place": place}
    return json.dumps(fields | {"rank": None, "request_id": None})


def main() -> None:
    """Ends when nobody reads it any more."""
    folder, *options = sys.argv[1:]
    try:
        follow(Path(folder), _write, as_json="--json" in options, pause=time.sleep)
    except BrokenPipeError:
        sys.exit(1)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
