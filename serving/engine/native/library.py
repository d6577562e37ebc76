"""Builds the native code for this processor and loads it. Building takes about two seconds, once a machine."""

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
NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16"})
SWITCH = "GANGWAY_NATIVE"
"""Set to 0, neither library is used: everything then runs on torch's own operators. Set to one of `PRODUCTS`, bfloat16
is multiplied that way instead of the one that `products` finds."""
PRODUCTS = {"dot": (), "widen": ("-DGANGWAY_WIDEN",)}
"""Ways to multiply bfloat16, and what the compiler is told: by its dot products, or widened to float32."""


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """Products, norms and attention; None where the processor or a missing compiler does not allow them."""
    missing = NEEDED - processor_flags()
    if missing:
        logger.info("the processor lacks %s: torch's own operators are used", ", ".join(sorted(missing)))
        return None
    return _load("kernels.cpp", flags=PRODUCTS[products()])


@functools.cache
def sums() -> ctypes.CDLL | None:
    """The sums over ranks, on one machine and on several, on any processor; None where there is no compiler."""
    return _load("all_reduce.cpp", "exchange.cpp")


def products() -> str:
    """The faster of `PRODUCTS` on this processor.

    By its maker, so that a rank that comes back multiplies as before. Measured, a core alone: on an Emerald Rapids of
    Intel's dot products reach 85 GFLOP/s where float32 multiplications reach 175 to 186. On AMD's EPYCs they reach 232
    and 530 (float32 was not measured there; by design it has no more units than they have).
    """
    found = "widen" if _processor("vendor_id") == "GenuineIntel" else "dot"
    wanted = os.environ.get(SWITCH, "")
    return wanted if wanted in PRODUCTS else found


def _load(*names: str, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return ctypes.CDLL(str(_built([Path(__file__).with_name(name) for name in names], (*FLAGS, *flags))))
    except (OSError, subprocess.CalledProcessError) as error:
        logger.warning("%s could not be built, torch's own operators are used: %s", " and ".join(names), error)
        return None


def processor_flags() -> frozenset[str]:
    """The processor's feature names as Linux tells them; empty elsewhere."""
    return frozenset(_processor("flags").split())


@functools.cache
def _processor(field: str) -> str:
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
