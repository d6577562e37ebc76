"""Configuration: what is refused, with which words, and that a dump is the same run again."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.config import Config, ModelConfig, dump_config, load_config
from serving.errors import ConfigError

MINIMAL: dict[str, object] = {"model": {"path": "models/tiny"}}


def refusal(source: Path | dict[str, object], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_model_path_is_all_that_must_be_said() -> None:
    config = load_config(MINIMAL)
    assert config.model.path == Path("models/tiny")
    assert config.parallel.tensor_parallel_size == 2
    assert config.http.port == 8000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"model": {"path": "x"}, "engin": {}}, "configuration: unknown key engin; did you mean engine?"),
        (
            {"model": {"path": "x"}, "engine": {"max_runing": 3}},
            "configuration: unknown key engine.max_runing; did you mean max_running?",
        ),
        ({"modle": {"path": "x"}}, "configuration: unknown key modle; did you mean model?"),
        ({"model": {"pth": "x"}}, "configuration: unknown key model.pth; did you mean path?"),
        (
            {"model": {"path": "x"}, "parallel": {"zzz": 1}},
            "configuration: unknown key parallel.zzz; "
            "known here: tensor_parallel_size, cpus_per_rank, gpus_per_rank, placement, balance_mlp",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(source: dict[str, object], message: str) -> None:
    assert refusal(source) == message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("http.port=0", "http.port"),
        ("http.port=many", "http.port"),
        ("model.dtype=fp16", "model.dtype"),
        ("model.path=", "model.path"),
        ("engine.kv_cache_gib=.inf", "engine.kv_cache_gib"),
        ("engine.kv_cache_gib=.nan", "engine.kv_cache_gib"),
        ("fault.peer_timeout_s=.inf", "fault.peer_timeout_s"),
        ("parallel.placement=NEAR", "parallel.placement"),
        ("name=Upper", "name"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(override: str, key: str) -> None:
    assert refusal(MINIMAL, override).startswith(f"configuration: {key}: ")


def test_a_missing_model_is_named() -> None:
    assert refusal({}) == "configuration: model: Field required"
    assert refusal({"model": {}}) == "configuration: model.path: Field required"


def test_a_value_where_a_section_belongs_is_refused() -> None:
    assert refusal({**MINIMAL, "engine": 3}) == "configuration: engine is a section: its keys stand beneath it"
    assert refusal({**MINIMAL, "engine": 3}, "engine.block_size=8").endswith("engine is not a section")


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "model:\n  path: models/tiny\nengine:\nhttp:\n")
    assert load_config(path) == load_config(MINIMAL)


def test_an_override_changes_one_key_and_not_its_source() -> None:
    source = {"model": {"path": "a"}, "engine": {"block_size": 8}}
    config = load_config(source, ["engine.max_running=4", "model.served_name=mine", "model.path=b"])
    assert (config.engine.block_size, config.engine.max_running) == (8, 4)
    assert (config.model.name, config.model.path) == ("mine", Path("b"))
    assert source == {"model": {"path": "a"}, "engine": {"block_size": 8}}


def test_the_last_override_of_a_key_wins() -> None:
    assert load_config(MINIMAL, ["http.port=1", "http.port=2"]).http.port == 2


def test_an_override_is_read_as_yaml() -> None:
    config = load_config(MINIMAL, ["model.shard_cache=null", "engine.prefix_cache=false", "model.path=a=b"])
    assert config.model.shard_cache is None
    assert config.engine.prefix_cache is False
    assert config.model.path == Path("a=b")


def test_an_override_may_name_the_only_model() -> None:
    assert load_config({}, ["model.path=x"]).model.path == Path("x")


@pytest.mark.parametrize("override", ["engine", "=3", ".x=3", "engine.=3", "a..b=3"])
def test_an_override_of_the_wrong_form_is_refused(override: str) -> None:
    assert refusal(MINIMAL, override) == f"--set {override}: expected section.key=value"


def test_an_override_that_is_not_yaml_is_refused() -> None:
    assert refusal(MINIMAL, "model.path=[").startswith("--set model.path=[: not a YAML value: ")


@pytest.mark.parametrize(
    "endpoint",
    ["http://user:SECRET@host:4318", "https://SECRET@host", "http://host:4318/?key=SECRET", "http://host/#SECRET"],
)
def test_an_endpoint_with_credentials_is_refused_without_them_and_says_where_they_go(endpoint: str) -> None:
    told = refusal({"model": {"path": "x"}}, f"observe.otlp_endpoint={endpoint}")
    assert "OTEL_EXPORTER_OTLP_HEADERS" in told
    assert "SECRET" not in told


@pytest.mark.parametrize(
    "override", ["model.path.x=http://user:SECRET@host", "=http://u:SECRET@host", "a=[http://u:SECRET@h"]
)
def test_a_complaint_about_an_override_shows_no_credential_in_it(override: str) -> None:
    assert "SECRET" not in refusal({"model": {"path": "x"}}, override)


@pytest.mark.parametrize(
    "endpoint", ["http://host:99999", "http://host:x", "http://:4318", "http://[::1", "http://host:0"]
)
def test_an_endpoint_that_no_connection_could_be_tried_to_is_refused(endpoint: str) -> None:
    told = refusal({"model": {"path": "x"}}, f"observe.otlp_endpoint={endpoint}")
    assert "has no host, or a port that is none" in told


def test_an_override_of_an_unknown_key_gets_the_nearest_name() -> None:
    assert refusal(MINIMAL, "http.prot=1") == "configuration: unknown key http.prot; did you mean port?"


def test_a_budget_that_cannot_hold_every_decode_is_refused() -> None:
    message = refusal(MINIMAL, "engine.max_batched_tokens=16", "engine.max_running=17")
    assert message.startswith("configuration: engine: max_batched_tokens must be at least max_running")


def test_an_exposed_host_needs_keys_or_so_many_words() -> None:
    assert "http.host 0.0.0.0 is reachable from outside" in refusal(MINIMAL, "http.host=0.0.0.0")
    assert load_config(MINIMAL, ["http.host=0.0.0.0", "security.insecure=true"]).http.host == "0.0.0.0"
    assert load_config(MINIMAL, ["http.host=0.0.0.0", "security.api_keys_file=keys"]).http.host == "0.0.0.0"
    assert load_config(MINIMAL, ["http.host=::1"]).http.host == "::1"


def test_a_configuration_is_frozen() -> None:
    config = load_config(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.http.port = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.http = config.http


def test_a_dump_loads_to_an_equal_tree(tmp_path: Path) -> None:
    overrides = ["model.served_name=m", "engine.kv_cache_gib=0.5", "security.api_keys_file=k", "model.shard_cache=null"]
    for config in (load_config(MINIMAL), load_config(MINIMAL, overrides)):
        assert load_config(written(tmp_path, dump_config(config))) == config


def test_a_dump_holds_every_key(tmp_path: Path) -> None:
    text = dump_config(load_config(MINIMAL))
    for section in Config.model_fields:
        assert f"{section}:" in text
    assert "max_batched_tokens: 512" in text


def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'}: cannot be read as text: ")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe")
    assert "cannot be read as text" in refusal(binary)


def test_a_file_that_is_not_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, "model:\n  path: x\n bad: [\n"))
    assert "not valid YAML: " in message
    assert message.endswith("in line 3")


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected sections such as `model:`" in refusal(written(tmp_path, text))


def test_a_model_is_named_after_its_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelConfig(path=Path("models/tiny")).name == "tiny"
    assert ModelConfig(path=Path()).name == tmp_path.name
    assert ModelConfig(path=Path("models/tiny"), served_name="mine").name == "mine"


def test_every_setting_is_documented_beneath_itself() -> None:
    for name, section in Config.model_fields.items():
        for key, field in getattr(section.annotation, "model_fields", {}).items():
            assert field.description, f"{name}.{key}"
