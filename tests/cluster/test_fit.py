"""A serving configuration against the model and the GPUs."""

from cluster.planning.fit import fit_notes, fit_problems
from cluster.planning.model_shape import read_shape
from serving.config import load_config
from tests.cluster.conftest import ROOT
from tests.cluster.test_model_shape import MODELS

LARGE = read_shape(MODELS / "llama-3.1-405b")
CONFIG = ROOT / "configs" / "llama-3.1-405b-tp16-2x8-h100.yaml"


def test_a_configuration_that_suits_its_gpus_has_no_problems() -> None:
    assert fit_problems(load_config(CONFIG), LARGE, 79.6) == []
    assert fit_notes(load_config(CONFIG), LARGE, 79.6, 8) == [
        "each of the 8 KV heads is held by 2 ranks: more KV memory in all"
    ]


def test_a_cache_that_leaves_no_room_for_the_weights_is_named() -> None:
    (problem,) = fit_problems(load_config(CONFIG, ["engine.kv_cache_gib=40"]), LARGE, 79.6)
    assert problem.startswith("a rank needs 91.")
    assert "engine.kv_cache_gib 40), but a GPU has 79.6" in problem


def test_more_ranks_than_heads_are_named() -> None:
    config = load_config(CONFIG, ["parallel.tensor_parallel_size=144"])
    assert fit_problems(config, LARGE, 79.6) == [
        "parallel.tensor_parallel_size is 144, but the model has 128 attention heads"
    ]
    assert fit_notes(config, LARGE, 79.6, 8) == []


def test_a_model_that_one_node_holds_is_pointed_to_plain_ray_serve() -> None:
    config = load_config(ROOT / "configs" / "llama-3.1-70b-tp8-2x4-a100.yaml")
    (note,) = fit_notes(config, read_shape(MODELS / "llama-3.1-70b"), 80, 4)
    assert note.startswith("one node is enough: 4 GPUs hold the model")
