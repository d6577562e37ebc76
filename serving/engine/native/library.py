"""Builds the kernels for this processor and loads them. Building takes about two seconds and is done once a machine."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "all_reduce.cpp")]
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
SWITCH = "GANGWAY_NATIVE"
"""Set to 0, the library is not used: everything then runs on torch's own operators."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, built if it has to be; None where this processor or a missing compiler does not allow it."""
    if os.environ.get(SWITCH) == "0":
        return None
    if not processor_flags() >= NEEDED:
        logger.info("the processor lacks %s: torch's own operators are used", ", ".join(NEEDED - processor_flags()))
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.CalledProcessError) as error:
        logger.warning("the native kernels could not be built, torch's own operators are used: %s", error)
        return None


@functools.cache
def processor_flags() -> frozenset[str]:
    """The processor's feature names as Linux tells them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _built() -> Path:
    """Path of the shared object, compiled unless one for the same source, flags and processor lies in the cache."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    identity = [
        *(source.read_text(encoding="utf-8") for source in SOURCES),
        *FLAGS,
        compiler,
        platform.machine(),
        *sorted(processor_flags()),
    ]
    key = hashlib.blake2b("\0".join(identity).encode(), digest_size=12).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gangway" / "native"
    target = folder / f"kernels-{key}.so"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Several ranks may build at once: each builds its own file, and the last rename wins.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / "kernels.so"
            subprocess.run([compiler, *FLAGS, *map(str, SOURCES), "-o", str(built)], check=True, capture_output=True)
            built.replace(target)
    return target
