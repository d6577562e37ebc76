"""Finds the request that breaks the group, before it has used up every restart that the group may have.

Whatever was on the link of two generations that broke is a *suspect*. Suspects run one at a time with nothing else on
the link, and are cleared once they have come a little further than where they were. One that breaks the group alone
twice is a *culprit*: it is answered with an error and never submitted again, nor is an equal request. With the default
`fault.max_restarts` of 5 that is found in time: two breaks among others, two alone.

Pure decisions over the journal's entries: no I/O, no clock. What is known of culprits ends with this process.
"""

import hashlib
import secrets
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from serving.errors import RequestBreaksGroup
from serving.gateway.journal import Entry, State
from serving.messages import RequestId

TRIAL_TOKENS = 8
"""Tokens beyond those it had that clear a suspect: what breaks a group may take effect a few steps after its cause."""
BREAKS_ALONE = 2
"""One might be chance: a rank may die of anything while a suspect runs."""
_KEPT = 1024
"""Digests of culprits; the oldest goes first."""
_SHOWN = 16


class Culprit(msgspec.Struct, frozen=True, kw_only=True):
    """A request that broke the group alone, by its id and sizes: its text is nobody's business."""

    id: RequestId
    prompt_tokens: int
    completion_tokens: int
    """Tokens it had when it broke the group for the last time."""


class Suspects:
    """Who may be put on the link, who was there when a generation broke, and who is refused."""

    def __init__(self) -> None:
        self.culprits: deque[Culprit] = deque(maxlen=_SHOWN)
        """The newest ones."""
        self.culprits_total = 0
        self._key = secrets.token_bytes(32)
        self._refused: dict[bytes, None] = {}

    def check(self, entries: Iterable[Entry]) -> None:
        """Raise `RequestBreaksGroup` if one of them equals a culprit: prompt and parameters, whatever the seed."""
        if self._refused and any(self.digest(entry) in self._refused for entry in entries):
            raise refusal("an equal request has broken the group")

    def admissible(self, entries: Sequence[Entry]) -> list[Entry]:
        """Of all live entries those that may be put on the link now: every one that waits, or one suspect alone."""
        suspects = [entry for entry in entries if entry.suspect]
        if not suspects:
            return [entry for entry in entries if entry.state is State.WAITING]
        if any(entry.state is not State.WAITING for entry in entries):
            return []
        return [max(suspects, key=lambda entry: entry.breaks_alone)]

    def blame(self, entries: Sequence[Entry]) -> list[Entry]:
        """A generation broke while these were on its link; returns the culprits."""
        culprits = []
        for entry in entries:
            entry.breaks_alone += entry.suspect
            entry.breaks += 1
            entry.broke_at = len(entry.emitted)
            if entry.breaks_alone == BREAKS_ALONE:
                culprits.append(entry)
        return culprits

    def condemn(self, entry: Entry) -> RequestBreaksGroup:
        """Remember a culprit; returns what its client is told."""
        self._refused[self.digest(entry)] = None
        while len(self._refused) > _KEPT:
            del self._refused[next(iter(self._refused))]
        sizes = {"prompt_tokens": len(entry.prompt), "completion_tokens": len(entry.emitted)}
        self.culprits.append(Culprit(id=entry.id, **sizes))
        self.culprits_total += 1
        return refusal("this request has broken the group each time that it ran alone")

    def clears(self, entry: Entry) -> bool:
        """Whether a suspect has come far enough; if so it is none any more."""
        if not entry.suspect or len(entry.emitted) < entry.broke_at + TRIAL_TOKENS:
            return False
        entry.breaks = entry.breaks_alone = 0
        return True

    def equals(self, culprit: Entry, entries: Iterable[Entry]) -> list[Entry]:
        """Those that would be refused now, the culprit among them."""
        digest = self.digest(culprit)
        return [entry for entry in entries if self.digest(entry) == digest]

    def digest(self, entry: Entry) -> bytes:
        """Of what is computed, keyed so that it tells nobody what that was."""
        sampling = msgspec.structs.replace(entry.sampling, seed=0)
        computed = msgspec.msgpack.encode((entry.prompt, sampling, entry.pooling))
        return hashlib.blake2b(computed, key=self._key, digest_size=16).digest()


def refusal(reason: str) -> RequestBreaksGroup:
    """The error of a culprit, and of one that equals it."""
    return RequestBreaksGroup(f"{reason}: it is not computed again", code="request_breaks_group")
