"""Whatever is wrong with a model folder is told in one sentence that names the file, before any process starts."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.config import ModelConfig
from serving.engine.families import FAMILIES
from serving.engine.model_check import check_model
from serving.errors import ModelError
from tests.engine.tiny_models import MODELS, save_model

Spoil = Callable[[Path], object]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_model("llama", folder, max_shard_size="200KB")
    return folder


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A Llama in several files that a test may spoil."""
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def check(folder: Path, world: int = 2, max_model_len: int = 32) -> None:
    check_model(ModelConfig(path=folder, max_model_len=max_model_len), world)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """In the file that holds the final norm."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / index["model.norm.weight"]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def first_file(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def no_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def only_pickled(folder: Path) -> None:
    no_weights(folder)
    (folder / "pytorch_model.bin").touch()


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
    "a configuration that is not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: .* as JSON"),
    "a configuration without a type": (
        lambda f: (f / "config.json").write_text("{}"),
        r"config\.json: has no model_type",
    ),
    "an unknown type": (lambda f: change_config(f, model_type="mamba"), r"mamba is not supported; these are: .*llama"),
    "a mixture of experts": (lambda f: change_config(f, model_type="mixtral"), r"mixtral is not supported"),
    "a configuration that contradicts itself": (
        lambda f: change_config(f, hidden_size="wide"),
        r"config\.json: Hugging Face cannot read it",
    ),
    "quantised weights": (
        lambda f: change_config(f, quantization_config={"bits": 4}),
        r"config\.json: .* is quantised",
    ),
    "a missing file": (lambda f: first_file(f).unlink(), r"index\.json: names the file model-0.* which is not there"),
    "an index without a map": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        r"index\.json: has no weight_map",
    ),
    "an index that leaves the folder": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        r"not in the model's own folder",
    ),
    "a file cut short": (lambda f: cut(first_file(f), -1), r"model-0.*: has \d+ bytes where its header says \d+"),
    "a file cut within its header": (
        lambda f: cut(first_file(f), 40),
        r"model-0.*: not a safetensors file, or cut short",
    ),
    "an empty file": (lambda f: cut(first_file(f), 0), r"model-0.*: not a safetensors file"),
    "a header that is not JSON": (
        lambda f: first_file(f).write_bytes((4).to_bytes(8, "little") + b"{{{{"),
        r"model-0.*: its safetensors header is broken",
    ),
    "pickled weights only": (only_pickled, r"holds pickled weights only \(pytorch_model\.bin\)"),
    "no weights": (no_weights, r"holds neither model\.safetensors"),
    "a missing tensor": (
        lambda f: change_tensors(f, lambda t: t.pop("model.norm.weight")),
        r"the tensor model\.norm\.weight is missing",
    ),
    "a tensor of another shape": (
        lambda f: change_tensors(f, lambda t: t.update({"model.norm.weight": torch.ones(95)})),
        r"model-0.*: the tensor model\.norm\.weight has shape \[95\], config\.json asks for \[96\]",
    ),
    "a tensor of whole numbers": (
        lambda f: change_tensors(f, lambda t: t.update({"model.norm.weight": torch.ones(96, dtype=torch.int8)})),
        r"model-0.*: the tensor model\.norm\.weight is stored as I8",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_folder_is_refused_with_the_files_name(what: str, model: Path) -> None:
    spoil, sentence = SPOILT[what]
    spoil(model)
    with pytest.raises(ModelError, match=sentence) as caught:
        check(model)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        check(tmp_path / "nowhere")


def test_more_ranks_than_heads_are_refused(llama: Path) -> None:
    check(llama, world=6)
    with pytest.raises(ModelError, match="tensor_parallel_size is 7, but the model has 6 attention heads"):
        check(llama, world=7)


REFUSED_VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "falcon": ({"alibi": True}, "falcon with alibi positions is not supported"),
    "stablelm": ({"qk_layernorm": True}, "stablelm with a norm of its own for each head is not supported"),
    "cohere": ({"use_qk_norm": True}, "cohere with norms over queries and keys is not supported"),
    "phi3": ({"head_dim": 32}, "phi3 with a head size of its own is not supported"),
    "gemma3_text": ({"use_bidirectional_attention": True}, "attends in both directions"),
}


@pytest.mark.parametrize("name", REFUSED_VARIANTS)
def test_a_variant_that_would_be_wrong_is_refused(name: str, tmp_path: Path) -> None:
    save_model(name, tmp_path)
    check(tmp_path)
    changes, sentence = REFUSED_VARIANTS[name]
    change_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=sentence):
        check(tmp_path)


LONGEST = {
    "llama, dynamic rope": (64, "dynamic rotary positions change beyond 64 tokens"),
    "phi3, longrope": (32, "longrope rotary positions change beyond 32 tokens"),
    "opt": (64, "table of positions ends at 64"),
}


@pytest.mark.parametrize("name", LONGEST)
def test_lengths_that_would_change_answers_are_refused(name: str, tmp_path: Path) -> None:
    limit, sentence = LONGEST[name]
    save_model(name, tmp_path)
    check(tmp_path, max_model_len=limit)
    with pytest.raises(ModelError, match=sentence):
        check(tmp_path, max_model_len=limit + 1)


def test_code_in_the_folder_is_not_run_and_not_needed(model: Path) -> None:
    (model / "evil.py").write_text("raise SystemExit('ran')")
    change_config(model, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    check(model)
    change_config(model, model_type="evil")
    with pytest.raises(ModelError, match="evil is not supported"):
        check(model)


def test_every_family_is_tried() -> None:
    assert {name.partition(",")[0] for name in MODELS} == set(FAMILIES)


def test_the_check_does_not_need_deepspeed(llama: Path) -> None:
    program = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from pathlib import Path; from serving.config import ModelConfig\n"
        "from serving.engine.model_check import check_model\n"
        "check_model(ModelConfig(path=Path(sys.argv[1])), 2)"
    )
    subprocess.run([sys.executable, "-c", program, str(llama)], check=True)
