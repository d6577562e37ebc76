"""The C++ half of the CPU kernels, for the processors that can run it."""

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import Any

from serving.engine.native_build import SWITCH, load, processor, processor_flags

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("csrc")
NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16"})
PRODUCTS = {"dot": (), "widen": ("-DGANGWAY_WIDEN",)}
"""Ways to multiply bfloat16, and what the compiler is told: by its dot products, or widened to float32."""


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """Products, norms and attention; None where the processor or a missing compiler does not allow them."""
    missing = NEEDED - processor_flags()
    if missing:
        logger.info("the processor lacks %s: torch's own operators are used", ", ".join(sorted(missing)))
        return None
    return load(SOURCES / "kernels.cpp", flags=PRODUCTS[products()])


def bind(name: str, *types: Any) -> Any:
    """The C function, its argument types declared; None where there is no library."""
    found = kernels()
    if found is None:
        return None
    function = getattr(found, name)
    function.argtypes, function.restype = types, None
    return function


def products() -> str:
    """The faster of `PRODUCTS` on this processor.

    By its maker, so that a rank that comes back multiplies as before. Measured, a core alone: on an Emerald Rapids of
    Intel's dot products reach 85 GFLOP/s where float32 multiplications reach 175 to 186. On AMD's EPYCs they reach 232
    and 530 (float32 was not measured there; by design it has no more units than they have).
    """
    found = "widen" if processor("vendor_id") == "GenuineIntel" else "dot"
    wanted = os.environ.get(SWITCH, "")
    return wanted if wanted in PRODUCTS else found
