"""What would make a kernel read or write out of bounds is refused before it is called; on any processor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.config import ModelConfig
from serving.engine.attention.base import AttentionMetadata
from serving.engine.attention.cpu_backend import NativeAttention
from serving.engine.attention.kv_cache import KVShape, reserve
from serving.engine.distributed.collectives import Alone
from serving.engine.kernels import abi, ops
from serving.engine.layers import cpu_decoder
from serving.engine.layers.cpu_decoder import FusedLayer, FusedLayers
from serving.engine.loading.checkpoint import open_checkpoint
from serving.engine.loading.cpu_layers import use_cpu_kernels
from serving.engine.loading.model_config import read_config
from serving.engine.loading.sharding import Assembly, recompute_buffers
from serving.engine.loading.skeleton import build_skeleton
from serving.engine.models.sharded_model import ShardedModel
from tests.engine.tiny_models import MODELS, save_model

BLOCK = 16
FUSED = {
    "llama": 16,
    "llama, attention biases": 16,
    "mistral": 16,
    "qwen2": 16,
    "qwen3, heads of 32": 32,
    "gemma": 16,
    "gemma2": 16,
    "gemma3_text": 16,
    "granite": 16,
}
"""Models whose layers the kernels compute, and the width of their heads."""
NARROW = {"qwen3"}
"""Of heads that are no whole vectors, which torch's own operators attend to."""


class Cache:
    """What a layer asks of the attention: a step of two tokens, and two blocks of keys and values."""

    def __init__(self, kv_heads: int, dim: int) -> None:
        self.step: abi.Step | None = step_of(2)
        self.layer = layer_cache(kv_heads, dim)

    def cache(self, layer: int) -> abi.LayerCache:
        return self.layer


def layer_cache(kv_heads: int, dim: int, dtype: torch.dtype = torch.float32) -> abi.LayerCache:
    keys, values = (torch.zeros(2 * BLOCK * kv_heads * dim, dtype=dtype) for _ in range(2))
    return abi.LayerCache(keys, values, BLOCK, kv_heads, dim)


def step_of(rows: int) -> abi.Step:
    nowhere, table = torch.zeros(rows, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int32)
    return abi.Step(nowhere, nowhere, table, nowhere.int(), ops.scratch_for(BLOCK, 1))


def with_cpu_kernels(name: str, folder: Path, dtype: torch.dtype) -> ShardedModel:
    """A model as the kernels would compute it, its weights zeros."""
    save_model(name, folder)
    hf, family = read_config(ModelConfig(path=folder, max_model_len=32))
    skeleton = build_skeleton(folder, hf, family, 1, dtype)
    assembly = Assembly(skeleton, open_checkpoint(folder), Alone(), dtype)
    model = assembly.finish(assembly.split_vocabulary(), {})
    use_cpu_kernels(model, assembly.plan, 1)
    for name, part in assembly.plan.items():
        model.assign(name, torch.zeros(part.shape, dtype=dtype))
    if "head.weight" not in assembly.plan:
        model.head.weight = model.base.get_input_embeddings().weight
    recompute_buffers(model.base, torch.device("cpu"))
    return model


def fused(name: str, folder: Path) -> ShardedModel:
    """One whose layers are computed by one call."""
    model = with_cpu_kernels(name, folder, torch.float32)
    cache = Cache(model.kv_heads, model.head_dim)
    for fused_layer in model.base.layers:
        fused_layer.attend = cache
    return model


def turn(model: ShardedModel) -> None:
    """What the model's own code does before its layers: angles, for each kind of layer."""
    rotary, positions = model.base.rotary_emb, torch.arange(2).unsqueeze(0)
    for kind in model.base.layers._kinds:
        rotary(torch.zeros(1), positions, *([] if kind is None else [kind]))


