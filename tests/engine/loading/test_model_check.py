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
from serving.engine.loading.model_check import check_model
from serving.engine.models.families import FAMILIES
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


DEEP = "[" * 100_000
HEADERS: dict[str, str] = {
    "nested without end": '{"a":' + DEEP,
    "of no object": "[1, 2]",
    "with a tensor that is none": '{"a": 5}',
    "with a shape of no list": '{"a": {"dtype": "I8", "shape": 5, "data_offsets": [0, 0]}}',
    "with sizes beyond any number": '{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 1e999]}}',
    "with sizes of many digits": '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % ("9" * 5000),
    "with many dimensions": '{"a": {"dtype": "F32", "shape": [%s1], "data_offsets": [0, 4]}}'
    % ("4611686018427387904," * 999),
    "with sizes below zero": '{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
    "with half a tensor": '{"a": {"dtype": "F32", "shape": [0.5], "data_offsets": [0, 2]}}',
    "with an end before its beginning": '{"a": {"dtype": "I8", "shape": [1], "data_offsets": [1, 0]}}',
    "with a gap": '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    "with tensors over each other": (
        '{"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]},'
        ' "b": {"dtype": "I8", "shape": [2], "data_offsets": [1, 3]}}'
    ),
    "with a name over two lines": '{"a\\nb": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}}',
    "with half a character": '{"\\ud800": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_hostile_header_is_refused_in_a_sentence(what: str, model: Path) -> None:
    text = HEADERS[what].encode()
    first_file(model).write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ModelError, match=r"model-0.*: its safetensors header is broken: ") as caught:
        check(model)
    assert len(str(caught.value)) < len(str(model)) + 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"weight_map": ' + DEEP, r"index\.json: cannot be read as JSON"),
        ('{"weight_map": {"a": 1' + "0" * 5000 + "}}", r"index\.json: cannot be read as JSON"),
        ('{"weight_map": {"a": "\\ud800"}}', r"which is not there"),
        ('{"weight_map": {"a": "x\\u0000y"}}', r"which is not there"),
        ('{"weight_map": {"a": "%s"}}' % ("x" * 5000), r"which is not there"),
        ('{"weight_map": [1]}', r"has no weight_map"),
    ],
)
def test_a_hostile_index_is_refused_in_a_sentence(text: str, sentence: str, model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=sentence) as caught:
        check(model)
    assert len(str(caught.value)) < 2 * len(str(model)) + 300


LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1"),
    "layers without end": ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1"),
    "a hidden size of no memory": ({"hidden_size": 6 * 10**17}, "hidden_size must be a whole number"),
    "no heads": ({"num_attention_heads": 0}, "config.json: "),
    "heads below zero": ({"num_key_value_heads": -3}, "num_key_value_heads must be a whole number"),
    "more heads than elements": ({"num_attention_heads": 97, "num_key_value_heads": 97}, "config.json: "),
    "heads of no memory": ({"head_dim": 2**40}, "head_dim must be a whole number"),
    "a number of many bits": ({"intermediate_size": 2**70}, "intermediate_size is 1180591620717411303424, with which"),
    "an infinite eps": ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf, with which nothing can be computed"),
    "an eps that is no number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, with which"),
    "an eps beyond float32": ({"rms_norm_eps": 1e300}, "rms_norm_eps is 1e.300, with which"),
    "rotary parameters that are none": ({"rope_parameters": [1]}, "config.json: "),
    "a rotary type that is none": ({"rope_parameters": {"rope_type": ["linear"], "rope_theta": 1e4}}, "config.json: "),
    "a rotary base of zero": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "config.json: "),
    "ends that are words": ({"eos_token_id": ["</s>"]}, "config.json: "),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_numbers_are_refused_in_a_sentence(what: str, model: Path) -> None:
    changes, sentence = HOSTILE[what]
    change_config(model, **changes)
    (model / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=sentence) as caught:
        check(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.25, 0.5, 0.99, 1.5, 64, 1024, 4096, -1, 0, "0.5", 1e30])
@pytest.mark.parametrize("kind", ["linear", "default"])
def test_rotations_of_other_widths_than_the_code_expects_are_refused(part: object, kind: str, model: Path) -> None:
    """The kernels would write past a head's end, and Hugging Face's own code cannot compute it."""
    change_config(model, rope_parameters=LINEAR | {"rope_type": kind, "partial_rotary_factor": part})
    with pytest.raises(ModelError, match=r"config\.json: .*(partial_rotary_factor|rotary positions)"):
        check(model)


@pytest.mark.parametrize("name", ["gpt_neox", "glm", "phi", "stablelm", "nemotron"])
def test_families_that_rotate_a_part_of_each_head_do_so(name: str, tmp_path: Path) -> None:
    save_model(name, tmp_path)
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    change_config(tmp_path, rope_parameters=rope | {"partial_rotary_factor": 0.5})
    check(tmp_path)
    change_config(tmp_path, rope_parameters=rope | {"partial_rotary_factor": 1.5})
    with pytest.raises(ModelError, match="partial_rotary_factor must be above 0 and at most 1"):
        check(tmp_path)


@pytest.mark.parametrize("ids", ["</s>", [[1]], [None], True, 1.5, {"a": 1}])
def test_ends_that_are_no_tokens_are_refused(ids: object, model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(ModelError, match=r"generation_config\.json: .*eos_token_id"):
        check(model)


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
        "from serving.engine.loading.model_check import check_model\n"
        "check_model(ModelConfig(path=Path(sys.argv[1])), 2)"
    )
    subprocess.run([sys.executable, "-c", program, str(llama)], check=True)
