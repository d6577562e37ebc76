"""DeepSpeed's AutoTP: which rows and columns of a linear layer a rank keeps. The only module that imports deepspeed."""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from serving.engine.loading.weights import Share

logger = logging.getLogger(__name__)


def import_deepspeed() -> Any:
    """The deepspeed package, with its search for operators that can be compiled done: a second of a core.

    Its shared-memory operator is switched off: it would be compiled first, for half a minute, and never be called.
    """
    with _quiet():
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def init_deepspeed() -> None:
    """Hand DeepSpeed the process group that stands: once in a process, on every rank of a group of two or more."""
    deepspeed = import_deepspeed()
    with _quiet():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)


def apply_autotp(base: Any, world: int, dtype: torch.dtype) -> dict[str, Any]:
    """Shard the decoder's linear layers; each as DeepSpeed has it, by its name. `base` stays on meta."""
    with _quiet():
        import deepspeed
        from deepspeed.module_inject.layers import TensorParallel_Layer

        deepspeed.init_inference(
            base, tensor_parallel={"tp_size": world}, dtype=dtype, replace_with_kernel_inject=False
        )
    base.to("meta")
    return {name: layer for name, layer in base.named_modules() if isinstance(layer, TensorParallel_Layer)}


def share_of(layer: Any) -> Share:
    """Ask an AutoTP layer to split row (or column) numbers as it would split a weight."""
    from deepspeed.module_inject.layers import LinearAllreduce

    if isinstance(layer, LinearAllreduce):
        columns = torch.arange(layer._orig_weight_shape[1]).unsqueeze(0)
        layer._tp_partition([columns])
        kept = columns[0].tolist()
        return Share(columns=(kept[0], kept[-1] + 1) if kept else (0, 0))
    rows = torch.arange(layer._orig_weight_shape[0])
    layer._tp_partition([rows])
    return Share(rows=rows.cpu())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed's prints off standard output, which belongs to the parent process; they stay in our debug log."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        # Its logger holds on to the standard output it found; ours decides instead.
        theirs = logging.getLogger("DeepSpeed")
        theirs.handlers.clear()
        theirs.propagate = True
        theirs.setLevel(logging.ERROR)
        if said.getvalue():
            logger.debug("DeepSpeed: %s", said.getvalue().strip())
