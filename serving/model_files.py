"""JSON files of a model's folder, which anybody may have written: an object, or a `ModelError` in one sentence."""

import json
from pathlib import Path
from typing import Any

from serving.errors import ModelError

MAX_JSON_BYTES = 100_000_000
"""Indexes of the largest models have some MB."""
MAX_SHOWN = 200
"""Characters of a value that a sentence quotes."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; `ModelError` naming the file otherwise."""
    try:
        if not file.exists():
            raise ModelError(f"{file}: no such file")
        if not file.is_file() or (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise ModelError(f"{file}: cannot be read as JSON: not a file of at most {MAX_JSON_BYTES} bytes")
        with file.open("rb") as stream:
            content = json.loads(stream.read(size).decode())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{file}: cannot be read as JSON: {shown(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def shown(value: object) -> str:
    """What a file says, or what is said of it, as a part of a sentence: one line of printable characters, not long."""
    text = (str(value) or repr(value)).strip().partition("\n")[0]
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
