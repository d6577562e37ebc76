"""`gangway cluster` from its arguments to its exit code, with rendered manifests, while a fake cluster moves on."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cluster.cli import app
from cluster.config.loader import load_spec
from cluster.doctor.facts import RIGHTS, RIGHTS_TO_DRAIN
from cluster.errors import ConflictError, PlatformError, SpecError, WorkloadError
from cluster.k8s.names import INSTANCE, LAST_APPLIED, MANAGED_BY, MANAGER
from tests.e2e.server import eventually
from tests.kube.scene import add_operator
from tests.kube.server import KubeServer
from tests.kube.store import Write
from tests.kube.test_doctor import CONFIG, set_scene
from tests.kube.world import Beat, World

Command = Callable[..., int]
Object = dict[str, Any]
STANDING = ("--set", "ray.kind=cluster")
BATCH = ("--batch", "--set", "storage.batch.mount_path=/work", "--set", "storage.batch.claim=rows")


@pytest.fixture
def world(kube: KubeServer) -> Iterator[World]:
    made = World(kube, batch_scheduler="")
    set_scene(kube, load_spec(CONFIG))
    with Beat(made) as moving:
        yield moving


@pytest.fixture
def command(kube: KubeServer, tmp_path: Path) -> Command:
    config = kube.kubeconfig(tmp_path / "kubeconfig")

    def run(verb: str, *arguments: str) -> int:
        call = [verb, str(CONFIG), *arguments, "--kubeconfig", str(config)]
        code = typer.main.get_command(app).main(call, prog_name="gangway cluster", standalone_mode=False)
        return code if isinstance(code, int) else 0

    return run


def run_offline(*arguments: str) -> None:
    typer.main.get_command(app).main(list(arguments), prog_name="gangway cluster", standalone_mode=False)


def test_a_rendered_gang_comes_up_is_shown_and_goes(
    command: Command, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("doctor") == 0
    assert command("status") == 1
    capsys.readouterr()
    assert command("up", "--json") == 0
    told = capsys.readouterr()
    answer: dict[str, Any] = json.loads(told.out)
    assert answer["ready"]
    assert [pod["host"] for pod in answer["pods"]] == [None, "0", "1"]
    assert "loading the model" in told.err
    assert command("status") == 0
    name = world.pods()[1]["metadata"]["name"]
    world.server.logs[world.pods()[1]["metadata"]["namespace"], name, False] = "rank 8 listens\n"
    capsys.readouterr()
    host = world.pods()[1]["metadata"]["labels"]["ray.io/worker-group-replica-index"]
    assert command("logs", "--host", host) == 0
    assert capsys.readouterr().out == "rank 8 listens\n"
    assert command("down") == 0
    assert world.pods() == []
    assert command("down") == 0


def test_the_role_that_is_printed_has_the_verbs_that_doctor_asks_for(
    command: Command, kube: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_spec(CONFIG)
    set_scene(kube, spec)
    kube.rbac.denied |= {(verb, f"{kind.full_name}/{sub}".rstrip("/")) for verb, kind, sub in RIGHTS + RIGHTS_TO_DRAIN}
    run_offline("role", str(CONFIG), "--json")
    (role,) = json.loads(capsys.readouterr().out)
    assert role["metadata"]["namespace"] == spec.namespace
    told = {f"{verb} {name}" for rule in role["rules"] for verb in rule["verbs"] for name in _full_names(rule)}
    assert command("doctor", "--json") == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    texts = " ".join(row["text"] for row in checks if row["check"] == "rights" and row["level"] in ("fail", "warn"))
    assert told == set(re.findall(r"(?:get|list|watch|create|patch|delete) [a-z0-9./]+", texts))


def _full_names(rule: dict[str, Any]) -> list[str]:
    """As `doctor` names resources: `rayjobs.ray.io`, `pods/log`."""
    (group,) = rule["apiGroups"]
    return [f"{name}.{group}" if group else name for name in rule["resources"]]


def test_up_tells_what_it_would_do_and_does_nothing(
    command: Command, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("up", "--dry-run", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["does"] for row in rows} == {"create"}
    assert world.store.select("rayjobs.ray.io") == []


def test_a_standing_cluster_gets_its_command_and_gets_it_again(
    command: Command, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("up", *STANDING) == 0
    assert [job["status"] for job in world.standing.jobs] == ["RUNNING"]
    assert command("up", *STANDING) == 0
    assert command("submit", *STANDING) == 0
    assert [job["status"] for job in world.standing.jobs] == ["STOPPED", "RUNNING"]
    assert len({job["entrypoint"] for job in world.standing.jobs}) == 1
    assert world.store.select("rayjobs.ray.io") == []
    capsys.readouterr()
    assert command("down", *STANDING) == 0
    said = capsys.readouterr().out
    assert "stopping the job" in said
    assert "cut off" not in said
    assert world.store.select("rayclusters.ray.io") == []


def test_a_head_that_is_made_again_serves_again(command: Command, world: World) -> None:
    assert command("up", *STANDING) == 0
    (first,) = world.standing.jobs
    (head,) = world.pods("head")
    world.store.delete("pods", head["metadata"]["name"], head["metadata"]["namespace"])
    eventually(lambda: world.standing.runs and world.standing.jobs[0]["submission_id"] != first["submission_id"])
    assert command("up", *STANDING) == 0
    assert command("status", *STANDING) == 0


def test_a_command_that_fails_is_tried_again_and_then_told(
    command: Command, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = (*STANDING, "--set", "ray.backoff_limit=2")
    world.standing.falls_over = 2
    assert command("up", *twice) == 0
    assert [job["status"] for job in world.standing.jobs] == ["FAILED", "FAILED", "RUNNING"]
    world.standing.falls_over = 3
    with pytest.raises(WorkloadError, match="the job has failed: FAILED: it said why") as told:
        command("submit", *twice)
    assert told.value.fix is not None
    assert "`submit`" in told.value.fix
    assert world.standing.falls_over == 0
    assert command("submit", *twice) == 0


def test_the_submission_of_an_earlier_version_goes_when_its_head_does(
    command: Command, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_spec(CONFIG)
    labels = {INSTANCE: spec.name, MANAGED_BY: MANAGER}
    meta = {"name": f"{spec.name[:41]}-serve", "namespace": spec.namespace, "labels": labels}
    body = {
        "entrypoint": "gangway serve",
        "submissionMode": "HTTPMode",
        "clusterSelector": {"ray.io/cluster": spec.name},
    }
    world.store.create("rayjobs.ray.io", {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": body})
    assert command("up", *STANDING) == 0
    assert "the head itself runs the command now" in capsys.readouterr().out
    assert world.store.select("rayjobs.ray.io") == []


def test_a_job_that_its_operator_would_refuse_for_ever_is_refused_before_anything_is_applied(
    command: Command, kube: KubeServer
) -> None:
    set_scene(kube, load_spec(CONFIG))
    add_operator(kube.store, batch_scheduler="scheduler-plugins")
    with pytest.raises(PlatformError, match="--batch-scheduler=scheduler-plugins: KubeRay refuses every RayJob"):
        command("up")
    assert kube.store.select("rayjobs.ray.io") == []
    assert not [call for call in kube.calls if call[0] == "PATCH"]


@pytest.mark.parametrize("scheduler", ["volcano", "yunikorn", "scheduler-plugins"])
def test_a_standing_cluster_is_served_under_schedulers_that_refuse_its_jobs(
    command: Command, kube: KubeServer, scheduler: str
) -> None:
    gang = ("--set", f"gang={{scheduler: {scheduler}}}")
    set_scene(kube, load_spec(CONFIG))
    with Beat(World(kube, batch_scheduler=scheduler)) as world:
        assert command("doctor", *STANDING, *gang) == 0
        assert command("up", *STANDING, *gang) == 0
        assert world.standing.runs
        assert command("down", *STANDING, *gang) == 0


def test_a_job_is_not_submitted_by_hand(command: Command) -> None:
    with pytest.raises(SpecError, match="KubeRay submits the command by itself"):
        command("submit")


def test_submitting_without_a_cluster_says_to_bring_it_up(command: Command, world: World) -> None:
    with pytest.raises(ConflictError, match="up` first"):
        command("submit", *STANDING)


def test_a_batch_job_is_created_once_beside_the_serving_gang_and_goes(
    command: Command, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = ("submit", *BATCH, "/work/in.jsonl", "/work/out.jsonl")
    assert command(*batch, "--json") == 0
    told = capsys.readouterr()
    name = json.loads(told.out)["name"]
    (job,) = world.store.select("rayjobs.ray.io")
    assert job["metadata"]["name"] == name == f"{load_spec(CONFIG).name}-batch"
    assert "/work/in.jsonl /work/out.jsonl" in job["spec"]["entrypoint"]
    assert f"gangway cluster logs {CONFIG} --set name={name}" in told.err
    with pytest.raises(ConflictError, match=f"a RayJob {name} already"):
        command(*batch)
    assert command("down", "--set", f"name={name}") == 0
    assert world.store.select("rayjobs.ray.io") == []


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_batch_job_that_is_waited_for_ends_the_command_as_it_ends_and_not_while_it_is_tried_again(
    command: Command,
    world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ends_well: bool,
) -> None:
    name, running = f"{load_spec(CONFIG).name}-batch", world.step

    def step(seconds: float = 1.0) -> None:
        running(seconds)
        for job in world.store.select("rayjobs.ray.io"):
            status, namespace = job.get("status", {}), job["metadata"]["namespace"]
            if status.get("jobStatus") != "RUNNING" or not world.operator:
                continue
            if not status.get("failed"):
                world.operator.retry_job(name, namespace)
            elif ends_well:
                world.operator.finish_job(name, namespace)
            else:
                world.operator.fail_job(name, namespace, reason="AppFailed", message="no rows")

    monkeypatch.setattr(world, "step", step)
    call = ("submit", *BATCH, "--wait", "/work/in.jsonl", "/work/out.jsonl")
    if ends_well:
        assert command(*call) == 0
        assert "the job has succeeded" in capsys.readouterr().out
    else:
        with pytest.raises(WorkloadError, match="the job has failed: AppFailed: no rows"):
            command(*call)


def test_a_batch_job_can_be_looked_at_first(command: Command, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("submit", *BATCH, "/work/in.jsonl", "/work/out.jsonl", "--dry-run") == 0
    assert [document["kind"] for document in yaml.safe_load_all(capsys.readouterr().out)][-1] == "RayJob"
    assert world.store.select("rayjobs.ray.io") == []


def test_files_and_no_batch_are_refused(command: Command) -> None:
    with pytest.raises(SpecError, match="are for --batch"):
        command("submit", "/work/in.jsonl", "/work/out.jsonl")


def test_an_interrupt_says_what_stays(
    command: Command, kube: KubeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_scene(kube, load_spec(CONFIG))
    monkeypatch.setattr("cluster.status.observer.Wakeups.wait", _interrupted)
    assert command("up") == 130
    assert "what was applied stays" in capsys.readouterr().err
    assert kube.store.select("rayjobs.ray.io")


def test_an_interrupted_wait_for_a_batch_job_names_the_job_and_not_the_serving_gang(
    command: Command, kube: KubeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_scene(kube, load_spec(CONFIG))
    monkeypatch.setattr("cluster.status.observer.Wakeups.wait", _interrupted)
    assert command("submit", *BATCH, "--wait", "/work/in.jsonl", "/work/out.jsonl") == 130
    told = capsys.readouterr().err
    assert f"gangway cluster status {CONFIG} --set name={load_spec(CONFIG).name}-batch" in told
    assert "cluster up" not in told


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fault", ["disconnect", 429, 503])
def test_up_ends_right_whatever_call_is_disturbed(command: Command, world: World, kube: KubeServer, fault: Any) -> None:
    for skip in (0, 3, 10, 15, 20, 24):
        kube.faults.add(fault, skip=skip)
    assert command("up") == 0
    assert kube.faults.hits


def test_what_is_rendered_is_what_up_applies(
    command: Command, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Document by document as the server gets them, but for the note of `up` for its own next comparison."""
    run_offline("render", str(CONFIG), "--out", str(tmp_path / "gang.yaml"))
    documents = list(yaml.safe_load_all((tmp_path / "gang.yaml").read_text()))
    assert documents[-1]["kind"] == "RayJob"
    sent, apply = [], world.store.apply

    def applied(full_name: str, name: str, namespace: str, obj: Object, write: Write, *, force: bool) -> Object:
        if not write.dry_run:
            sent.append(without_note(obj))
        return apply(full_name, name, namespace, obj, write, force=force)

    monkeypatch.setattr(world.store, "apply", applied)
    assert command("up") == 0
    assert sent == [without_note(document) for document in documents]


