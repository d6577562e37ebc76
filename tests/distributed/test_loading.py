"""What a rank reads, keeps and reports while it loads, besides giving the right logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import distributed_c10d

from serving.config import ModelConfig
from serving.engine.distributed.collectives import Collectives, make_collectives
from serving.engine.loading.loader import load_model, unwatched
from serving.engine.loading.mlp_balance import GRAIN
from serving.errors import ModelError
from tests.distributed.ranks import RankPool, RanksFailed
from tests.distributed.test_families import PROMPTS, NaiveAttention, assert_same, gathered, local_logits
from tests.engine.tiny_models import reference_logits, save_model

Logits = np.ndarray[Any, Any]


def load_twice(collectives: Collectives, folder: Path, cache: Path) -> dict[str, Any]:
    """Load without a kept shard, then with it; the parameters must be the same, bit for bit."""
    steps: list[tuple[int, int]] = []
    config = ModelConfig(path=folder, dtype="bfloat16", max_model_len=32, shard_cache=cache)
    first = load_model(config, collectives, torch.device("cpu"), lambda done, total: steps.append((done, total)))
    second = load_model(config, collectives, torch.device("cpu"), lambda done, total: None)
    pairs = zip(first.named_parameters(), second.named_parameters(), strict=True)
    return {
        "same": all(name == other and torch.equal(weight, kept) for (name, weight), (other, kept) in pairs),
        "steps": steps,
        "bytes": first.shard_bytes,
        "eos": first.eos_token_ids,
        "dtype": str(second.dtype),
        "tied": second.head.weight.data_ptr() == second.base.get_input_embeddings().weight.data_ptr(),
    }


def next_tokens(collectives: Collectives, folder: Path, prompt: list[int]) -> Logits:
    config = ModelConfig(path=folder, dtype="float32", shard_cache=None)
    model = load_model(config, collectives, torch.device("cpu"), lambda done, total: None)
    model.attach(NaiveAttention([len(prompt)]))
    with torch.inference_mode():
        return model.logits(model.hidden_states(torch.tensor(prompt), torch.arange(len(prompt)))).numpy()


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Logits]:
    """A tied Llama in one file, and its logits."""
    folder = tmp_path_factory.mktemp("tied")
    return folder, reference_logits(save_model("llama, tied", folder), PROMPTS).numpy()


def test_a_model_in_several_files_gives_the_same(ranks2: RankPool, tmp_path: Path, tied: tuple[Path, Logits]) -> None:
    save_model("llama, tied", tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_same(gathered(ranks2.run(local_logits, tmp_path, PROMPTS)), tied[1])


def test_older_names_of_tensors_are_understood(ranks2: RankPool, tmp_path: Path) -> None:
    theirs = reference_logits(save_model("gpt_neox", tmp_path), PROMPTS).numpy()
    file = tmp_path / "model.safetensors"
    tensors = {name.replace("lm_head", "embed_out"): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    assert "embed_out.weight" in tensors
    assert_same(gathered(ranks2.run(local_logits, tmp_path, PROMPTS)), theirs)


def test_tensors_without_the_usual_prefix_are_understood(ranks2: RankPool, tmp_path: Path) -> None:
    theirs = reference_logits(save_model("opt", tmp_path), PROMPTS).numpy()
    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}, file)
    assert_same(gathered(ranks2.run(local_logits, tmp_path, PROMPTS)), theirs)


def test_a_kept_shard_is_the_same_as_a_fresh_one(ranks2: RankPool, tmp_path: Path, tied: tuple[Path, Logits]) -> None:
    ranks = ranks2.run(load_twice, tied[0], tmp_path)
    assert all(rank["same"] and rank["tied"] for rank in ranks)
    assert {rank["dtype"] for rank in ranks} == {"torch.bfloat16"}
    assert {rank["eos"] for rank in ranks} == {frozenset({2})}
    assert len(list(tmp_path.iterdir())) == 2


def test_progress_counts_up_to_the_shards_bytes(ranks2: RankPool, tmp_path: Path, tied: tuple[Path, Logits]) -> None:
    for rank in ranks2.run(load_twice, tied[0], tmp_path):
        done = [step[0] for step in rank["steps"]]
        assert done == sorted(done)
        assert rank["steps"][-1] == (rank["bytes"], rank["bytes"])


def test_a_rank_holds_its_share_only(ranks2: RankPool, tied: tuple[Path, Logits]) -> None:
    whole = (tied[0] / "model.safetensors").stat().st_size
    # 6 heads in 3 groups are dealt out 4 + 2, the MLP's 160 columns 64 + 96.
    assert all(rank["bytes"] < 0.65 * whole for rank in ranks2.run(local_logits, tied[0], PROMPTS))


def test_the_mlp_evens_out_what_the_ranks_hold(ranks2: RankPool, tmp_path: Path) -> None:
    save_model("llama, 9 heads", tmp_path)
    uneven, even = (
        [rank["bytes"] for rank in ranks2.run(local_logits, tmp_path, PROMPTS, balance)] for balance in (False, True)
    )
    grain = 3 * GRAIN * 3 * 144 * 4  # columns that move together, in 3 layers, of gate, up and down, in float32
    assert sum(even) == sum(uneven)
    assert max(even) - min(even) < grain < max(uneven) - min(uneven)


def test_ranks_of_equal_heads_keep_their_split(ranks2: RankPool, tmp_path: Path) -> None:
    save_model("gpt_neox", tmp_path)
    plain, balanced = (
        [rank["bytes"] for rank in ranks2.run(local_logits, tmp_path, PROMPTS, balance)] for balance in (False, True)
    )
    assert plain == balanced


def test_a_spoilt_kept_shard_is_made_anew(ranks2: RankPool, tmp_path: Path, tied: tuple[Path, Logits]) -> None:
    ranks2.run(load_twice, tied[0], tmp_path)
    kept = sorted(tmp_path.iterdir())
    whole = [file.read_bytes() for file in kept]
    for file, content in zip(kept, whole, strict=True):
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert all(rank["same"] for rank in ranks2.run(load_twice, tied[0], tmp_path))
    assert [file.read_bytes() for file in kept] == whole


def test_a_changed_model_does_not_meet_its_old_shard(ranks2: RankPool, tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    save_model("qwen2", folder)
    ranks2.run(load_twice, folder, cache)
    shutil.rmtree(folder)
    save_model("qwen2", folder)
    ranks2.run(load_twice, folder, cache)
    assert len(list(cache.iterdir())) == 4


def test_a_bad_model_is_refused_on_every_rank(ranks2: RankPool, tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(RanksFailed) as caught:
        ranks2.run(local_logits, tmp_path, PROMPTS)
    assert {type(error) for error in caught.value.errors.values()} == {ModelError}
    assert set(caught.value.errors) == {0, 1}


def set_up_and_load(collectives: Collectives, folder: Path) -> None:
    """On a rank: all that ranks do together before they serve, where torch can neither pickle nor unpickle."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("objects go between the ranks")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_object_to_tensor", "_tensor_to_object"):
            patch.setattr(distributed_c10d, name, refuse)
        for one_machine in (True, False):
            make_collectives(collectives.rank, collectives.world, one_machine)
        load_model(ModelConfig(path=folder, shard_cache=None), collectives, torch.device("cpu"), unwatched)


def test_no_rank_unpickles_what_another_sends(ranks2: RankPool, tied: tuple[Path, Logits]) -> None:
    """DeepSpeed is among it, whose code the search through ours does not see."""
    ranks2.run(set_up_and_load, tied[0])


def test_the_demo_model_gives_hugging_faces_logits(ranks2: RankPool) -> None:
    folder = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the demo model is not there: gangway demo-model writes it")
    from transformers import AutoModelForCausalLM

    prompt = [1, 504, 3575, 282, 4649, 314]
    theirs = reference_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), [prompt]).numpy()
    ours = np.concatenate(ranks2.run(next_tokens, folder, prompt), axis=1)
    assert np.abs(ours - theirs).max() < 5e-4
    assert (ours.argmax(1) == theirs.argmax(1)).all()
