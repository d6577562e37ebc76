"""The container image. It cannot be built here: its file is linted and checked, and its one build step is run."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import CONFIGS, ROOT

Instruction = tuple[str, str]


@pytest.fixture(scope="module")
def dockerfile() -> list[Instruction]:
    """(keyword, arguments) of every instruction, continued lines joined."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def arguments(dockerfile: list[Instruction], keyword: str) -> list[str]:
    return [rest for found, rest in dockerfile if found == keyword]


def final_stage(dockerfile: list[Instruction]) -> list[Instruction]:
    last = max(index for index, (keyword, _) in enumerate(dockerfile) if keyword == "FROM")
    return dockerfile[last:]


def test_every_base_is_pinned_to_a_full_version(dockerfile: list[Instruction]) -> None:
    bases = arguments(dockerfile, "FROM")
    assert len(bases) == 2
    for base in bases:
        assert re.match(r"python:\d+\.\d+\.\d+-[a-z]+-[a-z]+( AS \w+)?$", base), base


def test_the_image_runs_as_a_user_by_number_and_nothing_follows_as_root(dockerfile: list[Instruction]) -> None:
    final = final_stage(dockerfile)
    assert arguments(final, "USER") == ["1000:1000"]
    after = [keyword for keyword, _ in final[final.index(("USER", "1000:1000")) :]]
    assert "RUN" not in after


def lint(text: str) -> list[str]:
    """The rules that hadolint finds broken."""
    command = [str(Path(sys.executable).parent / "hadolint"), "--format", "json", "--no-fail", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return [finding["code"] for finding in json.loads(done.stdout)]


def test_hadolint_finds_nothing() -> None:
    assert lint((ROOT / "Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    ("part", "changed", "rule"),
    [
        ('CMD ["--help"]', "CMD --help", "DL3025"),
        ("--no-install-recommends ", "", "DL3015"),
        (" \\\n    && rm -rf /var/lib/apt/lists/*", "", "DL3009"),
        ("RUN apt-get", "RUN sudo apt-get", "DL3004"),
        ("python:3.11.14-slim-bookworm", "python:latest", "DL3007"),
        ("USER 1000:1000", "USER root", "DL3002"),
    ],
)
def test_hadolint_finds_what_the_file_avoids(part: str, changed: str, rule: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert part in text
    assert rule in lint(text.replace(part, changed))


def test_nothing_is_fetched_but_by_package_managers(dockerfile: list[Instruction]) -> None:
    assert not arguments(dockerfile, "ADD")
    assert not any(re.search(r"\b(curl|wget|git)\b", step) for step in arguments(dockerfile, "RUN"))


def test_no_secret_is_built_in(dockerfile: list[Instruction]) -> None:
    words = re.compile("TOKEN|PASSWORD|SECRET|KEY", re.IGNORECASE)
    assert not any(words.search(rest) for keyword in ("ARG", "ENV") for rest in arguments(dockerfile, keyword))


def test_everything_that_is_copied_exists_and_is_let_in(dockerfile: list[Instruction]) -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [part for rest in arguments(dockerfile, "COPY") if "--from" not in rest for part in rest.split()[:-1]]
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / name).exists() for name in copied)


def test_what_a_login_shell_runs_is_the_images_own(dockerfile: list[Instruction]) -> None:
    (step,) = arguments(final_stage(dockerfile), "RUN")
    assert "export PATH=/opt/gangway/bin:$PATH' > /etc/profile.d/" in step


def test_what_pods_run_before_their_end_is_in_the_image(dockerfile: list[Instruction]) -> None:
    (step,) = arguments(final_stage(dockerfile), "RUN")
    assert "procps" in step.split(), "pkill and pgrep"


def test_configurations_name_the_ray_that_the_image_holds() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    for path in CONFIGS:
        assert yaml.safe_load(path.read_text())["ray"]["version"] == pinned["ray"], path


def test_the_image_can_trace_and_the_packages_for_that_are_pinned() -> None:
    (step,) = re.findall(r"pip\" install .*\"(\.\S*)\"", (ROOT / "scripts" / "install.sh").read_text())
    assert step == ".[trace]"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(project["optional-dependencies"]["trace"]) <= pinned


@pytest.mark.thorough
@pytest.mark.timeout(1500)
def test_the_build_step_makes_an_environment_that_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    steps = [str(ROOT / "scripts" / "install.sh"), str(tmp_path / "venv")]
    done = subprocess.run(steps, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    asked = subprocess.run([tmp_path / "venv/bin/gangway", "--help"], capture_output=True, text=True, check=True)
    assert "serve" in asked.stdout
    assert (tmp_path / "venv/bin/ray").exists()
    check = "from serving.api.tracing import require_opentelemetry; require_opentelemetry()"
    subprocess.run([tmp_path / "venv/bin/python", "-c", check], cwd=tmp_path, check=True)
