"""Where a file lies: here, or at any address that fsspec or Arrow has a file system for.

fsspec comes first; where it lacks the package for a scheme (`s3://` without s3fs), Arrow's own file systems may do.
"""

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.fs  # type: ignore[import-untyped]
from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from serving.addresses import HIDDEN, reason, shown
from serving.errors import OperatorError

UNUSABLE = OSError, ValueError, ImportError, NotImplementedError, pa.ArrowException
"""What comes of an address that cannot be read or written."""
BLOCK_BYTES = 1 << 20
"""Read or written at a time."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a file system of fsspec's kind. What goes wrong is one of `UNUSABLE`."""

    system: Any
    path: str
    name: str
    """As a person is told of it: without credentials."""
    address: str = field(repr=False)
    """That it, or its neighbour, was given by, credentials and all: never shown."""

    def __str__(self) -> str:
        return self.name

    def cannot(self, do: str, error: BaseException) -> OperatorError:
        """The sentence about one of `UNUSABLE`, for `do` such as "read"."""
        return OperatorError(f"cannot {do} {self}: {reason(error, self.address)}")

    @property
    def is_local(self) -> bool:
        """Whether the path is one of this machine."""
        return isinstance(self.system, LocalFileSystem)

    def beside(self, ending: str) -> "Place":
        """Its neighbour of that ending."""
        return replace(self, path=f"{self.path}.{ending}", name=f"{self.name}.{ending}")

    def open(self) -> Any:
        """The file, for reading bytes anywhere in it."""
        return self.system.open(self.path, "rb")

    def info(self) -> dict[str, Any]:
        """At least `type`, and `size` in bytes."""
        info: dict[str, Any] = self.system.info(self.path)
        return info

    def size(self) -> int | None:
        """Bytes; None where there is nothing."""
        try:
            return int(self.info()["size"] or 0)
        except FileNotFoundError:
            return None

    def crc(self) -> int:
        """CRC-32 of its bytes, a block at a time."""
        crc = 0
        with self.open() as stream:
            while block := stream.read(BLOCK_BYTES):
                crc = zlib.crc32(block, crc)
        return crc

    def remove(self) -> None:
        """Remove the file, if there is one."""
        with suppress(FileNotFoundError):
            self.system.rm_file(self.path)

    @contextmanager
    def create(self) -> Iterator[Any]:
        """A stream of bytes that gets the name, and replaces what had it, when the block has ended well."""
        fresh = self.beside("new")
        try:
            with fresh._made() as stream:
                yield stream
                stream.flush()
                with suppress(io.UnsupportedOperation):  # away from this machine a file lasts once it is closed
                    os.fsync(stream.fileno())
            move = os.replace if self.is_local else self.system.mv
            move(fresh.path, self.path)
        except BaseException:
            with suppress(*UNUSABLE):  # what went wrong first is what counts
                fresh.remove()
            raise

    def _made(self) -> Any:
        """A new file to write, in place of any; here no link that lies there is followed."""
        if not self.is_local:
            return self.system.open(self.path, "wb")
        self.remove()
        return open(self.path, "xb")  # noqa: PTH123  as the others


@dataclass(frozen=True, slots=True)
class File:
    """A file that is there."""

    place: Place
    size: int
    """Bytes."""
    version: str
    """Changes when the content does, as far as the file system tells."""

    def facts(self) -> tuple[str, int, str]:
        """What it is known by."""
        return self.place.path, self.size, self.version


def files_at(address: str) -> tuple[File, ...]:
    """The file at an address, or those of a folder in the order of their names; those like _SUCCESS and .crc are none.

    Raises `OperatorError`.
    """
    name = name_of(address)
    try:
        place = locate(address)
        info = place.info()
        entries = place.system.ls(place.path, detail=True) if info["type"] == "directory" else [info]
    except UNUSABLE as error:
        raise OperatorError(f"cannot read {name}: {reason(error, address)}") from error
    if info["type"] == "file":
        return (File(place, int(info["size"]), version_of(info)),)
    found = {}
    for entry in entries:
        base = str(entry["name"]).rpartition("/")[2]
        if entry["type"] == "file" and base and base[0] not in "._":
            part = replace(place, path=str(entry["name"]), name=f"{name.rstrip('/')}/{base.partition('?')[0]}")
            found[base] = File(part, int(entry["size"]), version_of(entry))
    if not found:
        raise OperatorError(f"cannot read {name}: it is a {info['type']} without files")
    return tuple(found[base] for base in sorted(found))


def locate(address: str) -> Place:
    """The place of an address, which need not exist. Raises one of `UNUSABLE`."""
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError):
        if "://" not in address:
            raise
        arrow, path = pyarrow.fs.FileSystem.from_uri(address)
        system = ArrowFSWrapper(arrow)
    return Place(system, path, name_of(address), address)


def name_of(address: str) -> str:
    """As a person is told of the place there: without credentials and options."""
    return shown(address).partition("?")[0].replace(f"//{HIDDEN}@", "//") if "://" in address else address


def version_of(info: dict[str, Any]) -> str:
    """Changes when the content does, as far as the file system tells."""
    return next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified") if info.get(key)), "")
