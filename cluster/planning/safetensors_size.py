"""How many parameters a model folder holds, from the headers or the index of its safetensors files. Reads no tensor."""

import json
import math
from pathlib import Path
from typing import Any

from cluster.errors import ShapeError
from serving.model_files import shown

INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
LARGEST_SIZE = 2**63
LARGEST_DIMENSIONS = 32


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
    said = read_json(index).get("metadata")
    size = said.get("total_size") if isinstance(said, dict) else None
    if size is None:
        return None
    if not isinstance(size, int | float) or not 0 < size < LARGEST_SIZE:
        raise ShapeError(f"{index}: total_size is {shown(size)}")
    return int(size) // bytes_each


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ShapeError` for anything else, naming the file."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ShapeError(f"{path}: cannot be read as JSON: {shown(error)}") from error
    if not isinstance(tree, dict):
        raise ShapeError(f"{path}: expected an object, found {type(tree).__name__}")
    return tree


def _in_header(file: Path) -> int:
    """Elements of all tensors of one file: 8 bytes of length, then a JSON header (the safetensors README)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length < LARGEST_HEADER else b"")
        return sum(_elements(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ShapeError(f"{file}: is not a safetensors file") from error


def _elements(shape: list[int]) -> int:
    """Of a tensor. Raises `ValueError` for a shape that none has."""
    if len(shape) > LARGEST_DIMENSIONS or not all(type(size) is int and 0 <= size < LARGEST_SIZE for size in shape):
        raise ValueError("not a shape")
    return math.prod(shape)
