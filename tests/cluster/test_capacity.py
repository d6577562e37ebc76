"""What a rank holds, and how many ranks are needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.loader import load_spec
from cluster.errors import ShapeError
from cluster.planning.gpus import GPUS
from cluster.planning.memory import (
    GIB,
    Load,
    configured_memory,
    fits,
    kv_replicas,
    rank_memory,
    rank_parameters,
    smallest_tp,
)
from cluster.planning.model_shape import ModelShape, read_shape, shape_of
from tests.cluster.conftest import CONFIGS
from tests.cluster.test_model_shape import MODELS, TINY

SHIPPED = [
    ("llama-3.1-405b-tp16-2x8-h100", "llama-3.1-405b", "H100"),
    ("llama-3.1-70b-tp8-2x4-a100", "llama-3.1-70b", "A100-40"),
]


def shape(name: str) -> ModelShape:
    return read_shape(MODELS / name)


@pytest.mark.parametrize(
    ("name", "tp", "gib"),
    [("llama-3.1-8b", 1, 22), ("llama-3.1-70b", 2, 75), ("llama-3.1-70b", 4, 40), ("llama-3.1-405b", 8, 104)],
)
def test_memory_of_known_models_is_as_worked_out_by_hand(name: str, tp: int, gib: float) -> None:
    assert rank_memory(shape(name), tp, Load()).total / GIB == pytest.approx(gib, rel=0.05)


def test_the_smallest_number_of_ranks_is_the_first_that_fits() -> None:
    for name in ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"):
        least = smallest_tp(shape(name), 80, Load())
        assert least is not None
        assert fits(shape(name), least, 80, Load())
        assert least == 1 or not fits(shape(name), least - 1, 80, Load())


def test_nothing_fits_a_gpu_that_the_overhead_fills() -> None:
    assert smallest_tp(shape("llama-3.1-8b"), 3, Load()) is None


def test_more_ranks_than_kv_heads_repeat_them() -> None:
    model = shape("llama-3.1-405b")
    assert [kv_replicas(model, tp) for tp in (1, 8, 9, 16, 17, 32, 128)] == [1, 1, 2, 2, 4, 4, 16]
    assert rank_memory(model, 16, Load()).kv == rank_memory(model, 8, Load()).kv


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(ShapeError, match="129 ranks are more than the model's 128 attention heads"):
        rank_memory(shape("llama-3.1-405b"), 129, Load())


def test_one_rank_holds_every_parameter() -> None:
    for name in ("llama-3.1-8b", "qwen2.5-72b", "mistral-large-2407"):
        model = shape(name)
        grains = model.layers * model.ffn_matrices * model.hidden * 63
        assert 0 <= rank_parameters(model, 1) - model.parameters <= grains


@given(
    heads=st.sampled_from([4, 6, 8, 9, 12, 32]),
    group=st.sampled_from([1, 2, 3, 4]),
    ffn=st.integers(1, 40).map(lambda n: n * 32),
    tp=st.integers(1, 12),
    tied=st.booleans(),
)
def test_the_ranks_together_hold_at_least_the_model(heads: int, group: int, ffn: int, tp: int, tied: bool) -> None:
    group = group if heads % group == 0 else 1
    tp = min(tp, heads)
    model = shape_of(
        TINY
        | {
            "num_attention_heads": heads,
            "num_key_value_heads": heads // group,
            "head_dim": 8,
            "intermediate_size": ffn,
            "tie_word_embeddings": tied,
        }
    )
    assert rank_parameters(model, tp) * tp >= model.parameters
    assert rank_parameters(model, tp) <= rank_parameters(model, 1)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ShapeError, match="dtype int4: known are bfloat16, float16, float32"):
        rank_memory(shape("llama-3.1-8b"), 1, Load(dtype="int4"))


@pytest.mark.parametrize(("config", "model", "gpu"), SHIPPED)
def test_every_shipped_configuration_fits_the_gpus_that_it_names(config: str, model: str, gpu: str) -> None:
    spec = load_spec(CONFIGS[0].with_name(f"{config}.yaml"))
    assert configured_memory(shape(model), spec.serving).total <= 0.95 * GPUS[gpu].gpu_memory_gib * GIB