def without_note(document: Object) -> Object:
    meta = dict(document["metadata"])
    meta["annotations"] = {key: text for key, text in meta.get("annotations", {}).items() if key != LAST_APPLIED}
    return document | {"metadata": meta}


@pytest.mark.parametrize("verb", ["plan", "doctor", "role", "render", "up", "status", "logs", "submit", "down"])
def test_every_command_helps_with_an_example_and_knows_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_offline(verb, "--help")
    told = capsys.readouterr().out
    assert f"gangway cluster {verb}" in told
    assert "--json" in told


def test_a_serving_configuration_is_held_against_the_model_and_its_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    root = CONFIG.parents[2]
    model = str(root / "tests" / "cluster" / "models" / "llama-3.1-405b")
    serving = ("--serving", str(root / "configs" / "llama-3.1-405b-tp16-2x8-h100.yaml"))
    plan = typer.main.get_command(app).main
    assert plan(["plan", model, "--gpu", "h100", *serving], standalone_mode=False) == 0
    assert "note: each of the 8 KV heads" in capsys.readouterr().out
    assert plan(["plan", model, "--node", "8x40", *serving, "--json"], standalone_mode=False) == 1
    assert "but a GPU has 40" in json.loads(capsys.readouterr().out)["serving"]["problems"][0]
