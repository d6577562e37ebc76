"""`gangway batch` where a Parquet output lies already: decided before any group is formed."""

import json
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from cluster.config.loader import load_spec
from serving.batch.input.parquet import open_parquet
from serving.batch.job_config import batch_config, job_key
from serving.batch.location import locate
from serving.batch.output.parquet import ANSWERS, join
from serving.batch.rows import GENERATE
from serving.config import is_loopback, load_config
from serving.runtime.command.preflight import absolute_paths
from tests.e2e.server import CONFIG, MODEL
from tests.test_cli import called, gangway, one_sentence


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An input of one row, the output to be, and what a kill may leave beside it."""
    pq.write_table(pa.table({"ask": ["a"]}), tmp_path / "in.parquet")
    lines = tmp_path / "out.parquet.lines"
    lines.write_text(json.dumps({"error": {"message": "too long"}}) + "\n")
    lines.with_name("out.parquet.lines.progress").write_text("{}")
    return tmp_path / "in.parquet", tmp_path / "out.parquet", lines


def test_a_job_computes_with_settings_of_its_own() -> None:
    overrides = (f"model.path={MODEL}", "engine.max_running=3", "engine.max_batched_tokens=100")
    on_cpus = batch_config(load_config(CONFIG, overrides))
    assert (on_cpus.engine.max_running, on_cpus.parallel.balance_mlp) == (100, True)
    on_gpus = batch_config(load_config(CONFIG, [*overrides, "parallel.gpus_per_rank=1", "batch.max_running=9"]))
    assert (on_gpus.engine.max_running, on_gpus.parallel.balance_mlp) == (9, False)


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_job_of_any_shipped_configuration_is_one_that_the_groups_processes_take(file: Path) -> None:
    """They check what they are sent, and a server that listens for others needs keys, which a job has not."""
    wide = ("http.host=0.0.0.0", "security.insecure=true")
    for overrides in ((), wide):
        job = batch_config(load_config(file, overrides))
        assert load_config(job.model_dump(mode="json")) == job
        assert is_loopback(job.http.host)


@pytest.mark.parametrize("file", sorted(Path("configs/cluster").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_job_of_any_shipped_cluster_is_one_that_the_groups_processes_take(file: Path) -> None:
    in_pods = load_spec(file).config_in_pods()
    job = batch_config(in_pods)
    assert not is_loopback(in_pods.http.host)
    assert load_config(job.model_dump(mode="json")) == job


def test_another_number_of_ranks_makes_another_job(files: tuple[Path, Path, Path]) -> None:
    """Sums over other ranks may differ in their last bits, and so may a text."""
    rows = open_parquet(str(files[0]), "ask", None)
    one, two = (load_config(CONFIG, [f"parallel.tensor_parallel_size={ranks}"]) for ranks in (1, 2))
    assert job_key(one, rows, GENERATE) != job_key(two, rows, GENERATE)


def test_of_a_finished_output_nothing_is_done_anew_and_nothing_is_left_beside_it(
    files: tuple[Path, Path, Path],
) -> None:
    source, output, lines = files
    settings = batch_config(absolute_paths(load_config(CONFIG, [f"model.path={MODEL}"])))
    rows = open_parquet(str(source), "ask", None)
    join(rows, locate(str(lines)), locate(str(output)), job_key(settings, rows, GENERATE), ANSWERS)
    content = output.read_bytes()
    done = gangway("batch", CONFIG, source, output, "--column", "ask", "--set", f"model.path={MODEL}")
    assert done.returncode == 0, done
    assert "is complete; there is nothing left to do" in done.stdout
    assert {path.name for path in output.parent.iterdir()} == {source.name, output.name}
    assert output.read_bytes() == content


def test_another_jobs_output_is_not_touched_nor_what_lies_beside_it(files: tuple[Path, Path, Path]) -> None:
    source, output, lines = files
    pq.write_table(pa.table({"b": [1]}), output)
    content = output.read_bytes()
    done = called("batch", CONFIG, source, output, "--column", "ask", "--set", f"model.path={MODEL}")
    assert "is not what this job wrote; --overwrite replaces it" in one_sentence(done, 1)
    assert output.read_bytes() == content
    assert lines.exists()


@pytest.mark.parametrize(
    ("names", "output", "sentence"),
    [
        (["a.jsonl"], "out.jsonl", "it would be one of the files of"),
        (["a.jsonl", "b.parquet"], "../out.jsonl", "some of its files are Parquet, and some are not"),
        ([], "../out.jsonl", "it is a directory without files"),
    ],
)
def test_a_folder_that_is_no_input_is_refused(tmp_path: Path, names: list[str], output: str, sentence: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}\n")
    done = called("batch", CONFIG, folder, folder / output, "--set", f"model.path={MODEL}")
    assert sentence in one_sentence(done, 1)


@pytest.mark.parametrize("place", ["s3://KEY:SEC/RET@bucket/in", "https://127.0.0.1:1/in?X-Amz-Signature=SECRET"])
def test_no_credential_of_an_address_is_in_the_sentence_about_it(place: str) -> None:
    told = one_sentence(gangway("batch", CONFIG, place, "out.jsonl", "--set", f"model.path={MODEL}"), 1)
    assert "cannot read " in told
    assert "SEC" not in told
    assert "RET" not in told
