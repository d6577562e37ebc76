"""The engine on real ranks: a request's tokens depend on the request alone, and are Hugging Face's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.engine.kernels import ops
from serving.messages import Cancel, Sampling, Submit
from tests.distributed.ranks import RankPool
from tests.distributed.scripted import Script, run_script
from tests.engine.tiny_models import MODELS, VOCAB, save_model

DEMO = Path("models/smollm2-135m-instruct")


@pytest.fixture(params=[1, 2, 3], scope="package")
def pool(request: pytest.FixtureRequest) -> RankPool:
    group: RankPool = request.getfixturevalue(f"ranks{request.param}")
    return group


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_model("llama, tied", folder)
    return folder


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def request(i: int, **changes: Any) -> Submit:
    """Of every kind in turn: greedy, seeded, cut off, penalised; lengths from 1 to 40."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"temperature": 1.2, "min_p": 0.05, "logit_bias": {5: 2.0}},
    ]
    sampling = {"seed": 100 + i, "max_tokens": 6 + i % 12, "ignore_eos": True, **kinds[i % len(kinds)], **changes}
    return Submit(id=f"r{i}", prompt=prompt(i, 1 + (i * 7) % 40), sampling=Sampling(**sampling))


def run(pool: RankPool, folder: Path, script: Script, **settings: Any) -> dict[str, Any]:
    """Rank 0's answers, after checking that every rank drew the same tokens in every step."""
    ranks = pool.run(run_script, folder, script, settings)
    assert all(rank["drawn"] == ranks[0]["drawn"] for rank in ranks)
    assert ranks[0]["blocks"] == 0, "every block came back"
    answer: dict[str, Any] = ranks[0]
    return answer


@pytest.fixture(scope="package")
def alone(ranks1: RankPool, tiny: Path) -> dict[str, list[int]]:
    """What each request answers when nothing else runs: one after another, no prefix cache, one rank."""
    script: Script = {40 * i: [request(i)] for i in range(20)}
    answer = run(ranks1, tiny, script, engine={"prefix_cache": False, "kv_cache_gib": 0.01})
    tokens: dict[str, list[int]] = answer["tokens"]
    return tokens


