"""One rank's shard as a safetensors file of its own, so that a restart reads it straight back.

The file's name is a hash of all that the shard depends on: what is in the model's files (`fingerprint`), the number
format, the group's size and the rank, the parameters' shapes (which tell whether they are packed for the kernels), and
the versions of what decides the split. Nothing is ever deleted but a file that fails its checksums; old files may be
removed at any time. A cache that cannot be written costs a slower restart, never the service.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from serving.engine.loading.checkpoint import Checkpoint, parse_header
from serving.engine.loading.fingerprint import fingerprint
from serving.engine.loading.weights import Plan
from serving.errors import ModelError
from serving.homes import in_caches

VERSION = 2
ALIGNMENT = 64
FORMATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

logger = logging.getLogger(__name__)


class ShardCache:
    """One shard's file. `load` and `save` never raise for a bad file or a full disk; they log."""

    def __init__(self, folder: Path, key: str) -> None:
        self.file = in_caches(folder) / f"{key}.safetensors"

    def load(self, tensors: Mapping[str, Tensor], progress: Callable[[int], None]) -> bool:
        """Fill `tensors` from the file and check them; False, and no file, unless all are there and whole.

        What was filled is then worth nothing. `progress` is told the bytes read so far.
        """
        if not self.file.is_file():
            return False
        try:
            self._read(tensors, progress)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, ModelError) as error:
            logger.warning("%s: the kept shard is broken and will be made again: %s", self.file, error)
            self._remove()
            return False
        return True

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep the shard: written beside its place and renamed, so that no reader ever sees half of it."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=self.file.parent, prefix=self.file.stem, suffix=".partial")
        except OSError as error:
            logger.warning(
                "%s: the shard is not kept, a restart will read the model again: %s", self.file.parent, error
            )
            return
        try:
            with os.fdopen(handle, "wb") as stream:
                _write(stream, tensors)
            Path(scratch).replace(self.file)
        except OSError as error:
            logger.warning("%s: the shard is not kept, a restart will read the model again: %s", self.file, error)
            Path(scratch).unlink(missing_ok=True)

    def _read(self, tensors: Mapping[str, Tensor], progress: Callable[[int], None]) -> None:
        loaded = 0
        with self.file.open("rb") as stream:
            header, begin = parse_header(self.file, stream)
            checksums = json.loads(header["__metadata__"]["crc32"])
            for name, tensor in tensors.items():
                stored = header[name]
                if (stored["dtype"], stored["shape"]) != (FORMATS[tensor.dtype], list(tensor.shape)):
                    raise ValueError(f"{name} is {stored['dtype']} {stored['shape']}")
                host = tensor if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
                content = _bytes(host)
                stream.seek(begin + stored["data_offsets"][0])
                if stream.readinto(content) != content.nbytes or zlib.crc32(content) != checksums[name]:
                    raise ValueError(f"the checksum of {name} is wrong")
                tensor.copy_(host)
                loaded += content.nbytes
                progress(loaded)

    def _remove(self) -> None:
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s: cannot be removed: %s", self.file, error)


def shard_key(checkpoint: Checkpoint, dtype: torch.dtype, world: int, rank: int, plan: Plan) -> str:
    """A hash of everything the shard's bytes depend on. Raises `ModelError` where the model's files cannot be read."""
    digest = hashlib.sha256(fingerprint(checkpoint))
    versions = [importlib.metadata.version(package) for package in ("deepspeed", "transformers")]
    shapes = sorted((name, *part.shape) for name, part in plan.items())
    digest.update(f"{VERSION} {dtype} {world} {rank} {versions} {shapes}".encode())
    return digest.hexdigest()[:32]


def _write(stream: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """The safetensors format, streamed: the library's own writer would first copy the whole shard."""
    header: dict[str, object] = {}
    checksums, offset = {}, 0
    for name, tensor in tensors.items():
        content = _bytes(tensor)
        checksums[name] = zlib.crc32(content)
        span = [offset, offset + content.nbytes]
        header[name] = {"dtype": FORMATS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset += content.nbytes
    header["__metadata__"] = {"crc32": json.dumps(checksums)}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        stream.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes; without a copy when it lies contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data
