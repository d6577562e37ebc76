"""Where an input lies: a local file, or any address that fsspec or Arrow has a file system for.

fsspec comes first; where it lacks the package for a scheme (`s3://` without s3fs), Arrow's own file systems may do.
"""

from dataclasses import dataclass
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs  # type: ignore[import-untyped]
from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]

UNREADABLE = OSError, ValueError, ImportError
"""What comes of an address that cannot be read."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a file system of fsspec's kind."""

    system: Any
    path: str

    def open(self) -> Any:
        """The file, for reading bytes anywhere in it."""
        return self.system.open(self.path, "rb")

    def info(self) -> dict[str, Any]:
        """At least `type`, and `size` in bytes."""
        info: dict[str, Any] = self.system.info(self.path)
        return info


def locate(address: str) -> Place:
    """The place of an address, which need not exist. Raises one of `UNREADABLE`."""
    try:
        return Place(*fsspec.core.url_to_fs(address))
    except (ValueError, ImportError):
        if "://" not in address:
            raise
    system, path = pyarrow.fs.FileSystem.from_uri(address)
    return Place(ArrowFSWrapper(system), path)


def version_of(info: dict[str, Any]) -> str:
    """Changes when the content does, as far as the file system tells."""
    return next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified") if info.get(key)), "")
