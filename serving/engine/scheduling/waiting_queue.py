"""The requests that wait to run, in their order."""

import heapq

from serving.engine.scheduling.request import Request, State


class WaitingQueue:
    """Waiting requests by `Request.order`.

    An ended request stays in the heap until it surfaces or half of the heap is dead, so each operation costs
    O(log n) on average and memory is bounded by the living.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Request]] = []
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (*request.order, request))

    def head(self) -> Request | None:
        """The next to run; stays in the queue."""
        while self._heap and self._heap[0][2].state is State.ENDED:
            heapq.heappop(self._heap)
            self._dead -= 1
        return self._heap[0][2] if self._heap else None

    def pop(self) -> None:
        """Take out what `head` returned."""
        heapq.heappop(self._heap)

    def discard(self) -> None:
        """Note that one request in the queue has ended."""
        self._dead += 1
        if 2 * self._dead > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].state is not State.ENDED]
            heapq.heapify(self._heap)
            self._dead = 0
