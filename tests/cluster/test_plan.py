"""The plan's verdict comes first, and rests on what fits."""

import json

import pytest

from cluster.errors import ShapeError, SpecError
from cluster.planning.gpus import GPUS, NodeKind, find_gpu, parse_node
from cluster.planning.memory import Load
from cluster.planning.model_shape import shape_of
from cluster.planning.plan import make_plan, misfits, plan_model, traffic
from tests.cluster.test_model_shape import MODELS, TINY


@pytest.mark.parametrize(
    ("model", "node", "verdict", "tp", "nodes"),
    [
        ("llama-3.1-8b", "8x80", "one GPU", 1, 1),
        ("llama-3.1-70b", "8x80", "one node", 4, 1),
        ("qwen2.5-72b", "8x80", "one node", 4, 1),
        ("mistral-large-2407", "8x80", "one node", 4, 1),
        ("llama-3.1-405b", "8x80", "several nodes", 16, 2),
        ("llama-3.1-405b", "8x141", "one node", 8, 1),
        ("llama-3.1-70b", "4x40", "several nodes", 8, 2),
        ("llama-3.1-405b", "1x15", "several nodes", 128, 128),
        ("llama-3.1-405b", "8x8", "does not fit", None, None),
    ],
)
def test_the_verdict_follows_from_what_fits(
    model: str, node: str, verdict: str, tp: int | None, nodes: int | None
) -> None:
    plan = plan_model(MODELS / model, node=node)
    assert (plan.verdict, plan.tp, plan.nodes) == (verdict, tp, nodes)
    assert plan.single_node == (nodes == 1)


def test_when_one_node_is_enough_that_is_said_first() -> None:
    text = plan_model(MODELS / "llama-3.1-70b", gpu="H100").text()
    assert text.startswith("One node is enough: use plain Ray Serve on one node with 4 GPUs a replica")
    assert "network, for each token" not in text


def test_when_several_are_needed_their_number_is_said_first_and_then_the_cost() -> None:
    text = plan_model(MODELS / "llama-3.1-405b", gpu="H100").text()
    assert text.startswith("Several nodes are needed: 2 nodes of 8 x H100 (79.6 GiB), tensor_parallel_size 16.")
    assert "405,853,388,800 (756.0 GiB in bfloat16)" in text
    assert "253 all-reduces and 1 gather" in text
    assert "each of the 8 KV heads is held by 2 ranks" in text


def test_when_nothing_fits_that_is_said_and_no_memory_is_shown() -> None:
    plan = plan_model(MODELS / "llama-3.1-405b", node="8x8")
    assert plan.text().startswith("This model does not fit: it can be split over 128 ranks at most")
    assert (plan.memory, plan.traffic) == (None, None)


def test_bytes_on_the_network_are_those_of_a_ring() -> None:
    cost = traffic(plan_model(MODELS / "llama-3.1-70b", node="8x80").shape, 16, Load())
    assert cost.bytes_per_gpu == pytest.approx(4.9e6 * 161 / 160, rel=0.01)


def test_a_plan_is_json_with_its_headline() -> None:
    plan = plan_model(MODELS / "llama-3.1-405b", gpu="H100")
    tree = json.loads(json.dumps(plan.json()))
    assert tree["headline"] == plan.headline()
    assert tree["nodes"] == 2
    assert tree["memory"]["total"] == sum(tree["memory"][part] for part in ("weights", "kv", "activations", "overhead"))


def test_ranks_that_share_unequally_are_noted() -> None:
    model = shape_of(TINY | {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8})
    assert misfits(model, 3) == ["a feed-forward width of 16 on 3 ranks is not shared equally"]
    assert "9 heads on 2 ranks are not equal shares" in misfits(model, 2)[0]
    assert misfits(shape_of(TINY), 2) == []


def test_a_plan_for_a_shape_needs_no_folder() -> None:
    assert make_plan(shape_of(TINY), NodeKind("GPU", 1, 16), Load()).verdict == "one GPU"


@pytest.mark.parametrize("name", ["H100", "h100", "NVIDIA-H100", "A100-80GB", "l40s"])
def test_a_gpu_is_known_by_the_usual_spellings(name: str) -> None:
    assert find_gpu(name) in GPUS.values()


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(SpecError, match="known are A100-40, A100-80; describe any other as --node 8x80"):
        find_gpu("A100")
    with pytest.raises(SpecError, match="known are A10, "):
        find_gpu("TPU")
    assert find_gpu("L4", 2).gpus == 2


@pytest.mark.parametrize("text", ["", "8", "x80", "0x80", "8x0", "8x80x2", "-1x80"])
def test_a_node_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="expected GPUs x GiB, such as 8x80"):
        parse_node(text)


def test_a_node_may_have_another_number_of_a_known_gpu() -> None:
    assert plan_model(MODELS / "llama-3.1-8b", gpu="X1", node="2x48GB").node == NodeKind("X1", 2, 48.0)


def test_a_plan_needs_to_know_the_gpu_and_a_format() -> None:
    with pytest.raises(SpecError, match="name a GPU, such as --gpu H100"):
        plan_model(MODELS / "llama-3.1-8b")
    with pytest.raises(ShapeError, match="dtype"):
        plan_model(MODELS / "llama-3.1-8b", gpu="H100", load=Load(dtype="fp8"))
