"""Compiles C++ sources for this processor, keeps the result, and loads it. Compiling takes about two seconds, once.

Who builds what says its own package: `distributed.library`, `kernels.library`.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from serving.homes import code_folder

logger = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w")
SWITCH = "GANGWAY_NATIVE"
"""Set to 0, nothing is built or loaded: everything then runs on torch's own operators. Set to one of
`kernels.library.PRODUCTS`, bfloat16 is multiplied that way instead of the one that is found there."""


def load(*sources: Path, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The sources as one library, built if need be; None where that cannot be done or must not."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return ctypes.CDLL(str(_built(sources, (*FLAGS, *flags))))
    except (OSError, subprocess.CalledProcessError) as error:
        names = " and ".join(source.name for source in sources)
        logger.warning("%s could not be built, torch's own operators are used: %s", names, error)
        return None


def processor_flags() -> frozenset[str]:
    """The processor's feature names as Linux tells them; empty elsewhere."""
    return frozenset(processor("flags").split())


@functools.cache
def processor(field: str) -> str:
    """What Linux says of the first one; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    line = next((line for line in text.splitlines() if line.startswith(field)), "")
    return line.partition(":")[2].strip()


def _built(sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Path of the shared object, compiled unless one for the same sources, flags and processor lies in the cache."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    texts = [file.read_text(encoding="utf-8") for file in (*sources, *sorted(sources[0].parent.glob("*.h")))]
    identity = [*texts, *flags, compiler, platform.machine(), *sorted(processor_flags())]
    key = hashlib.blake2b("\0".join(identity).encode(), digest_size=12).hexdigest()
    folder = code_folder()
    target = folder / f"{sources[0].stem}-{key}.so"
    if not target.is_file():
        # Several ranks may build at once: each builds its own file, and the last rename wins.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / target.name
            subprocess.run([compiler, *flags, *map(str, sources), "-o", str(built)], check=True, capture_output=True)
            built.replace(target)
    return target