def run(model: ShardedModel, hidden: Tensor) -> None:
    layers: FusedLayers = model.base.layers
    layers._run(hidden)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of each call into the kernels, which this processor may not be able to run."""
    calls: list[tuple[Any, ...]] = []

    def compute(*arguments: Any) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(cpu_decoder, "_compute", compute)
    return calls


@pytest.mark.parametrize("name", FUSED)
def test_a_model_that_fits_reaches_the_kernels(name: str, tmp_path: Path, called: list[tuple[Any, ...]]) -> None:
    model = fused(name, tmp_path)
    assert isinstance(model.base.layers, FusedLayers)
    turn(model)
    run(model, torch.zeros(1, 2, 96))
    (_, weights, count, *_) = called[0]
    assert count == 3
    assert [weights[0].heads, weights[0].kv_heads, weights[0].dim, weights[0].inner] == [6, 3, FUSED[name], 160]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NARROW])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_that_a_family_asks_of_the_kernels_is_refused(
    dtype: torch.dtype, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls of its own forward, checked and then left out: results are whatever was in memory."""
    done: list[str] = []
    for module, function in (
        (ops, "_product"),
        (ops, "_norm"),
        (ops, "_keep"),
        (ops, "_attend"),
        (cpu_decoder, "_compute"),
    ):
        monkeypatch.setattr(module, function, lambda *_, function=function: done.append(function))
    model = with_cpu_kernels(name, tmp_path, dtype)
    shape = KVShape(layers=model.layers, kv_heads=model.kv_heads, head_dim=model.head_dim, dtype=dtype)
    attention = NativeAttention(shape, reserve(shape, 2 * BLOCK, torch.device("cpu")), BLOCK, 1)
    ids = torch.tensor([3, 4, 5])
    slots, table = torch.arange(3), torch.zeros(1, 1, dtype=torch.int32)
    attention.begin(AttentionMetadata(slots, slots, table, torch.zeros(3, dtype=torch.int32), 0, 3, 0, (), slots[-1:]))
    model.attach(attention)
    with torch.inference_mode():
        assert model.logits(model.hidden_states(ids, slots)[-1:]).shape == (1, model.vocab_size)
    assert not {"_compute", "_attend"}.isdisjoint(done)


def wider(model: ShardedModel) -> None:
    for kind in model.base.rotary_emb.latest:
        model.base.rotary_emb.latest[kind] = torch.zeros(2, 9), torch.zeros(2, 9)


def of_other_rows(model: ShardedModel) -> None:
    for kind in model.base.rotary_emb.latest:
        model.base.rotary_emb.latest[kind] = torch.zeros(1, 8), torch.zeros(1, 8)


def of_other_format(model: ShardedModel) -> None:
    for kind, (cos, sin) in model.base.rotary_emb.latest.items():
        model.base.rotary_emb.latest[kind] = cos.bfloat16(), sin


def with_cache(kv_heads: int, dim: int, dtype: torch.dtype = torch.float32) -> Callable[[ShardedModel], None]:
    def spoil(model: ShardedModel) -> None:
        model.base.layers[0].attend.layer = layer_cache(kv_heads, dim, dtype)

    return spoil


def with_weight(name: str, *shape: int) -> Callable[[ShardedModel], None]:
    return lambda model: model.assign(f"base.layers.1.{name}", torch.zeros(shape))


SPOILT: dict[str, tuple[Callable[[ShardedModel], None], str]] = {
    "rotations wider than a head": (wider, "rotations of 18 elements in heads of 16"),
    "rotations of too few tokens": (of_other_rows, r"cosines is \[1, 8\]"),
    "rotations in another format": (of_other_format, r"cosines is \[2, 8\] of torch.bfloat16"),
    "a cache of fewer heads": (with_cache(2, 16), r"cache is \[2, 16\], not \[3, 16\]"),
    "a cache of wider heads": (with_cache(3, 32), r"cache is \[3, 32\], not \[3, 16\]"),
    "a cache in another format": (with_cache(3, 16, torch.bfloat16), "of torch.float32, not"),
    "a narrower norm": (with_weight("input_norm", 95), r"input_norm is \[95\]"),
    "fewer panels": (with_weight("qkv", 5, 96, 32, 1), r"qkv is \[5, 96, 32, 1\]"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_does_not_fit_never_reaches_the_kernels(what: str, tmp_path: Path, called: list[tuple[Any, ...]]) -> None:
    model = fused("llama", tmp_path)
    turn(model)
    spoil, sentence = SPOILT[what]
    spoil(model)
    with pytest.raises(ValueError, match=sentence):
        run(model, torch.zeros(1, 2, 96))
    assert not called


@pytest.mark.parametrize("shape", [(1, 2, 95), (1, 3, 96), (2, 96)])
def test_an_input_of_another_shape_never_reaches_the_kernels(
    shape: tuple[int, ...], tmp_path: Path, called: list[tuple[Any, ...]]
) -> None:
    model = fused("llama", tmp_path)
    turn(model)
    with pytest.raises(ValueError, match="the input is"):
        run(model, torch.zeros(shape))
    assert not called


class Original:
    """A layer that a `FusedLayer` is to stand for: one of the model's own, with parts changed."""

    def __init__(self, folder: Path) -> None:
        save_model("llama", folder)
        hf, family = read_config(ModelConfig(path=folder, max_model_len=32))
        self.layer = build_skeleton(folder, hf, family, 1, torch.float32).base.layers[0]

    def fused(self, heads: int = 6, kv_heads: int = 3, dim: int = 16) -> FusedLayer:
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(self.layer.self_attn, projection).collectives = None
        return FusedLayer(self.layer, heads, kv_heads, dim, abi.SILU)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(6, 3, 32), (5, 3, 16), (6, 2, 16), (6, 4, 16), (6, 0, 16), (12, 6, 8), (0, 0, 16)]
)
def test_heads_that_the_weights_do_not_hold_are_refused(heads: int, kv_heads: int, dim: int, tmp_path: Path) -> None:
    original = Original(tmp_path)
    assert original.fused().dim == 16
    with pytest.raises(ValueError, match=r"_proj is|heads for|not a multiple"):
        original.fused(heads, kv_heads, dim)


