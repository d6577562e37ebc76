"""How many parameters a model folder holds, from the headers or the index of its safetensors files. Reads no tensor."""

import json
import math
from pathlib import Path
from typing import Any

from cluster.errors import ShapeError

INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def stored_parameters(folder: Path, bytes_each: int) -> int | None:
    """Parameters in `folder`'s files; by its index where the files are not there; None where neither is.

    `bytes_each`: size of a parameter, to read the index's `total_size` by. Raises `ShapeError` for files that are not
    safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return sum(map(_in_header, files))
    index = folder / INDEX
    if not index.is_file():
        return None
    size = read_json(index).get("metadata", {}).get("total_size")
    return int(size) // bytes_each if isinstance(size, int | float) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ShapeError` for anything else, naming the file."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShapeError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ShapeError(f"{path}: expected an object, found {type(tree).__name__}")
    return tree


def _in_header(file: Path) -> int:
    """Elements of all tensors of one file: 8 bytes of length, then a JSON header (the safetensors README)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length < LARGEST_HEADER else b"")
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShapeError(f"{file}: is not a safetensors file") from error
