"""Finds stop strings in a text that comes in pieces, and never gives out a character that may belong to one."""

from collections.abc import Sequence


class StopFinder:
    """Cuts one sequence's text before the first stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty strings."""
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Text that may be given out, and whether a stop string was found (then it is the last)."""
        text = self._held + piece
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        certain = len(text) - self._may_begin_a_stop(text)
        self._held = text[certain:]
        return text[:certain], False

    def flush(self) -> str:
        """What was held back, when the sequence ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _may_begin_a_stop(self, text: str) -> int:
        """Length of the longest end of `text` that is a stop string's beginning."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for start in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return len(text) - start
        return 0
