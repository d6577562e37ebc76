"""The fake, judged by a client that was not written for it: kubectl."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.kube.samples import gang
from tests.kube.server import KubeServer

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(kubectl: str, kube: KubeServer, tmp_path: Path) -> Kubectl:
    config = kube.kubeconfig(tmp_path / "kubeconfig")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [kubectl, "--kubeconfig", str(config), "--cache-dir", str(tmp_path / "cache"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return call


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "gang.yaml"
    path.write_text(yaml.safe_dump_all(gang()))
    return path


def test_kubectl_applies_compares_shows_and_deletes(run: Kubectl, manifest: Path) -> None:
    applied = run("apply", "--server-side", "-f", str(manifest))
    assert applied.returncode == 0, applied.stderr
    assert "rayjob.ray.io/llama serverside-applied" in applied.stdout
    assert run("get", "rayjob", "llama", "-o", "jsonpath={.spec.submissionMode}").stdout == "HTTPMode"
    assert run("diff", "--server-side", "-f", str(manifest)).returncode == 0
    manifest.write_text(manifest.read_text().replace("gangway:1", "gangway:2"))
    compared = run("diff", "--server-side", "-f", str(manifest))
    assert compared.returncode == 1
    assert "+            image: registry/gangway:2" in compared.stdout.replace("- image", "  image")
    assert run("delete", "-f", str(manifest), "--wait").returncode == 0
    assert run("get", "rayjob", "llama").returncode == 1


def test_kubectl_is_told_of_a_field_that_does_not_exist(run: Kubectl, manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("submissionMode", "submissionMood"))
    answer = run("apply", "--server-side", "-f", str(manifest))
    assert answer.returncode != 0
    assert 'unknown field "spec.submissionMood"' in answer.stderr


def test_kubectl_is_told_of_a_conflict_and_may_force_it(run: Kubectl, manifest: Path) -> None:
    run("apply", "--server-side", "-f", str(manifest))
    manifest.write_text(manifest.read_text().replace("gangway:1", "gangway:2"))
    refused = run("apply", "--server-side", "--field-manager=other", "-f", str(manifest))
    assert 'conflict with "kubectl"' in refused.stderr
    assert '.containers[name="ray"].image' in refused.stderr
    forced = run("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", str(manifest))
    assert forced.returncode == 0, forced.stderr


def test_kubectl_waits_for_a_condition_and_for_an_end(run: Kubectl, kube: KubeServer, manifest: Path) -> None:
    run("apply", "--server-side", "-f", str(manifest))
    assert run("wait", "--for=jsonpath={.spec.submissionMode}=HTTPMode", "rayjob/llama", "--timeout=5s").returncode == 0
    kube.store.delete("rayjobs.ray.io", "llama", "default")
    assert run("wait", "--for=delete", "rayjob/llama", "--timeout=5s").returncode == 0


def test_kubectl_patches_and_selects(run: Kubectl, manifest: Path) -> None:
    run("apply", "--server-side", "-f", str(manifest))
    patched = run("patch", "rayjob", "llama", "--type=merge", "-p", '{"spec": {"backoffLimit": 3}}')
    assert patched.returncode == 0, patched.stderr
    operations = '[{"op": "add", "path": "/metadata/labels/team", "value": "red"}]'
    assert run("patch", "rayjob", "llama", "--type=json", "-p", operations).returncode == 0
    named = run("get", "rayjobs", "-l", "team=red", "-o", "name").stdout
    assert named.strip() == "rayjob.ray.io/llama"
    assert run("get", "rayjobs", "-l", "team in (blue)", "-o", "name").stdout == ""