@pytest.mark.parametrize(("part", "value"), [("scaling", float("nan")), ("scaling", 1e300), ("scaling", 1j)])
def test_factors_that_are_no_numbers_are_refused(part: str, value: object, tmp_path: Path) -> None:
    original = Original(tmp_path)
    setattr(original.layer.self_attn, part, value)
    with pytest.raises(ValueError, match="scale is"):
        original.fused()


X, PACKED = torch.zeros(2, 32), torch.zeros(ops.packed_shape(32, 32, torch.float32))
CALLS: dict[str, Callable[[], object]] = {
    "an input of another width": lambda: ops.product(torch.zeros(2, 30), PACKED, 32, None),
    "an input that is not rows": lambda: ops.product(torch.zeros(32), PACKED, 32, None),
    "more outputs than panels": lambda: ops.product(X, PACKED, 33, None),
    "an input in another format": lambda: ops.product(X.bfloat16(), PACKED, 32, None),
    "a format that is not computed in": lambda: ops.product(X.half(), PACKED.half(), 32, None),
    "a shorter bias": lambda: ops.product(X, PACKED, 32, torch.zeros(31)),
    "a bias in another format": lambda: ops.product(X, PACKED, 32, torch.zeros(32).bfloat16()),
    "a gate that is no whole vector": lambda: ops.product(X, PACKED, 24, None, abi.SILU),
    "an odd weight": lambda: ops.pack(torch.zeros(2, 3)),
    "an empty weight": lambda: ops.pack(torch.zeros(0, 2)),
    "a norm of another width": lambda: ops.rms_norm(X, torch.ones(16), 1e-5),
    "a norm that is no whole vector": lambda: ops.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-5),
    "a norm in another format": lambda: ops.rms_norm(X, torch.ones(32).bfloat16(), 1e-5),
    "an infinite eps": lambda: ops.rms_norm(X, torch.ones(32), float("inf")),
    "keys of fewer heads": lambda: ops.keep(layer_cache(3, 16), step_of(2), torch.zeros(2, 32), torch.zeros(2, 48)),
    "values of fewer tokens": lambda: ops.keep(layer_cache(3, 16), step_of(2), torch.zeros(2, 48), torch.zeros(1, 48)),
    "queries of fewer heads": lambda: ops.attend(layer_cache(3, 16), torch.zeros(2, 80), 6, step_of(2), 0.25),
    "heads that are not dealt out evenly": lambda: ops.attend(
        layer_cache(3, 16), torch.zeros(2, 80), 5, step_of(2), 0.25
    ),
    "narrow heads": lambda: ops.attend(layer_cache(3, 8), torch.zeros(2, 48), 6, step_of(2), 0.25),
    "a window before the beginning": lambda: ops.attend(
        layer_cache(3, 16), torch.zeros(2, 96), 6, step_of(2), 0.25, window=-1
    ),
    "half a block": lambda: layer_cache(3, 16)._replace(keys=torch.zeros(100)).check(),
    "slots of fewer tokens": lambda: abi.Step(
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(1, 1, dtype=torch.int32),
        torch.zeros(2, dtype=torch.int32),
        ops.scratch_for(1, 1),
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_would_leave_its_tensors_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        CALLS[what]()
    assert "\n" not in str(caught.value)
