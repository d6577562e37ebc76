"""Vectors of prompts on real ranks are Hugging Face's, in whatever chunks and beside whatever else they run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.messages import Pooling, Sampling, Submit, floats
from tests.distributed.ranks import RankPool
from tests.distributed.scripted import Script, run_script
from tests.engine.tiny_models import VOCAB, save_model

FAMILIES = ["llama, tied", "opt"]
POOLINGS = [Pooling(how=how, normalize=normalize) for how in ("mean", "last", "first") for normalize in (False, True)]
LENGTHS = [1, 2, 17, 40, 64]
"""The last one fills the model's context."""


def prompt(length: int) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def embed(length: int, place: int) -> Submit:
    unused = Sampling(seed=0, max_tokens=1)
    return Submit(id=f"{length}.{place}", prompt=prompt(length), sampling=unused, pooling=POOLINGS[place])


def generate(i: int) -> Submit:
    sampling = Sampling(seed=i, max_tokens=30, temperature=1.0, ignore_eos=True)
    return Submit(id=f"g{i}", prompt=prompt(20 + i), sampling=sampling)


EMBEDS = [embed(length, place) for length in LENGTHS for place in range(len(POOLINGS))]
GENERATES = [generate(i) for i in range(6)]


def expected(model: Any, submit: Submit) -> Tensor:
    assert submit.pooling is not None
    with torch.no_grad():
        states: Tensor = model.base_model(input_ids=torch.tensor([submit.prompt])).last_hidden_state[0]
    vector = {"mean": states.mean(dim=0), "last": states[-1], "first": states[0]}[submit.pooling.how]
    return vector / vector.norm() if submit.pooling.normalize else vector


def run(pool: RankPool, folder: Path, script: Script, **engine: Any) -> dict[str, Any]:
    answer: dict[str, Any] = pool.run(run_script, folder, script, {"engine": engine})[0]
    assert answer["blocks"] == 0, "every block came back"
    return answer


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_model(request.param, folder)


@pytest.mark.parametrize("ranks", [1, 2])
def test_vectors_are_hugging_faces(request: pytest.FixtureRequest, tiny: tuple[Path, Any], ranks: int) -> None:
    """Whole and in chunks of 16, twice the same prompt, beside requests that generate, which they leave alone."""
    folder, model = tiny
    pool: RankPool = request.getfixturevalue(f"ranks{ranks}")
    alone = run(pool, folder, {0: list(GENERATES)})["tokens"]
    mixed: Script = {0: [*GENERATES, *EMBEDS]}
    for engine in ({}, {"max_batched_tokens": 16, "max_running": 7}):
        answer = run(pool, folder, mixed, **engine)
        assert {one.id: answer["tokens"][one.id] for one in GENERATES} == alone
        for one in EMBEDS:
            assert (answer["ends"][one.id], answer["tokens"][one.id]) == ("stop", [])
            found = torch.tensor(floats(answer["embeddings"][one.id]))
            torch.testing.assert_close(found, expected(model, one), atol=1e-4, rtol=0)


def test_preemption_begins_a_vector_anew(ranks2: RankPool, tiny: tuple[Path, Any]) -> None:
    folder, model = tiny
    heads = max(1, model.config.num_attention_heads // 2)
    gib = 6 * 16 * 2 * 3 * heads * 16 * 4 / 2**30
    answer = run(
        ranks2, folder, {0: [*GENERATES, *EMBEDS]}, kv_cache_gib=gib * 1.001, max_batched_tokens=16, max_running=7
    )
    assert answer["preemptions"] > 0
    for one in EMBEDS:
        found = torch.tensor(floats(answer["embeddings"][one.id]))
        torch.testing.assert_close(found, expected(model, one), atol=1e-4, rtol=0)


def test_a_prompt_over_the_context_is_refused_with_a_sentence(ranks1: RankPool, tiny: tuple[Path, Any]) -> None:
    over = Submit(id="over", prompt=prompt(65), sampling=Sampling(seed=0, max_tokens=1), pooling=Pooling())
    answer = run(ranks1, tiny[0], {0: [over]})
    assert answer["ends"]["over"] == "the prompt has 65 tokens; 64 fit the model"
