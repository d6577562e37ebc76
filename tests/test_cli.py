"""The command line: its exit codes, and what it prints."""

import contextlib
import io
import os
import socket
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from unittest import mock

import pytest
import typer

from serving.cli.app import add_commands, run
from serving.config import load_config
from serving.errors import OperatorError

CONFIG = "model: {path: %s}\n"


def gangway(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def called(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, whose environment stays: a new process takes seconds for its imports."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % tmp_path)
    return path


def one_sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_no_credential_is_shown_of_an_address_that_is_one_too_many(config: Path) -> None:
    assert "SECRET" not in one_sentence(gangway("serve", config, "http://user:SECRET@host"), 2)


def test_nor_in_what_the_interpreter_shows_of_a_fault() -> None:
    code = (
        "import sys; from serving.cli import app; from unittest import mock\n"
        "with mock.patch.object(app, 'run', side_effect=RuntimeError('at http://u:SECRET@host')): app.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "SECRET" not in done.stderr
    assert done.stderr.splitlines()[-1] == "RuntimeError: at http://***@host"


def test_the_version_is_printed() -> None:
    done = gangway("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "gangway")


def test_wrong_usage_ends_the_process_with_one_sentence() -> None:
    assert "fly" in one_sentence(gangway("fly"), 2)


HELP = """
import sys
from serving.cli.app import run
assert run(["--help"]) == 0
print(*sys.modules, file=sys.stderr)
"""


def test_help_imports_nothing_large() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "batch" in done.stdout
    assert "cluster" in done.stdout
    packages = {name.partition(".")[0] for name in done.stderr.split()}
    assert not packages & {"ray", "torch", "transformers", "deepspeed", "kubernetes", "pyarrow", "numpy", "fsspec"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve"], "config"),
        (["serve", "missing.yaml"], "missing.yaml"),
        (["fly"], "fly"),
        (["serve", "x.yaml", "--fly"], "--fly"),
    ],
)
def test_wrong_usage_exits_2_with_one_sentence(arguments: list[str], told: str) -> None:
    assert told in one_sentence(called(*arguments), 2)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("engine.max_runing=3", "max_running"),
        ("parallel.tensor_parallel_size=0", "parallel.tensor_parallel_size"),
        ("http.host=0.0.0.0", "say --insecure (security.insecure=true)"),
        ("security.max_concurrent_per_key=3", "security.api_keys_file"),
        ("security.requests_per_minute_per_key=3", "security.api_keys_file"),
        ("nonsense", "section.key=value"),
    ],
)
def test_a_wrong_setting_exits_2_and_is_named(config: Path, override: str, told: str) -> None:
    assert told in one_sentence(called("serve", config, "--set", override), 2)


def test_the_whole_configuration_can_be_printed_and_read_back(config: Path, tmp_path: Path) -> None:
    done = called("serve", config, "--set", "http.port=8123", "--print-config")
    assert done.returncode == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(done.stdout)
    assert load_config(printed) == load_config(config, ["http.port=8123"])


def test_what_stands_in_where_a_request_is_silent_is_printed_with_the_configuration(config: Path) -> None:
    folder = load_config(config).model.path
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "max_new_tokens": 512}')
    done = called("serve", config, "--print-config")
    assert done.returncode == 0
    assert "generation_config: auto" in done.stdout
    assert done.stdout.endswith("has temperature 0.6, top_k 20, max_tokens 512\n")
    (folder / "generation_config.json").write_text('{"temperature": "hot"}')
    told = one_sentence(called("serve", config, "--print-config"), 1)
    assert "generation_config.json: temperature: Input should be a valid number" in told


def test_going_without_keys_beyond_loopback_is_said_in_so_many_words(config: Path) -> None:
    done = called("serve", config, "--set", "http.host=0.0.0.0", "--insecure", "--print-config")
    assert done.returncode == 0, done
    assert "insecure: true" in done.stdout


def test_a_folder_without_a_model_exits_1_before_anything_is_started(config: Path, tmp_path: Path) -> None:
    assert str(tmp_path) in one_sentence(called("serve", config), 1)


def test_the_status_of_no_server_exits_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert url in one_sentence(called("status", "--url", url), 1)


def test_a_command_of_another_package_that_is_broken_disturbs_no_other() -> None:
    app = typer.Typer()
    offered = {"gone": "no.such:thing", "demo": "serving.cli.app:demo_model", "many": "serving.cli.app:app"}
    add_commands(app, [EntryPoint(name, value, "gangway.commands") for name, value in offered.items()])
    main = typer.main.get_command(app).main
    with pytest.raises(OperatorError, match=r"gone cannot be loaded from no\.such:thing: ModuleNotFoundError"):
        main(["gone"], standalone_mode=False)
    assert main(["demo", "--help"], standalone_mode=False) == 0
    assert main(["many", "serve", "--help"], standalone_mode=False) == 0


def test_a_path_from_home_without_a_home_is_a_sentence(config: Path) -> None:
    done = called("serve", config, "--set", "model.path=~nobody-of-that-name/model")
    assert "this user has no home; name the whole path, or set HOME" in one_sentence(done, 1)
