"""Notices within seconds that a peer is gone, whatever this rank is doing: in a step, in a collective, or idle.

A broadcast tells its root nothing of the others, and a collective of the model may rightly wait for long. So a thread
of its own sums one number over all ranks twice a second, over a gloo group of its own with the peer timeout. A peer
whose process has ended breaks the connection at once; one that is stopped or cut off does not answer in time.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist

INTERVAL_S = 0.5


class Heartbeat:
    """Beats inside its `with` block, on every rank. The block's orderly end waits for that of all ranks."""

    def __init__(self, timeout_s: float, on_loss: Callable[[str], None]) -> None:
        """Collective over the default group. `on_loss(reason)` is called once, from the thread."""
        self._world = dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._on_loss = on_loss
        self._leaving = threading.Event()
        self._broken = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave together; a rank that has failed leaves alone, and its peers take that for a loss."""
        if error is None:
            self._leaving.set()
            self._thread.join()
        else:
            self._broken.set()

    def _beat(self) -> None:
        leaving = 0
        while leaving < self._world and not self._broken.wait(0 if self._leaving.is_set() else INTERVAL_S):
            count = torch.tensor([int(self._leaving.is_set())])
            try:
                dist.all_reduce(count, group=self._group)
            except RuntimeError as error:
                if not self._broken.is_set():
                    self._on_loss(f"a rank did not answer: {error}")
                return
            leaving = int(count)