def test_a_batch_of_all_kinds_answers_as_each_alone(pool: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    assert run(pool, tiny, {0: [request(i) for i in range(20)]})["tokens"] == alone


@pytest.mark.quick
def test_several_threads_of_a_rank_change_nothing(ranks2: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    assert run(ranks2, tiny, {0: [request(i) for i in range(20)]}, parallel={"cpus_per_rank": 2})["tokens"] == alone


def test_arrival_order_and_chunk_size_change_nothing(ranks2: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    script: Script = {3 * i: [request(19 - i)] for i in range(20)}
    settings = {"max_batched_tokens": 16, "max_running": 7, "kv_cache_gib": 0.01}
    assert run(ranks2, tiny, script, engine=settings)["tokens"] == alone


@pytest.mark.quick
def test_preemption_changes_nothing(ranks2: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    per_token = 2 * 3 * 2 * 16 * 4  # two tensors, layers, KV heads of the fuller rank, head size, bytes
    blocks = 8 * 16 * per_token / 2**30
    answer = run(ranks2, tiny, {0: [request(i) for i in range(20)]}, engine={"kv_cache_gib": blocks * 1.001})
    assert answer["preemptions"] > 0
    assert answer["tokens"] == alone


@pytest.mark.quick
def test_prefix_hits_change_nothing(ranks2: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    twice: Script = {
        0: [request(i) for i in range(20)],
        60: [Submit(id=f"again{i}", prompt=request(i).prompt, sampling=request(i).sampling) for i in range(20)],
    }
    answer = run(ranks2, tiny, twice)
    assert answer["prefix_hits"] > 0
    assert {f"r{i}": answer["tokens"][f"again{i}"] for i in range(20)} == alone


def test_the_kernels_answer_as_torch_does(ranks2: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    settings = {"native_kernels": False, "kv_cache_gib": 0.01}
    answer = run(ranks2, tiny, {0: [request(i) for i in range(20)]}, engine=settings)
    assert not answer["native"]
    assert answer["tokens"] == alone


@pytest.mark.quick
def test_a_resumed_request_goes_on_to_the_letter(ranks2: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    def half(i: int) -> Submit:
        base = request(i)
        return Submit(id=base.id, prompt=base.prompt, emitted=alone[base.id][: 1 + i % 5], sampling=base.sampling)

    answer = run(ranks2, tiny, {0: [half(i) for i in range(20)]})
    assert {id_: [*half(int(id_[1:])).emitted, *tokens] for id_, tokens in answer["tokens"].items()} == alone


def test_a_cancelled_request_leaves_the_others_alone(ranks2: RankPool, tiny: Path, alone: dict[str, list[int]]) -> None:
    gone = {f"r{i}" for i in range(0, 20, 3)}
    answer = run(ranks2, tiny, {0: [request(i) for i in range(20)], 5: [Cancel(ids=sorted(gone))]})
    assert {id_: tokens for id_, tokens in answer["tokens"].items() if id_ not in gone} == {
        id_: tokens for id_, tokens in alone.items() if id_ not in gone
    }


def test_logprobs_are_those_of_hugging_face(pool: RankPool, tiny: Path) -> None:
    ask = request(9, logprobs=4, temperature=0.0)
    answer = run(pool, tiny, {0: [ask]})
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = [*ask.prompt, *answer["tokens"]["r9"]]
    with torch.no_grad():
        truth = model(torch.tensor([ids])).logits[0].log_softmax(-1)[len(ask.prompt) - 1 : -1]
    for position, (chosen, top) in enumerate(answer["logprobs"]["r9"]):
        values, tokens = truth[position].topk(4)
        assert [token for token, _ in top] == tokens.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)
        assert chosen == pytest.approx(float(truth[position, answer["tokens"]["r9"][position]]), abs=1e-4)


@pytest.fixture(scope="package")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[list[int]]]]:
    """Every model's folder and Hugging Face's greedy text of two prompts."""
    found = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp("family")
        model = save_model(name, folder)
        found[name] = folder, [_greedy(model, prompt(i, 9 + 4 * i), 12) for i in range(2)]
    return found


def _greedy(model: Any, ids: list[int], count: int) -> list[int]:
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_every_family_speaks_hugging_faces_greedy_text(
    ranks2: RankPool, families: dict[str, tuple[Path, list[list[int]]]], name: str, native: bool
) -> None:
    folder, truth = families[name]
    sampling = Sampling(seed=0, max_tokens=12, temperature=0.0, ignore_eos=True)
    script: Script = {0: [Submit(id=str(i), prompt=prompt(i, 9 + 4 * i), sampling=sampling) for i in range(2)]}
    settings = {"native_kernels": native, "kv_cache_gib": 0.01, "max_batched_tokens": 16, "max_running": 8}
    answer = run(ranks2, folder, script, engine=settings, model={"max_model_len": 32})
    assert [answer["tokens"][str(i)] for i in range(2)] == truth
    if not native:
        assert not answer["native"]


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model is not here: make model")
@pytest.mark.parametrize("native", [True, False])
def test_smollm2_equals_hugging_faces_generate(ranks2: RankPool, native: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    questions = ["What is the capital of France?", "Write a haiku about bridges.", "Count from one to ten."]
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False)
        for q in questions
    ]
    truth = []
    for ids in prompts:
        tensor = torch.tensor([ids])
        out = model.generate(tensor, attention_mask=torch.ones_like(tensor), do_sample=False, max_new_tokens=40)
        truth.append(out[0, len(ids) :].tolist())
    sampling = Sampling(seed=0, max_tokens=40, temperature=0.0)
    script: Script = {0: [Submit(id=str(i), prompt=ids, sampling=sampling) for i, ids in enumerate(prompts)]}
    settings = {"native_kernels": native, "kv_cache_gib": 0.1}
    answer = run(ranks2, DEMO, script, engine=settings, model={"max_model_len": 512})
    assert [answer["tokens"][str(i)] for i in range(3)] == truth
    assert "Paris" in tokenizer.decode(answer["tokens"]["0"])
    assert answer["native"] == (native and ops.available())
