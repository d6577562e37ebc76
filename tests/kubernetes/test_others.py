"""Gangs of other kinds on a real API server: with a spare, on a standing cluster, and a batch job."""

import json
from pathlib import Path

import httpx

from tests.e2e.server import eventually
from tests.kube.laptop import SETTINGS
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.gang import Gang
from tests.kubernetes.lost_pod import lose_a_pod


def test_doctor_finds_nothing_wrong(cluster: Cluster) -> None:
    said = Gang(cluster).run("doctor")
    assert "KubeRay" in said or "kuberay" in said


def test_with_a_spare_the_ranks_of_a_deleted_pod_go_there_at_once(cluster: Cluster) -> None:
    gang = Gang(cluster, (*SETTINGS, "nodes.spares=1"))
    gang.run("up")
    eventually(gang.at_rest)
    assert "spare" in gang.run("status")
    seen = lose_a_pod(gang)
    print(f"a pod of a gang with one spare is deleted:\n{seen}")
    eventually(gang.at_rest)
    gang.run("down")


def test_the_command_is_submitted_again_on_a_standing_cluster(cluster: Cluster) -> None:
    gang = Gang(cluster, (*SETTINGS, "ray.kind=cluster"))
    gang.run("up")
    before = {pod["metadata"]["uid"] for pod in cluster.pods()}
    gang.run("submit")
    assert {pod["metadata"]["uid"] for pod in cluster.pods()} == before
    assert httpx.get(f"{gang.url}/readyz", timeout=10).is_success
    gang.run("down")


def test_a_batch_job_has_a_gang_of_its_own_and_writes_every_row(cluster: Cluster, tmp_path: Path) -> None:
    rows = [{"inputs": f"Story number {number}.", "parameters": {"max_tokens": 8}} for number in range(4)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    places = f"storage.batch.mount_path={tmp_path}", f"storage.batch.host_path={tmp_path}"
    gang = Gang(cluster, (*SETTINGS, *places))
    gang.run("submit", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--batch", "--wait")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(row["outputs"]) for row in written] == [1] * len(rows)
    Gang(cluster, (*gang.settings, "name=smollm2-batch")).run("down")
