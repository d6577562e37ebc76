"""What one rank's GPU must hold, and the smallest number of ranks for which it can. Estimates, to be measured at start.

Weights and KV follow this project's own split: whole KV heads, the feed-forward part in grains of 64, the embedding and
the output head by vocabulary, each KV head repeated where there are more ranks than KV heads. Ranks need not be equal,
so the largest is counted.
"""

from dataclasses import dataclass, replace

from cluster.errors import ShapeError
from cluster.planning.model_shape import DTYPE_BYTES, ModelShape
from serving.config import Config

GIB = 2**30
GRAIN = 64
"""DeepSpeed's AutoTP shares the feed-forward width in pieces of this many elements."""

ACTIVATIONS_OF_HIDDEN = 6
ACTIVATIONS_OF_FFN = 4
"""Buffers alive at once in a layer: of the hidden width, whole on every rank, and of the rank's feed-forward width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked of the model."""

    dtype: str = "bfloat16"
    """Format of weights, activations and the KV cache."""

    batch: int = 8
    """Requests that are computed together."""

    context: int = 4096
    """Tokens of each, prompt and answer."""

    step_tokens: int = 2048
    """Token budget of one step (`engine.max_batched_tokens`)."""

    utilisation: float = 0.9
    """Share of a GPU's memory that may be used."""

    overhead_gib: float = 3.0
    """CUDA context, NCCL's buffers, fragmentation: 2 to 4 GiB."""

    @property
    def bytes_each(self) -> int:
        """Bytes of one element. Raises `ShapeError` for an unknown format."""
        if self.dtype not in DTYPE_BYTES:
            raise ShapeError(f"dtype {self.dtype}: known are {', '.join(DTYPE_BYTES)}")
        return DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on the fullest rank."""

    weights: int
    kv: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.activations + self.overhead


def kv_replicas(shape: ModelShape, tp: int) -> int:
    """How often each KV head is repeated so that every rank has one: as in `serving.engine.models.families`.

    Raises `ShapeError` for more ranks than attention heads.
    """
    if tp > shape.heads:
        raise ShapeError(f"{tp} ranks are more than the model's {shape.heads} attention heads")
    group = shape.heads // shape.kv_heads
    return next(n for n in range(1, group + 1) if group % n == 0 and shape.kv_heads * n >= tp)


def rank_memory(shape: ModelShape, tp: int, load: Load) -> Memory:
    """What the fullest of `tp` ranks holds. Raises `ShapeError` for more ranks than attention heads."""
    each = load.bytes_each
    kv_heads = _share(shape.kv_heads * kv_replicas(shape, tp), tp)
    per_token = 2 * shape.layers * kv_heads * shape.head_dim * each
    ffn = _rank_ffn(shape, tp)
    live = ACTIVATIONS_OF_HIDDEN * shape.hidden + ACTIVATIONS_OF_FFN * ffn
    return Memory(
        weights=rank_parameters(shape, tp) * each,
        kv=per_token * load.batch * load.context,
        activations=load.step_tokens * live * each + load.batch * _share(shape.vocab, tp) * 4,
        overhead=int(load.overhead_gib * GIB),
    )


def rank_parameters(shape: ModelShape, tp: int) -> int:
    """Parameters of the fullest of `tp` ranks."""
    kv_heads_in_all = shape.kv_heads * kv_replicas(shape, tp)
    kv_heads = _share(kv_heads_in_all, tp)
    heads = kv_heads * shape.heads // kv_heads_in_all
    attention = shape.layers * shape.hidden * shape.head_dim * 2 * (heads + kv_heads)
    feed_forward = shape.layers * shape.ffn_matrices * shape.hidden * _rank_ffn(shape, tp)
    vocabulary = shape.vocabulary // shape.vocab * _share(shape.vocab, tp)
    unknown = max(0, shape.parameters - shape.counted)
    return attention + feed_forward + vocabulary + shape.small + unknown


def configured_memory(shape: ModelShape, config: Config, overhead_gib: float = 3.0) -> Memory:
    """What the fullest rank holds under a serving configuration, whose `kv_cache_gib` is the KV cache's whole size."""
    engine = config.engine
    load = Load(
        dtype=config.model.dtype,
        batch=engine.max_running,
        step_tokens=engine.max_batched_tokens,
        overhead_gib=overhead_gib,
    )
    memory = rank_memory(shape, config.parallel.tensor_parallel_size, load)
    return replace(memory, kv=int(engine.kv_cache_gib * GIB))


def fits(shape: ModelShape, tp: int, gpu_memory_gib: float, load: Load) -> bool:
    """Whether the fullest of `tp` ranks fits a GPU."""
    return rank_memory(shape, tp, load).total <= load.utilisation * gpu_memory_gib * GIB


def smallest_tp(shape: ModelShape, gpu_memory_gib: float, load: Load) -> int | None:
    """The smallest number of ranks of which each fits its GPU; None when not even one for each attention head does."""
    return next((tp for tp in range(1, shape.heads + 1) if fits(shape, tp, gpu_memory_gib, load)), None)


def _rank_ffn(shape: ModelShape, tp: int) -> int:
    return min(shape.ffn, _share(-(-shape.ffn // GRAIN), tp) * GRAIN)


def _share(pieces: int, tp: int) -> int:
    """The largest of `tp` nearly equal shares."""
    return -(-pieces // tp)
