"""Loads one rank's share of a model, and the only module that imports deepspeed.

The decoder is built without weights, DeepSpeed's AutoTP shards that, each of its layers is asked which rows or columns
it keeps, exactly those are read from the checkpoint, and our own layers take its layers' places: no DeepSpeed code runs
in a forward pass. Embedding and output head are split by vocabulary instead (see `layers.vocabulary`).
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from serving.config import ModelConfig
from serving.engine.assembly import Assembly, Share, recompute_buffers
from serving.engine.balance import even_out
from serving.engine.checkpoint import open_checkpoint
from serving.engine.distributed.collectives import Collectives
from serving.engine.host_memory import side_by_side
from serving.engine.loading.model_config import eos_token_ids, read_config
from serving.engine.models.families import kv_replicas
from serving.engine.models.sharded_model import ShardedModel
from serving.engine.shard_cache import ShardCache, shard_key
from serving.engine.skeleton import build_skeleton
from serving.engine.weights import Plan, SliceReader
from serving.errors import ModelError

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


def unwatched(loaded: int, total: int) -> None:
    """A `progress` that nobody looks at."""


def load_model(
    config: ModelConfig,
    collectives: Collectives,
    device: torch.device,
    progress: Callable[[int, int], None],
    prepare: Callable[[ShardedModel, Plan], None] | None = None,
    *,
    balance_mlp: bool = False,
) -> ShardedModel:
    """This rank's share of the model. Collective: every rank of the group calls it.

    `progress(loaded, total)` counts bytes of this rank's shard. `prepare` may put other modules into the model while it
    has no weights, and change the plan with them: what the shard cache keeps is what it planned. `balance_mlp`: see
    `balance`. Raises `ModelError` with one sentence when the model cannot be served.
    """
    dtype = getattr(torch, config.dtype)
    checkpoint = open_checkpoint(config.path)
    hf, family = read_config(config)
    skeleton = build_skeleton(config.path, hf, family, kv_replicas(hf, family, collectives.world), dtype)
    assembly = Assembly(skeleton, checkpoint, collectives, dtype)
    head = assembly.split_vocabulary()
    layers = _apply_autotp(skeleton.base, collectives.world, dtype) if collectives.world > 1 else {}
    shares = {name: _share(layer) for name, layer in layers.items()}
    if balance_mlp:
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
        shares = even_out(shares, shapes, collectives, device)
    model, plan = assembly.finish(head, shares), assembly.plan
    if prepare is not None:
        try:
            prepare(model, plan)
        except ValueError as error:
            raise ModelError(f"{config.path}: the kernels cannot compute it: {error}") from error
    cache = None
    if config.shard_cache is not None:
        key = shard_key(checkpoint, dtype, collectives.world, collectives.rank, plan)
        cache = ShardCache(config.shard_cache, key)
    _fill(model, plan, cache, device, progress)
    if "head.weight" not in plan:
        model.head.weight = model.base.get_input_embeddings().weight
    recompute_buffers(model.base, device)
    unfilled = next(model.unfilled(), None)
    if unfilled is not None:
        raise ModelError(f"{config.path}: nothing was found to fill {unfilled} with; {hf.model_type} cannot be loaded")
    model.eos_token_ids = eos_token_ids(config.path, hf)
    return model


def _apply_autotp(base: Any, world: int, dtype: torch.dtype) -> dict[str, Any]:
    """Shard the decoder's linear layers; each as DeepSpeed has it, by its name. `base` stays on meta."""
    with _quiet():
        import deepspeed
        from deepspeed.module_inject.layers import TensorParallel_Layer

        deepspeed.init_inference(
            base, tensor_parallel={"tp_size": world}, dtype=dtype, replace_with_kernel_inject=False
        )
    base.to("meta")
    return {name: layer for name, layer in base.named_modules() if isinstance(layer, TensorParallel_Layer)}


def _share(layer: Any) -> Share:
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


def _fill(
    model: ShardedModel,
    plan: Plan,
    cache: ShardCache | None,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> None:
    """Give the parameters their values: from the kept shard if there is one, else from the checkpoint, keeping them."""
    weights = _rooms({name: part.shape for name, part in plan.items()}, model.dtype, device)
    total, loaded = sum(weight.nbytes for weight in weights.values()), 0
    if cache is None or not cache.load(weights, lambda read: progress(read, total)):
        reader = SliceReader()
        for name, part in plan.items():
            weights[name].copy_(reader.read(part, model.dtype))
            loaded += weights[name].nbytes
            progress(loaded, total)
        if cache is not None:
            cache.save(weights)
    for name, weight in weights.items():
        model.assign(name, weight)


def _rooms(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Unfilled tensors of these shapes."""
    if device.type == "cpu":
        return side_by_side(shapes, dtype)
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}


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
