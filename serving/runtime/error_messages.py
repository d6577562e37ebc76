"""Why something broke, as one sentence for the person who has to act, out of what Ray and gloo say at length."""

import re

from serving.addresses import shown_in

GLOO_ADVICE = "This is typically caused by"
"""Begins what gloo adds to every lost connection."""

EXIT_DETAIL = "Worker exit detail: "
COMMON_CAUSES = "Some common causes"
"""Around what Ray knows of a process that died."""

IN_CREATION = "error raised in its creation task"
"""Ray says so of an actor whose construction failed, and adds the whole traceback."""
RAISED = re.compile(r"^(?:\w+\.)*(\w+: .+)$", re.MULTILINE)
"""The line of a traceback that names an exception and says what it says; the last one is of the one that ended it."""


def first_line(error: BaseException) -> str:
    """An error as one line: its type and the first line of its text. Of an error from another process: its cause's."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return first_line(cause)
    lines = str(error).partition(GLOO_ADVICE)[0].strip().splitlines()
    return f"{type(error).__name__}: {shown_in(lines[0])}" if lines else type(error).__name__


def cause_of_death(error: BaseException) -> str:
    """What Ray knows of an actor's process that died, or why the actor could not be made."""
    said = str(error)
    if IN_CREATION in said and (raised := RAISED.findall(said)):
        return shown_in(raised[-1])
    text = " ".join(said.split())
    return shown_in(text.partition(EXIT_DETAIL)[2].partition(COMMON_CAUSES)[0].strip() or text)
