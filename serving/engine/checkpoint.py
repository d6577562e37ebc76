"""A model folder's safetensors files: which tensors, where, of what shape. Reads headers only, in plain Python.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of little-endian header length, a JSON header
of {name: {dtype, shape, data_offsets}}, then the data without gaps. A file cut short shows in its size.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from serving.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Formats that weights may be stored in, and their bytes; others are quantised ones, which are not supported."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    name: str
    file: Path
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model folder, by name."""

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    def find(self, names: Iterable[str]) -> StoredTensor | None:
        """The first of `names` that is stored."""
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def get(self, names: Iterable[str], shape: tuple[int, ...]) -> StoredTensor:
        """The tensor stored under one of `names`; a `ModelError` unless it is there, in `shape`, as plain floats."""
        names = list(names)
        stored = self.find(names)
        if stored is None:
            raise ModelError(f"{self.folder}: the tensor {names[0]} is missing from the safetensors files")
        if stored.shape != shape:
            raise ModelError(
                f"{stored.file}: the tensor {stored.name} has shape {list(stored.shape)}, "
                f"config.json asks for {list(shape)}"
            )
        if stored.format not in FLOAT_BYTES:
            raise ModelError(
                f"{stored.file}: the tensor {stored.name} is stored as {stored.format}; quantised weights do not work"
            )
        return stored


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read every header of a model folder. Raises `ModelError` naming the file that is missing or broken."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; model.path must hold config.json and safetensors files")
    files = _files(folder)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= _read_header(file)
    return Checkpoint(folder, files, tensors)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; `ModelError` naming the file otherwise."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def _files(folder: Path) -> tuple[Path, ...]:
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        return _indexed_files(folder / INDEX)
    pickled = next(folder.glob("*.bin"), None)
    if pickled is not None:
        raise ModelError(
            f"{folder}: holds pickled weights only ({pickled.name}), which can run code; convert them to safetensors"
        )
    raise ModelError(f"{folder}: holds neither {SINGLE} nor {INDEX}")


def _indexed_files(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{index}: names the file {name}, which is not in the model's own folder")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index}: names the file {name}, which is not there")
    return tuple(index.parent / name for name in names)


def parse_header(file: Path, stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins.

    Raises `ModelError` for one that is cut short, `ValueError` for one that is no JSON, `OSError`.
    """
    size = file.stat().st_size
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ModelError(
            f"{file}: not a safetensors file, or cut short: its header would take {length} bytes of {size}"
        )
    header: dict[str, Any] = json.loads(stream.read(length))
    return header, 8 + length


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header, begin = parse_header(file, stream)
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = [_end(entry) for entry in entries.values()]
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: its safetensors header is broken: {error!r}") from error
    whole = begin + max(ends, default=0)
    if size != whole:
        raise ModelError(f"{file}: has {size} bytes where its header says {whole}; was its download cut short?")
    return {name: StoredTensor(name, file, entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def _end(entry: dict[str, Any]) -> int:
    """Where a tensor's data ends, after checking that its shape fills it."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    item = FLOAT_BYTES.get(entry["dtype"])
    if begin < 0 or (item is not None and end - begin != item * math.prod(entry["shape"])):
        raise ValueError(f"{end - begin} bytes for shape {entry['shape']}")
    return end
