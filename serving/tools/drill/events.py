"""Reads server-sent events. Lines end at LF alone: a text may hold what Unicode, or Python, takes for a line's end."""

from collections.abc import AsyncIterator

_FIELD = b"data: "


async def data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event, as soon as its line is there; comments and the rest of an event are left out."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(_FIELD):
                yield line.removeprefix(_FIELD).removesuffix(b"\r")
