"""A model folder's safetensors files: which tensors, where, of what shape. Reads headers only, in plain Python.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of little-endian header length, a JSON header
of {name: {dtype, shape, data_offsets}}, then the data without gaps. A file cut short shows in its size. Whatever the
files say, it is a `Checkpoint` or a `ModelError`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from serving.errors import ModelError
from serving.model_files import read_json, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Formats that weights may be stored in, and their bytes; others are quantised ones, which are not supported."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    name: str
    file: Path
    format: str
    shape: tuple[int, ...]
    begin: int
    end: int
    """Bytes of the file, from its beginning."""


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
    try:
        files = _files(folder)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}") from error
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= _read_header(file)
    return Checkpoint(folder, files, tensors)


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
    present = {file.name for file in index.parent.iterdir() if file.is_file()}
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{index}: names the file {shown(name)}, which is not in the model's own folder")
        if name not in present:
            raise ModelError(f"{index}: names the file {shown(name)}, which is not there")
    return tuple(index.parent / name for name in names)


def parse_header(file: Path, stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins.

    Raises `ModelError` for one that is cut short, `ValueError` or `RecursionError` for one that is no JSON object,
    `OSError`.
    """
    size = file.stat().st_size
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ModelError(
            f"{file}: not a safetensors file, or cut short: its header would take {length} bytes of {size}"
        )
    header = json.loads(stream.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError(f"it is a {type(header).__name__}")
    return header, 8 + length


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header, begin = parse_header(file, stream)
        header.pop("__metadata__", None)
        tensors = {name: _stored(name, file, entry, begin) for name, entry in header.items()}
        whole = _end(tensors.values(), begin)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{file}: its safetensors header is broken: {shown(error)}") from error
    if size != whole:
        raise ModelError(f"{file}: has {size} bytes where its header says {whole}; was its download cut short?")
    return tensors


def _stored(name: str, file: Path, entry: Any, data: int) -> StoredTensor:
    """One entry of a header, whose file's data begin at `data`. Raises `ValueError` for what is none."""
    if not name.isprintable() or not isinstance(entry, dict):
        raise ValueError(f"{name!a} is no tensor")
    kind, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or not kind.isprintable() or not _are_sizes(shape) or not _are_sizes(span):
        raise ValueError(f"{name}: dtype {kind!a}, shape {shape!a}, data_offsets {span!a}")
    if len(span) != 2 or span[0] > span[1]:
        raise ValueError(f"{name}: data_offsets {span}")
    item = FLOAT_BYTES.get(kind)
    if item is not None and span[1] - span[0] != item * math.prod(shape):
        raise ValueError(f"{name}: {span[1] - span[0]} bytes for shape {shape}")
    return StoredTensor(name, file, kind, tuple(shape), data + span[0], data + span[1])


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """A list of a few whole numbers that fit the 64 bits in which others will keep them."""
    few = isinstance(value, list) and len(value) <= MAX_DIMENSIONS
    return few and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _end(tensors: Iterable[StoredTensor], begin: int) -> int:
    """Where the file should end. Raises `ValueError` unless its tensors lie one after the other from `begin` on."""
    for stored in sorted(tensors, key=attrgetter("begin", "end")):
        if stored.begin != begin:
            raise ValueError(f"{stored.name} begins at byte {stored.begin}, not where the one before it ends, {begin}")
        begin = stored.end
    return begin
