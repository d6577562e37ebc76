"""Loads one rank's share of a model.

The decoder is built without weights, DeepSpeed's AutoTP shards that, each of its layers is asked which rows or columns
it keeps, exactly those are read from the checkpoint, and our own layers take its layers' places: no DeepSpeed code runs
in a forward pass. Embedding and output head are split by vocabulary instead (see `layers.vocabulary`).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from serving.config import ModelConfig
from serving.engine.distributed.collectives import Collectives
from serving.engine.host_memory import side_by_side
from serving.engine.loading.autotp import apply_autotp, share_of
from serving.engine.loading.checkpoint import open_checkpoint
from serving.engine.loading.mlp_balance import even_out
from serving.engine.loading.model_config import eos_token_ids, read_config
from serving.engine.loading.shard_cache import ShardCache, shard_key
from serving.engine.loading.sharding import Assembly, recompute_buffers
from serving.engine.loading.skeleton import build_skeleton
from serving.engine.loading.weights import Plan, SliceReader
from serving.engine.models.families import kv_replicas
from serving.engine.models.sharded_model import ShardedModel
from serving.errors import ModelError


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
    `mlp_balance`. Raises `ModelError` with one sentence when the model cannot be served.
    """
    dtype = getattr(torch, config.dtype)
    checkpoint = open_checkpoint(config.path)
    hf, family = read_config(config)
    skeleton = build_skeleton(config.path, hf, family, kv_replicas(hf, family, collectives.world), dtype)
    assembly = Assembly(skeleton, checkpoint, collectives, dtype)
    head = assembly.split_vocabulary()
    layers = apply_autotp(skeleton.base, collectives.world, dtype) if collectives.world > 1 else {}
    shares = {name: share_of(layer) for name, layer in layers.items()}
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
